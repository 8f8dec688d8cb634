package zone

// aliased tells whether what stands at p is another name for something else.
func (p *place) aliased() bool { return p.kind == serving && p.svc.alias != nil }

// mostAliases lead one to the next; what has more is taken for a circle.
const mostAliases = 8

// follow answers at an alias with it and with what it leads to (RFC 1034,
// section 4.3.2, step 3a), as far as that is ours.
func (z *Zone) follow(p place, qtype uint16) Answer {
	a := Answer{Apex: p.apex, Set: p.svc.sets[0]}
	if qtype == typeCNAME || qtype == typeANY { // RFC 8482, section 4.1: one set is enough
		return a
	}
	for range mostAliases {
		owner := p.svc.alias
		next, ours := z.find(owner)
		if !ours {
			a.Outside = owner
			return a
		}
		if p = next; p.aliased() {
			a.Apex, a.More = p.apex, append(a.More, owned(p.svc.sets[0], owner))
			continue
		}
		end := z.at(&p, qtype)
		if !end.Unknown {
			if end.Set.Type != 0 {
				a.More = append(a.More, owned(end.Set, owner))
			}
			end.Set, end.More = a.Set, a.More
		}
		return end
	}
	return Answer{Apex: a.Apex, Unknown: true}
}

// owned is a set with its owner.
func owned(s Set, owner []byte) Set {
	s.Owner = owner
	return s
}
