package zone

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// Zone is the names of one State. It is immutable: any number of goroutines
// may ask it.
type Zone struct {
	head
	state    State
	seed     maphash.Seed
	nets     []netip.Prefix // outermost first
	spaces   trie[string, *space]
	services trie[string, *services]
	addrs    trie[[16]byte, *node]
}

// Lookup answers a question. name is in wire format, in lower case, with the
// root's zero at its end; what is no name is not ours. ours is false for
// names outside the zones that are answered here. What it returns must not be
// written to; Apex may be a part of name.
//
// A name whose endpoints are all left out exists and has no data: they may be
// back the next moment, and a resolver that were told that there is no such
// name would go on with its search list and find somebody else's.
func (z *Zone) Lookup(name []byte, qtype uint16) (a Answer, ours bool) {
	p, ours := z.find(name)
	if !ours {
		return a, false
	}
	if p.aliased() {
		return z.follow(p, qtype), true
	}
	return z.at(&p, qtype), true
}

// at answers at a place that is no alias.
func (z *Zone) at(p *place, qtype uint16) Answer {
	a := Answer{Apex: p.apex}
	switch {
	case p.kind == nothing:
		a.Unknown, a.NameError = z.state.Partial, !z.state.Partial
	case qtype == typeANY:
		a.Set = z.answerAny(p)
	default:
		a.Set, a.Extra = z.answer(p, qtype)
	}
	a.NoData = a.Set.Type == 0 && !a.Unknown
	return a
}

// short returns a last label that only abbreviated names of ours have, such as
// frontend.default.svc: resolvers ask for them as they stand, too, and no
// stranger is to hear of them or to answer. Nothing is below. nil: any other.
func short(last []byte) []byte {
	for _, l := range [...]string{"\x03svc\x00", "\x03pod\x00", "\x07default\x00"} {
		if string(last) == l {
			return []byte(l)
		}
	}
	return nil
}

// kind is what stands at a name.
type kind uint8

const (
	nothing kind = iota // and nothing below it
	between             // an empty non-terminal
	top                 // SOA and NS
	server              // the name server
	version             // of the schema
	named               // containers and added names
	serving             // a service
	ported              // a named port of a service
	byAddr              // an address as a label
	pointed             // an address in a reverse zone
)

// place is what was found at a name.
type place struct {
	kind kind
	apex []byte
	atop bool         // pointed: the apex as well
	node *node        // named, byAddr, pointed (nil: nobody has the address)
	svc  *serviceNode // serving, ported; byAddr below a service
	port *portNode
	addr netip.Addr // byAddr, pointed
	// usable tells of byAddr whether somebody who is an answer has the address.
	usable bool
}

// find finds what stands at name.
func (z *Zone) find(name []byte) (p place, ours bool) {
	var at [maxLabels]uint8
	n, ok := split(name, &at)
	if !ok {
		return p, false
	}
	if rel := n - z.labels; rel >= 0 && bytes.Equal(name[at[rel]:], z.apex) {
		p.apex = z.apex
		z.findNamed(&p, name, at[:rel])
		return p, true
	}
	if apex := short(name[at[max(n-1, 0)]:]); n > 0 && apex != nil {
		if p.apex = apex; n == 1 {
			p.kind = between
		}
		return p, true
	}
	r, ours := reverse(z.nets, name, at[:n])
	if !ours {
		return p, false
	}
	p.apex, p.atop, p.addr = r.apex, r.at, r.addr
	switch {
	case r.wrong:
	case !r.exact:
		p.kind = between
		if r.at {
			p.kind = top
		}
	default:
		p.node, ok = z.byAddress(r.addr)
		if ok || r.at || slices.Contains(z.state.Nameservers, r.addr) {
			p.kind = pointed
		}
	}
	return p, true
}

func (z *Zone) byAddress(a netip.Addr) (*node, bool) {
	k := key(a)
	return z.addrs.get(maphash.Bytes(z.seed, k[:]), func(have [16]byte) bool { return have == k })
}

// get finds the entry of a label.
func get[V any](z *Zone, t trie[string, V], l []byte) (V, bool) {
	return t.get(maphash.Bytes(z.seed, l), func(have string) bool { return have == string(l) })
}

// findNamed finds what stands at the labels of name at at, in front of the
// apex.
func (z *Zone) findNamed(p *place, name []byte, at []uint8) {
	n := len(at)
	if n == 0 {
		p.kind = top
		return
	}
	last := label(name, at[n-1])
	switch {
	case n == 1 && string(last) == "dns":
		p.kind = between
	case n == 2 && string(last) == "dns" && string(label(name, at[0])) == "ns":
		p.kind = server
	case n == 1 && string(last) == "dns-version":
		p.kind = version
	}
	if p.kind != nothing {
		return
	}
	if z.tenant != "" {
		if string(last) != z.tenant {
			return
		}
		if n--; n == 0 {
			p.kind = between
			return
		}
		last = label(name, at[n-1])
	}
	switch string(last) {
	case "svc":
		z.findService(p, name, at[:n-1])
		return
	case "pod":
		z.findPod(p, name, at[:n-1])
		return
	}
	sp, ok := get(z, z.spaces, last)
	switch {
	case !ok || sp.names.empty() && sp.deep.empty():
	case n == 1:
		p.kind = between
	default:
		sp.find(z, p, name[at[0]:at[n-1]])
	}
}

