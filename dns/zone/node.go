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
	typeCNAME = 5
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
// built; that of one source is shared by all names and addresses of it. There
// are very many: it is small.
type node struct {
	of source // *several if there are several
}

// several are sources that have one name or address in common, or a single one
// whose addresses do not stand together by family.
type several struct {
	sources []source
	sets    []Set // A and AAAA, of a name
}

// sources are those of n, nil if there is only one.
func (n *node) sources() []source {
	if s, ok := n.of.(*several); ok {
		return s.sources
	}
	return nil
}

// set is what a name has of a type.
func (n *node) set(st *State, qtype uint16) Set {
	if s, ok := n.of.(*several); ok {
		return pick(s.sets, qtype)
	}
	list, here := st.addressesOf(n.of)
	return family(list, qtype, here)
}

// addressesOf are those that a name has from s, and whether they go before
// others.
func (s *State) addressesOf(of source) (list []netip.Addr, here bool) {
	switch of := of.(type) {
	case *endpoint.Endpoint:
		if !s.out(of) {
			return of.Addresses, s.here(of)
		}
	case *Name:
		return of.Addresses, false
	}
	return nil, false
}

// family is the set of those of one type, which stand together in list.
func family(list []netip.Addr, qtype uint16, here bool) Set {
	if qtype != typeA && qtype != typeAAAA {
		return Set{}
	}
	from := 0
	for from < len(list) && typeOf(list[from]) != qtype {
		from++
	}
	to := from
	for to < len(list) && typeOf(list[to]) == qtype {
		to++
	}
	if from == to {
		return Set{}
	}
	set := Set{Type: qtype, Addrs: list[from:to:to]}
	if here {
		set.Local = to - from
	}
	return set
}

// together tells whether the addresses of s stand together by family.
func together(s source) bool {
	var list []netip.Addr
	switch s := s.(type) {
	case *endpoint.Endpoint:
		list = s.Addresses
	case *Name:
		list = s.Addresses
	}
	changes := 0
	for i := 1; i < len(list); i++ {
		if list[i].Is4() != list[i-1].Is4() {
			changes++
		}
	}
	return changes < 2
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

// out tells whether an endpoint must not be an answer for its own names.
func (s *State) out(e *endpoint.Endpoint) bool { return len(e.Unhealthy) > 0 || s.dead(e) }

// outOf tells whether an endpoint of a service must not be an answer for it.
func (s *State) outOf(v *service.Service, e *endpoint.Endpoint) bool {
	_, sick := e.Unhealthy[v.Name]
	return sick || s.dead(e)
}

func (s *State) dead(e *endpoint.Endpoint) bool {
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

// add adds what comes from s.
func (l *addresses) add(st *State, s source) {
	list, here := st.addressesOf(s)
	l.addAll(list, here)
}

func (l *addresses) addAll(list []netip.Addr, here bool) {
	for _, a := range list {
		*l = append(*l, address{a, here})
	}
}

// sets are the A and AAAA records of all addresses.
func (l addresses) sets() []Set {
	l = l.sorted()
	four := 0
	for _, a := range l {
		if a.Is4() {
			four++
		}
	}
	var sets []Set
	for i, n := range []int{four, len(l) - four} {
		if n == 0 {
			continue
		}
		t := []uint16{typeA, typeAAAA}[i]
		s := Set{Type: t, Addrs: make([]netip.Addr, 0, n)}
		for _, a := range l {
			if typeOf(a.Addr) != t {
				continue
			}
			if s.Addrs = append(s.Addrs, a.Addr); a.here {
				s.Local++
			}
		}
		sets = append(sets, s)
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
