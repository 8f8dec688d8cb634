package zone

import (
	"cmp"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
)

// Builder makes a Zone from each State. Its zero value is ready; it belongs to
// one goroutine.
type Builder struct {
	// Serial of the first zone's SOA; each zone that differs from the former
	// has the next. 0: 1. With the seconds of a clock it grows over restarts.
	Serial uint32

	last  *Zone
	picks selectors
}

// Build makes the zone of s, of the parts of the former one that did not
// change. If nothing did, it is the former one. s and what it points to belong
// to the zone from then on and must not be written to.
func (b *Builder) Build(s State) *Zone {
	z, _ := b.build(s)
	return z
}

// build also returns what it did.
func (b *Builder) build(s State) (*Zone, *work) {
	old := b.last
	if old != nil && !old.state.alike(&s) {
		old = nil
	}
	if old != nil {
		if w := b.change(old, s); w != nil {
			return b.done(old, w)
		}
	}
	// From nothing: also cheaper if much of it is other than before.
	b.picks = selectors{}
	empty := &Zone{state: State{Domain: s.Domain, Tenant: s.Tenant, Local: s.Local, PreferLocal: s.PreferLocal}, seed: maphash.MakeSeed()}
	w := b.change(empty, s)
	if b.last == nil {
		w.z.serial = cmp.Or(b.Serial, 1)
	} else {
		w.z.serial = b.last.serial + 1
	}
	w.z.describe()
	b.last = w.z
	return w.z, w
}

// done decides what becomes of a zone that was made from the one before.
func (b *Builder) done(old *Zone, w *work) (*Zone, *work) {
	s, o := &w.z.state, &old.state
	w.z.serial = old.serial
	switch {
	case w.changed || !slices.Equal(s.Networks, o.Networks) || s.TTL != o.TTL || s.Partial != o.Partial || !slices.Equal(s.Nameservers, o.Nameservers):
		w.z.serial++
		w.z.describe()
	case !w.moved && maps.Equal(s.Dead, o.Dead):
		return old, w
	}
	b.last = w.z
	return w.z, w
}

// alike tells whether the names that s and o make of their values have the
// same form.
func (s *State) alike(o *State) bool {
	return s.Domain == o.Domain && s.Tenant == o.Tenant && s.PreferLocal == o.PreferLocal && (s.Local == o.Local || !s.PreferLocal)
}

// change makes the zone of s from old. It is nil if that is not worth it.
func (b *Builder) change(old *Zone, s State) *work {
	var touched func(*endpoint.Endpoint) bool
	if dead := toggled(old.state.Dead, s.Dead); dead != nil {
		touched = func(e *endpoint.Endpoint) bool { return dead[e.Host] }
	}
	endpoints := diff(old.state.Endpoints, s.Endpoints,
		func(a, b *endpoint.Endpoint) int {
			return compareKeys(a.Tenant, a.Network, a.ID, b.Tenant, b.Network, b.ID)
		},
		touched)
	if n := len(old.state.Endpoints); n > 1000 && len(endpoints.removed) > n/8 {
		return nil
	}
	names := diff(old.state.Names, s.Names,
		func(a, b *Name) int { return compareKeys(a.Tenant, a.Network, a.Name, b.Tenant, b.Network, b.Name) }, nil)
	svcs := diff(old.state.Services, s.Services,
		func(a, b *service.Service) int {
			return compareKeys(a.Tenant, a.Network, a.Name, b.Tenant, b.Network, b.Name)
		}, nil)

	z := *old
	z.state = s
	w := newWork(&z, b.picks)
	w.moved = !endpoints.none() || !names.none() || !svcs.none()
	for _, v := range svcs.removed {
		w.removeService(v)
	}
	for _, e := range endpoints.removed {
		w.removeEndpoint(e)
	}
	for _, n := range names.removed {
		w.removeName(n)
	}
	for _, e := range endpoints.touched {
		w.touchEndpoint(e)
	}
	for _, e := range endpoints.added {
		w.addEndpoint(e)
	}
	for _, n := range names.added {
		w.addName(n)
	}
	w.addServices(svcs.added)
	b.picks = w.picks
	w.finish()
	return w
}