// find finds what stands at a name's labels in front of the space's.
func (sp *space) find(z *Zone, p *place, labels []byte) {
	if len(labels) == 1+int(labels[0]) {
		if n, ok := get(z, sp.names, labels[1:]); ok {
			p.kind, p.node = named, n
			return
		}
	}
	if sp.deep.empty() {
		return
	}
	if d, ok := get(z, sp.deep, labels); ok {
		if p.kind, p.node = between, d.node; d.node != nil {
			p.kind = named
		}
	}
}

// findService finds what stands at the labels in front of svc.
func (z *Zone) findService(p *place, name []byte, at []uint8) {
	n := len(at)
	if n == 0 {
		p.kind = between
		return
	}
	sv, ok := get(z, z.services, label(name, at[n-1]))
	if !ok {
		return
	}
	if n == 1 {
		p.kind = between
		return
	}
	v, ok := get(z, sv.names, label(name, at[n-2]))
	if !ok {
		return
	}
	p.svc = v
	switch n {
	case 2:
		p.kind = serving
	case 3:
		l := label(name, at[0])
		if v.hasProtocol(l) {
			p.kind = between
			return
		}
		if a, ok := parseDashed(l); ok {
			z.findMember(p, a)
		}
	case 4:
		if p.port = z.port(v, label(name, at[0]), label(name, at[1])); p.port != nil {
			p.kind = ported
		}
	}
}

// hasProtocol tells whether named ports of v are below the label.
func (v *serviceNode) hasProtocol(l []byte) bool {
	return len(l) > 1 && l[0] == '_' && slices.ContainsFunc(v.of.Ports, func(p service.Port) bool {
		return p.Name != "" && p.Protocol == string(l[1:])
	})
}

// findMember finds an endpoint of the service p.svc.
func (z *Zone) findMember(p *place, a netip.Addr) {
	n, ok := z.byAddress(a)
	if !ok {
		return
	}
	for i := range n.len() {
		switch s := n.source(i).(type) {
		case *endpoint.Endpoint:
			if p.svc.of.Selects(s) {
				p.found(n, a, !z.state.outOf(p.svc.of, s))
			}
		case *service.Service:
			if s == p.svc.of && slices.Contains(s.Endpoints, a) {
				p.found(n, a, true)
			}
		}
	}
}

// findPod finds what stands at the labels in front of pod.
func (z *Zone) findPod(p *place, name []byte, at []uint8) {
	n := len(at)
	if n == 0 {
		p.kind = between
		return
	}
	below := label(name, at[n-1])
	sp, ok := get(z, z.spaces, below)
	switch {
	case !ok || sp.pods == 0 || n > 2:
		return
	case n == 1:
		p.kind = between
		return
	}
	a, ok := parseDashed(label(name, at[0]))
	if !ok {
		return
	}
	node, ok := z.byAddress(a)
	if !ok {
		return
	}
	for i := range node.len() {
		if e, ok := node.source(i).(*endpoint.Endpoint); ok && z.state.podSpace(e) == string(below) {
			p.found(node, a, !z.state.out(e))
		}
	}
}

func (p *place) found(n *node, a netip.Addr, usable bool) {
	p.kind, p.node, p.addr = byAddr, n, a
	p.usable = p.usable || usable
}

// answer is the records of one type, and what comes along with them.
func (z *Zone) answer(p *place, qtype uint16) (set Set, extra []Set) {
	switch p.kind {
	case top:
		if set = pick(z.top, qtype); qtype == typeNS {
			extra = z.serverExtra
		}
	case server:
		set = pick(z.server, qtype)
	case version:
		set = pick(z.version, qtype)
	case named:
		set = p.node.set(&z.state, qtype)
	case serving:
		set = pick(p.svc.sets, qtype)
	case ported:
		if set = pick(p.port.sets, qtype); set.Type != 0 {
			extra = p.port.extra
		}
	case byAddr:
		if p.usable && qtype == typeOf(p.addr) {
			set = p.node.at(p.addr)
		}
	case pointed:
		switch {
		case qtype == typePTR:
			set = z.pointers(p)
		case p.atop:
			set, extra = z.answer(&place{kind: top}, qtype)
		}
	}
	return set, extra
}

// at is the set of the one address that n is about.
func (n *node) at(a netip.Addr) Set {
	var list []netip.Addr
	switch s := n.source(0).(type) {
	case *endpoint.Endpoint:
		list = s.Addresses
	case *Name:
		list = s.Addresses
	case *service.Service:
		if list = s.Endpoints; !slices.Contains(list, a) {
			list = s.VirtualIPs
		}
	}
	i := slices.Index(list, a)
	return Set{Type: typeOf(a), Addrs: list[i : i+1 : i+1]}
}

// answerAny is RFC 8482, section 4.2, for names that have any record.
func (z *Zone) answerAny(p *place) Set {
	for _, t := range []uint16{typeA, typeAAAA, typeSRV, typePTR, typeTXT, typeSOA} {
		if set, _ := z.answer(p, t); set.Type != 0 {
			return z.any
		}
	}
	return Set{}
}

func pick(sets []Set, qtype uint16) Set {
	for i := range sets {
		if sets[i].Type == qtype {
			return sets[i]
		}
	}
	return Set{}
}

func typeOf(a netip.Addr) uint16 {
	if a.Is4() {
		return typeA
	}
	return typeAAAA
}
