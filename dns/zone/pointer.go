package zone

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// pointer is a name that an address has, and whose it is.
type pointer struct {
	name []byte
	of   source // nil: the name server
	rank int    // the best goes first
}

// What people want to read of an address: the container; what is not one, or
// is one besides, by the name that others use for it.
const (
	ofContainer = iota
	ofServer
	ofService
	ofName
	ofMember // listed by a service; only if it has no other name
)

// pointers are the PTR records of an address. Containers come first, in the
// Set's Local part: many programs read one record.
func (z *Zone) pointers(p *place) Set {
	list := z.pointersTo(p.node, p.addr)
	if len(list) == 0 {
		return Set{}
	}
	set := Set{Type: typePTR, Data: make([][]byte, 0, len(list))}
	for _, n := range list {
		if n.rank == list[0].rank {
			set.Local++
		}
		set.Data = append(set.Data, n.name)
	}
	if set.Local == len(set.Data) {
		set.Local = 0
	}
	return set
}

// pointersTo are the names of an address that n, nil if nobody has it, is
// about. Every one of them has the address.
func (z *Zone) pointersTo(n *node, a netip.Addr) []pointer {
	var list []pointer
	if slices.Contains(z.state.Nameservers, a) {
		list = append(list, pointer{compose(z.apex, "ns", "dns"), nil, ofServer})
	}
	if n != nil {
		for i := range n.len() {
			if p := z.pointer(n.source(i), a); p.name != nil {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, func(a, b pointer) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return bytes.Compare(a.name, b.name)
	})
	list = slices.CompactFunc(list, func(a, b pointer) bool { return bytes.Equal(a.name, b.name) })
	if i := slices.IndexFunc(list, func(p pointer) bool { return p.rank == ofMember }); i > 0 {
		list = list[:i]
	}
	return list
}

// pointer is the name of an address of s; none if s is left out.
func (z *Zone) pointer(s source, a netip.Addr) pointer {
	switch s := s.(type) {
	case *endpoint.Endpoint:
		if z.state.out(s) {
			return pointer{}
		}
		return pointer{z.nameOf(s, a), s, ofContainer}
	case *Name:
		wire, _ := Wire(s.Name + "." + s.Network)
		if len(wire) == 0 || len(wire)-1+len(z.base) > maxWire || z.state.isServer(s.Name, s.Network) {
			return pointer{}
		}
		return pointer{slices.Concat(wire[:len(wire)-1], z.base), s, ofName}
	case *service.Service:
		if slices.Contains(s.VirtualIPs, a) && !s.Headless {
			return pointer{z.serviceName(s), s, ofService}
		}
		if name := z.serviceName(s); name != nil {
			return pointer{compose(name, dashed(a)), s, ofMember}
		}
	}
	return pointer{}
}

// nameOf is the first name of e, or what a is called below pod if it has none.
func (z *Zone) nameOf(e *endpoint.Endpoint, a netip.Addr) []byte {
	var name []byte
	if parent := z.state.parent(e); parent != "" {
		namesOf(e, func(label string) bool {
			if !z.state.isServer(label, parent) {
				name = compose(z.base, label, parent)
			}
			return name == nil
		})
	}
	if name == nil {
		name = compose(z.base, dashed(a), z.state.podSpace(e), "pod")
	}
	return name
}