// changes are what is other than before.
type changes[T any] struct {
	removed, added []*T
	touched        []*T // the same, but what follows from it is not
}

func (c changes[T]) none() bool { return len(c.removed)+len(c.added)+len(c.touched) == 0 }

// diff is store.Changes, with those that stayed of which touched says so.
func diff[T any](old, list []*T, order func(a, b *T) int, touched func(*T) bool) (c changes[T]) {
	c.removed, c.added = store.Changes(old, list, order)
	if touched == nil {
		return c
	}
	added := c.added
	for _, e := range list {
		if len(added) > 0 && added[0] == e {
			added = added[1:]
		} else if touched(e) {
			c.touched = append(c.touched, e)
		}
	}
	return c
}

// compareKeys orders the last three parts of two keys as the keys are.
func compareKeys(a1, a2, a3, b1, b2, b3 string) int {
	return cmp.Or(comparePart(a1, b1), comparePart(a2, b2), strings.Compare(a3, b3))
}

// comparePart orders a and b as if a slash followed each.
func comparePart(a, b string) int {
	n := min(len(a), len(b))
	if c := strings.Compare(a[:n], b[:n]); c != 0 || len(a) == len(b) {
		return c
	}
	if len(a) > n {
		return cmp.Compare(a[n], '/')
	}
	return cmp.Compare('/', b[n])
}

// toggled are the hosts that died or came back.
func toggled(old, dead map[string]string) map[string]bool {
	var hosts map[string]bool
	note := func(a, b map[string]string) {
		for h := range a {
			if _, ok := b[h]; !ok {
				if hosts == nil {
					hosts = map[string]bool{}
				}
				hosts[h] = true
			}
		}
	}
	note(old, dead)
	note(dead, old)
	return hosts
}

// describe makes what the zone says of itself.
func (z *Zone) describe() {
	const negative = 5 // seconds: a new name must not be hidden for longer
	s := &z.state
	z.ttl = uint32(min(max(s.TTL.Seconds(), 0), 1<<31-1))
	z.negative = min(z.ttl, negative)
	root := []byte{0}
	z.labels = strings.Count(s.Domain, ".") + 1
	if z.apex = compose(root, strings.Split(s.Domain, ".")...); z.apex == nil {
		z.apex, z.labels = root, maxLabels // no domain: nothing is in it
	}
	z.base, z.tenant = z.apex, ""
	if s.Tenant != endpoint.DefaultTenant {
		z.tenant = s.Tenant
		if z.base = compose(z.apex, s.Tenant); z.base == nil {
			z.base = z.apex
		}
	}
	z.nets = networks(s.Networks)

	server := compose(z.apex, "ns", "dns")
	var list addresses
	for _, a := range s.Nameservers {
		list = append(list, address{a, false})
	}
	z.server = list.sets()
	z.serverExtra = slices.Clone(z.server)
	for i := range z.serverExtra {
		z.serverExtra[i].Owner = server
	}
	z.soa = soa(server, compose(z.apex, "hostmaster"), z.serial, z.negative)
	z.top = []Set{{Type: typeSOA, Data: [][]byte{z.soa}}, {Type: typeNS, Data: [][]byte{server}}}
	// DNS-Based Service Discovery of Kubernetes, section 2.2.
	z.version = []Set{{Type: typeTXT, Data: [][]byte{[]byte("\x051.1.0")}}}
	z.any = Set{Type: typeHINFO, Data: [][]byte{[]byte("\x07RFC8482\x00")}}
}

// key is how addresses are known in a trie.
func key(a netip.Addr) [16]byte { return a.As16() }
