package zone

import (
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// Types of records (RFC 1035, 2782, 3596).
const (
	typeA     = 1
	typeNS    = 2
	typeSOA   = 6
	typePTR   = 12
	typeHINFO = 13
	typeTXT   = 16
	typeAAAA  = 28
	typeSRV   = 33
	typeANY   = 255
)

// source is what records come from: *endpoint.Endpoint, *Name or
// *service.Service.
type source any

// node is what one name or one address has. It is immutable once its Zone is
// built; those of one source are shared by all names of that source.
type node struct {
	sets []Set  // A and AAAA
	of   source // *several if there are several
}

// several are sources that have one name or address in common.
type several struct{ sources []source }

// sources are those of n, nil if there is only one.
func (n *node) sources() []source {
	if s, ok := n.of.(*several); ok {
		return s.sources
	}
	return nil
}

func (n *node) len() int { return max(1, len(n.sources())) }

func (n *node) source(i int) source {
	if s := n.sources(); s != nil {
		return s[i]
	}
	return n.of
}

// space is what is below one namespace or network.
type space struct {
	made  *edit
	names trie[string, *node] // of one label
	// deep are added names of several labels, and what is between them and the
	// space; the key is the wire format up to the space.
	deep trie[string, deepNode]
	pods int // endpoints with addresses, which have a name below pod
}

type deepNode struct {
	node  *node // nil: an empty non-terminal
	below int   // names below it
}

// services are those of one network.
type services struct {
	made  *edit
	names trie[string, *serviceNode]
}

// out tells whether an endpoint must not be an answer.
func (s *State) out(e *endpoint.Endpoint) bool {
	if len(e.Unhealthy) > 0 {
		return true
	}
	_, dead := s.Dead[e.Host]
	return dead
}

// here tells whether an endpoint goes before those of other hosts.
func (s *State) here(e *endpoint.Endpoint) bool { return s.PreferLocal && e.Host == s.Local }

// parent is the label below which e's names are, "" if it has none, as
// endpoint.Parent has it; in tenants it is always the network.
func (s *State) parent(e *endpoint.Endpoint) string {
	if s.Tenant == endpoint.DefaultTenant {
		return e.Parent()
	}
	if endpoint.Reserved(e.Network) {
		return ""
	}
	return e.Network
}

// podSpace is the label below which e is found by its address: as parent, but
// reserved labels are none there.
func (s *State) podSpace(e *endpoint.Endpoint) string {
	if s.Tenant == endpoint.DefaultTenant && e.Namespace != "" {
		return e.Namespace
	}
	return e.Network
}

// isServer tells whether a name of a container is the name server's.
func (s *State) isServer(label, parent string) bool {
	return label == "ns" && parent == "dns" && s.Tenant == endpoint.DefaultTenant
}

// namesOf yields the labels by which e is known, best first.
func namesOf(e *endpoint.Endpoint, yield func(label string) bool) {
	for _, n := range e.Names {
		if low, ok := endpoint.Label(n); ok && low == n && !yield(n) {
			return
		}
	}
	const short = 12
	id, ok := endpoint.Label(e.Container[:min(short, len(e.Container))])
	if ok && !slices.Contains(e.Names, id) {
		yield(id)
	}
}

// addresses collects those of a Set, each once.
type addresses []address

type address struct {
	netip.Addr
	here bool
}

// append adds the data of a's record to b.
func (a address) append(b []byte) []byte {
	if a.Is4() {
		raw := a.As4()
		return append(b, raw[:]...)
	}
	raw := a.As16()
	return append(b, raw[:]...)
}

// add adds what comes from s; only is the one address that is asked for, if it
// is valid.
func (l *addresses) add(st *State, s source, only netip.Addr) {
	here := false
	var list []netip.Addr
	switch s := s.(type) {
	case *endpoint.Endpoint:
		if st.out(s) {
			return
		}
		list, here = s.Addresses, st.here(s)
	case *Name:
		list = s.Addresses
	case *service.Service: // by an address only
	}
	if only.IsValid() {
		*l = append(*l, address{only, here})
		return
	}
	for _, a := range list {
		*l = append(*l, address{a, here})
	}
}

// sets are the A and AAAA records of all addresses.
func (l addresses) sets() []Set {
	l = l.sorted()
	v4, here4, v6, here6 := 0, 0, 0, 0
	for _, a := range l {
		here := 0
		if a.here {
			here = 1
		}
		if a.Is4() {
			v4, here4 = v4+1, here4+here
		} else {
			v6, here6 = v6+1, here6+here
		}
	}
	var sets []Set
	if v4 > 0 && v6 > 0 {
		sets = make([]Set, 0, 2)
	}
	raw := make([]byte, 0, 4*v4+16*v6)
	for _, f := range []struct {
		n, here int
		typ     uint16
	}{{v4, here4, typeA}, {v6, here6, typeAAAA}} {
		if f.n == 0 {
			continue
		}
		data := make([][]byte, 0, f.n)
		for _, a := range l {
			if a.Is4() != (f.typ == typeA) {
				continue
			}
			start := len(raw)
			raw = a.append(raw)
			data = append(data, raw[start:len(raw):len(raw)])
		}
		sets = append(sets, Set{Type: f.typ, Data: data, Local: f.here})
	}
	return sets
}

// sorted is l with each address once, this host's first.
func (l addresses) sorted() addresses {
	if len(l) < 2 {
		return l
	}
	slices.SortFunc(l, func(a, b address) int {
		if c := a.Compare(b.Addr); c != 0 || a.here == b.here {
			return c
		}
		return first(a.here)
	})
	l = slices.CompactFunc(l, func(a, b address) bool { return a.Addr == b.Addr })
	slices.SortStableFunc(l, func(a, b address) int {
		if a.here == b.here {
			return 0
		}
		return first(a.here)
	})
	return l
}

// first orders what is before what is not.
func first(is bool) int {
	if is {
		return -1
	}
	return 1
}
