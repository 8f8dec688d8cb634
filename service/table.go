package service

import (
	"cmp"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/store"
)

// Table makes the frontends of one host from each State. Its zero value is
// ready; it belongs to one goroutine.
//
// A service has a frontend for each of its ports at each of its virtual
// addresses within State.Networks that is no host's and, for node ports, at each of the host's
// own; a publication of this host has one at each of the host's own. A headless
// or external service has none. An address and port of a protocol that several
// ask for is the one's that was created first, or of the lower key; a
// publication has none of a service's.
type Table struct {
	state State
	seed  maphash.Seed
	nodes []netip.Addr // State.Nodes and 127.0.0.1, each once

	labels, handles index
	services        map[*Service]*taker
	published       map[*Publication]*taker

	places    map[place]*offer
	frontends []*rules.Frontend  // as they were last returned
	own       map[netip.Addr]int // of this host's endpoints: how many have it
	local     []netip.Addr
	localOld  bool

	// What problems are made of, and whether they have to be made anew.
	troubled    map[*taker]bool
	contested   map[place]bool
	odd         map[*endpoint.Endpoint]bool // the weight's label is wrong
	problems    []error
	problemsOld bool

	// For one Build.
	touched []place // whose offers are other than they were
	dirty   []*taker
	members []*endpoint.Endpoint
	slots   []netip.AddrPort
}

// taker is who takes connections: a service or a publication.
type taker struct {
	service   *Service
	published *Publication // if it is no service
	at        uint64       // where it stands in the index
	offers    []offer
	problems  []error
	dirty     bool
}

func (k *taker) selects(e *endpoint.Endpoint) bool {
	if k.published != nil {
		return k.published.Selects(e)
	}
	return k.service.Selects(e)
}

// Build makes the frontends of s, of the parts of the former ones that did not
// change: these keep their pointers, whatever else happens. What it costs
// beyond comparing the lists' pointers follows from what changed. It also tells
// what could not be made as it is asked for, *Problem each, stable text in
// order. s and what it points to must not be written to any more, nor must the
// result be.
func (t *Table) Build(s State) (rules.Services, []error) {
	old := t.state
	gone, come := store.Changes(old.Endpoints, s.Endpoints, func(a, b *endpoint.Endpoint) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), compareInside(a, b))
	})
	// Where many change at once, a label that most have makes it cheaper to begin anew.
	if t.places == nil || !old.alike(&s) || len(gone)+len(come) > max(2000, len(s.Endpoints)/25) {
		t.reset(&s)
		old, gone, come = State{}, nil, s.Endpoints
	}
	t.state = s
	services, published := t.changeTakers(&old)
	for _, e := range gone {
		t.remove(e)
	}
	for _, e := range come {
		t.add(e)
	}
	t.touchHosts(old.Dead)
	t.addTakers(services, published)
	for _, k := range t.dirty {
		k.dirty = false
		t.serve(k)
	}
	t.publish()
	t.dirty, t.touched, t.members, t.slots = nil, nil, nil, nil
	if t.localOld {
		t.localOld = false
		t.local = slices.SortedFunc(maps.Keys(t.own), netip.Addr.Compare)
	}
	if t.problemsOld {
		t.problemsOld = false
		t.problems = t.listProblems()
	}
	return rules.Services{Networks: s.Networks, Hosts: s.Hosts, Pods: s.Pods, Subnets: s.Subnets, Frontends: t.frontends, Local: t.local}, t.problems
}

// alike tells whether the same values make the same frontends.
func (st *State) alike(o *State) bool {
	return st.Tenant == o.Tenant && st.Host == o.Host && slices.Equal(st.Networks, o.Networks) && slices.Equal(st.Hosts, o.Hosts) && slices.Equal(st.Pods, o.Pods) &&
		slices.Equal(st.Subnets, o.Subnets) && slices.Equal(st.Nodes, o.Nodes) && slices.Equal(st.Guarded, o.Guarded)
}

