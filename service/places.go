package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/kernel/rules"
)

// place is where a frontend is. Only one can be there.
type place struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

func placeOf(f *rules.Frontend) place { return place{f.Addr, f.Protocol, f.Port} }

func (p place) compare(o place) int {
	return cmp.Or(p.addr.Compare(o.addr), cmp.Compare(p.protocol, o.protocol), cmp.Compare(p.port, o.port))
}

// offer is a frontend that a taker asks for.
type offer struct {
	front *rules.Frontend
	by    *taker
	next  *offer // at the same place, of lower rank
}

// rank orders those who ask for the same place: services before publications,
// then by age, then by key.
func (k *taker) rank(o *taker) int {
	switch {
	case k.service != nil && o.service != nil:
		a, b := k.service, o.service
		return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(a.Network, b.Network), strings.Compare(a.Name, b.Name))
	case k.service != nil:
		return -1
	}
	return 1 // the key of a publication is its place: two of them never meet
}

// serve makes anew what k asks for.
func (t *Table) serve(k *taker) {
	t.withdraw(k)
	f := filling{state: &t.state, taker: k, selected: t.chosen(k), list: t.slots}
	if k.service != nil {
		t.serveService(k, &f)
	} else {
		p := k.published
		f.next(&Port{Port: p.Port, Target: p.TargetPort, Protocol: p.Protocol})
		k.offers = make([]offer, 0, len(t.nodes))
		k.ask(&f, t.nodes, p.Port, true)
	}
	t.slots = f.list[:0]
	for i := range k.offers {
		t.offer(&k.offers[i])
	}
	t.trouble(k, f.problems)
}

func (t *Table) serveService(k *taker, f *filling) {
	s := k.service
	at := s.VirtualIPs
	if slices.ContainsFunc(at, func(a netip.Addr) bool { return !t.state.mayServe(a) }) {
		at = nil
		for _, a := range s.VirtualIPs {
			switch {
			case t.state.mayServe(a):
				at = append(at, a)
			case within(t.state.Networks, a):
				f.problem("its virtual address %s is a host's own: update it with another one", a)
			case len(t.state.Networks) > 0:
				f.problem("its virtual address %s is outside of the service network %s: update it with another one", a, join(t.state.Networks))
			}
		}
	}
	n := 0
	for _, p := range s.Ports {
		if n += len(at); p.NodePort != 0 {
			n += len(t.nodes)
		}
	}
	k.offers = make([]offer, 0, n) // what points to its elements allows no growth
	for i := range s.Ports {
		p := &s.Ports[i]
		f.next(p)
		if p.TargetName != "" && len(s.Endpoints) > 0 {
			f.problem("port %d/%s: the listed endpoints have no port named %s and are left out: give the port a number as its target", p.Port, p.Protocol, p.TargetName)
		}
		if k.ask(f, at, p.Port, false); p.NodePort != 0 {
			k.ask(f, t.nodes, p.NodePort, true)
		}
	}
}

// mayServe tells whether a can be a service's address here.
func (st *State) mayServe(a netip.Addr) bool {
	_, own := slices.BinarySearchFunc(st.Hosts, a, netip.Addr.Compare)
	return !own && within(st.Networks, a)
}

// ask offers a frontend at each address.
func (k *taker) ask(f *filling, at []netip.Addr, port uint16, node bool) {
	for _, a := range at {
		front := &rules.Frontend{Addr: a, Protocol: protocolNumber(f.port.Protocol), Port: port, Node: node, Slots: f.slots(familyOf(a))}
		if k.service != nil {
			front.Balance, front.Affinity = k.service.balance(), time.Duration(k.service.Affinity)*time.Second
		}
		k.offers = append(k.offers, offer{front: front, by: k})
	}
}

// offer puts o behind those of its place that go before it.
func (t *Table) offer(o *offer) {
	at := placeOf(o.front)
	t.touched = append(t.touched, at)
	first := t.places[at]
	if first == nil {
		t.places[at] = o
		return
	}
	t.contested[at], t.problemsOld = true, true
	if o.by.rank(first.by) < 0 {
		o.next, t.places[at] = first, o
		return
	}
	for first.next != nil && first.next.by.rank(o.by) <= 0 {
		first = first.next
	}
	o.next, first.next = first.next, o
}

// withdraw takes the offers of k away.
func (t *Table) withdraw(k *taker) {
	for i := range k.offers {
		at := placeOf(k.offers[i].front)
		t.touched = append(t.touched, at)
		if !t.contested[at] {
			if o := t.places[at]; o != nil && o.by == k {
				delete(t.places, at)
			}
			continue
		}
		t.problemsOld = true
		var kept, last *offer
		for o := t.places[at]; o != nil; o = o.next {
			switch {
			case o.by == k:
			case kept == nil:
				kept, last = o, o
			default:
				last.next, last = o, o
			}
		}
		if kept == nil {
			delete(t.places, at)
			delete(t.contested, at)
			continue
		}
		last.next, t.places[at] = nil, kept
		if kept == last {
			delete(t.contested, at)
		}
	}
	k.offers = nil
}

// publish makes the frontends right at the places that were touched. What is
// equal there keeps its pointer; if all is, the list stays too.
func (t *Table) publish() {
	slices.SortFunc(t.touched, place.compare)
	old := t.frontends
	var list []*rules.Frontend
	for _, at := range slices.Compact(t.touched) {
		i, there := slices.BinarySearchFunc(old, at, func(f *rules.Frontend, at place) int { return placeOf(f).compare(at) })
		o := t.places[at]
		if there && o != nil && old[i].Equal(o.front) {
			o.front = old[i] // the other is garbage
			continue
		}
		if !there && o == nil {
			continue
		}
		if list == nil {
			list = make([]*rules.Frontend, 0, len(t.places))
		}
		list = append(list, old[:i]...)
		if old = old[i:]; there {
			old = old[1:]
		}
		if o != nil {
			list = append(list, o.front)
		}
	}
	if list != nil {
		list = append(list, old...)
		t.frontends = list
	}
}