// reset forgets everything but what was returned last.
func (t *Table) reset(s *State) {
	*t = Table{seed: maphash.MakeSeed(), labels: newIndex(), handles: newIndex(),
		services: map[*Service]*taker{}, published: map[*Publication]*taker{}, places: map[place]*offer{}, frontends: t.frontends,
		own: map[netip.Addr]int{}, localOld: true, problemsOld: true,
		troubled: map[*taker]bool{}, contested: map[place]bool{}, odd: map[*endpoint.Endpoint]bool{}}
	for _, f := range t.frontends {
		t.touched = append(t.touched, placeOf(f))
	}
	t.nodes = nodes(s)
}

// nodes are the addresses of this host at which its ports are.
func nodes(s *State) []netip.Addr {
	var list []netip.Addr
	for _, a := range s.Nodes {
		list = append(list, a.Unmap())
	}
	if slices.ContainsFunc(s.Pods, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		list = append(list, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// changeTakers takes away those that are gone, and returns those that came.
func (t *Table) changeTakers(old *State) ([]*Service, []*Publication) {
	gone, come := store.Changes(old.Services, t.state.Services, func(a, b *Service) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Network, b.Network), strings.Compare(a.Name, b.Name))
	})
	for _, s := range gone {
		if k := t.services[s]; k != nil {
			delete(t.services, s)
			t.drop(k)
		}
	}
	unpublished, published := store.Changes(old.Published, t.state.Published, func(a, b *Publication) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Host, b.Host),
			strings.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	for _, p := range unpublished {
		if k := t.published[p]; k != nil {
			delete(t.published, p)
			t.drop(k)
		}
	}
	return come, published
}

func (t *Table) drop(k *taker) {
	t.depart(k)
	t.withdraw(k)
	t.trouble(k, nil)
}

// addTakers is for when all endpoints are in their places.
func (t *Table) addTakers(services []*Service, published []*Publication) {
	for _, s := range services {
		if s.Tenant == t.state.Tenant && !s.Headless && s.External == "" {
			k := &taker{service: s}
			t.services[s] = k
			t.standService(k)
			t.dirty = append(t.dirty, k)
		}
	}
	var fresh []*taker
	for _, p := range published {
		if p.Tenant == t.state.Tenant && p.Host == t.state.Host {
			k := &taker{published: p}
			t.published[p] = k
			fresh = append(fresh, k)
		}
	}
	t.standPublications(fresh)
	t.dirty = append(t.dirty, fresh...)
}

func (t *Table) remove(e *endpoint.Endpoint) {
	if e.Tenant != t.state.Tenant {
		return
	}
	t.exit(e)
	t.touch(e)
	if e.Host == t.state.Host {
		for _, a := range e.Addresses {
			if t.own[a]--; t.own[a] == 0 {
				delete(t.own, a)
				t.localOld = true
			}
		}
	}
	if t.odd[e] {
		delete(t.odd, e)
		t.problemsOld = true
	}
}

func (t *Table) add(e *endpoint.Endpoint) {
	if e.Tenant != t.state.Tenant {
		return
	}
	t.enter(e)
	t.touch(e)
	if e.Host == t.state.Host {
		for _, a := range e.Addresses {
			if t.own[a]++; t.own[a] == 1 {
				t.localOld = true
			}
		}
	}
	if _, ok := weightOf(e); !ok {
		t.odd[e] = true
		t.problemsOld = true
	}
}

// touchHosts touches the endpoints of hosts that died or came back.
func (t *Table) touchHosts(was map[string]string) {
	turned := map[string]bool{}
	for _, m := range [][2]map[string]string{{was, t.state.Dead}, {t.state.Dead, was}} {
		for host := range m[0] {
			if _, both := m[1][host]; !both && host != t.state.Host {
				turned[host] = true
			}
		}
	}
	if len(turned) == 0 {
		return
	}
	for _, e := range t.state.Endpoints {
		if turned[e.Host] && e.Tenant == t.state.Tenant {
			t.touch(e)
		}
	}
}
