package zone

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// serviceNode is what the name of a service has. It is immutable once its Zone
// is built, but for what is made when it is asked for.
type serviceNode struct {
	of *service.Service
	// members are the endpoints that it selects, also those that must not be
	// answers.
	members []*endpoint.Endpoint
	sets    []Set
	ports   atomic.Pointer[[]portNode] // nil: not asked for
}

// portNode is what the name of a named port has.
type portNode struct {
	name, proto string
	sets, extra []Set
}

// selectors find the services that select an endpoint: each stands at one
// label of its selector.
type selectors map[labelOf][]*service.Service

type labelOf struct{ network, key, value string }

// each calls f with every service that selects e.
func (t selectors) each(e *endpoint.Endpoint, f func(*service.Service)) {
	if len(t) == 0 {
		return
	}
	for k, v := range e.Labels {
		for _, s := range t[labelOf{e.Network, k, v}] {
			if s.Selects(e) {
				f(s)
			}
		}
	}
}

// add puts s at the label that the fewest others stand at.
func (t selectors) add(s *service.Service) {
	var at labelOf
	least := -1
	for k, v := range s.Selector {
		l := labelOf{s.Network, k, v}
		if n := len(t[l]); least < 0 || n < least {
			at, least = l, n
		}
	}
	if least >= 0 {
		t[at] = append(t[at], s)
	}
}

func (t selectors) remove(s *service.Service) {
	for k, v := range s.Selector {
		l := labelOf{s.Network, k, v}
		if i := slices.Index(t[l], s); i >= 0 {
			if t[l] = slices.Delete(t[l], i, i+1); len(t[l]) == 0 {
				delete(t, l)
			}
			return
		}
	}
}

// servicesOf returns those of a network, for this build to change.
func (w *work) servicesOf(network string) *services {
	h := w.hashOf(network)
	sv, ok := w.z.services.get(h, func(k string) bool { return k == network })
	if ok && sv.made == w.edit {
		return sv
	}
	c := &services{}
	if ok {
		*c = *sv
	}
	c.made = w.edit
	w.z.services = w.z.services.put(w.edit, h, network, c, w.hashOf)
	return c
}

// service returns the node of s, for this build to change.
func (w *work) service(s *service.Service) *serviceNode {
	if v := w.services[s]; v != nil {
		return v
	}
	sv, h := w.servicesOf(s.Network), w.hashOf(s.Name)
	v := &serviceNode{of: s}
	if old, ok := sv.names.get(h, func(k string) bool { return k == s.Name }); ok && old.of == s {
		v.members = slices.Clone(old.members)
	}
	sv.names = sv.names.put(w.edit, h, s.Name, v, w.hashOf)
	w.services[s] = v
	return v
}

func (w *work) removeService(s *service.Service) {
	if !w.ours(s.Tenant) {
		return
	}
	sv := w.servicesOf(s.Network)
	if sv.names = sv.names.delete(w.edit, w.hashOf(s.Name), s.Name); sv.names.empty() {
		w.z.services = w.z.services.delete(w.edit, w.hashOf(s.Network), s.Network)
	}
	w.picks.remove(s)
	for a := range serviceAddresses(s) {
		w.z.addrs = leave(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, a, w.hashOfAddr)
	}
}

// addServices adds them when all endpoints are in their places.
func (w *work) addServices(list []*service.Service) {
	picks := selectors{}
	var few []*service.Service // of those with a selector
	for _, s := range list {
		if !w.ours(s.Tenant) {
			continue
		}
		w.service(s)
		if len(s.Selector) > 0 {
			few = append(few, s)
		}
		picks.add(s)
		w.picks.add(s)
		for a := range serviceAddresses(s) {
			w.z.addrs = join(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, w.alone(s, a), a, w.hashOfAddr)
		}
	}
	if len(few) == 0 {
		return
	}
	const cheap = 8 // looking at each is faster than at all labels
	for _, e := range w.st.Endpoints {
		if e.Tenant != w.st.Tenant {
			continue
		}
		join := func(s *service.Service) {
			v := w.service(s)
			v.members = append(v.members, e)
		}
		if len(few) > cheap {
			picks.each(e, join)
			continue
		}
		for _, s := range few {
			if s.Selects(e) {
				join(s)
			}
		}
	}
}

// serviceAddresses are those that are in s itself, each once.
func serviceAddresses(s *service.Service) map[netip.Addr]struct{} {
	all := make(map[netip.Addr]struct{}, len(s.VirtualIPs)+len(s.Endpoints))
	for _, a := range s.VirtualIPs {
		all[a] = struct{}{}
	}
	for _, a := range s.Endpoints {
		all[a] = struct{}{}
	}
	return all
}

func (v *serviceNode) finish(st *State) {
	var l addresses
	if len(v.of.VirtualIPs) > 0 && !v.of.Headless {
		for _, a := range v.of.VirtualIPs {
			l = append(l, address{a, false})
		}
	} else {
		for _, e := range v.members {
			l.add(st, e, netip.Addr{})
		}
		for _, a := range v.of.Endpoints {
			l = append(l, address{a, false})
		}
	}
	v.sets = l.sets()
}

// direct tells whether the name of v stands for the endpoints themselves.
func (v *serviceNode) direct() bool { return v.of.Headless || len(v.of.VirtualIPs) == 0 }

// port finds the named port that _name._proto in front of the service's name
// stands for.
func (z *Zone) port(v *serviceNode, name, proto []byte) *portNode {
	if len(name) < 2 || name[0] != '_' || len(proto) < 2 || proto[0] != '_' {
		return nil
	}
	is := func(p service.Port) bool { return p.Name == string(name[1:]) && p.Protocol == string(proto[1:]) }
	if !slices.ContainsFunc(v.of.Ports, is) {
		return nil
	}
	ports := v.ports.Load()
	if ports == nil {
		made := z.makePorts(v) // by several at once perhaps, but all the same
		ports = &made
		v.ports.Store(ports)
	}
	for i := range *ports {
		if p := &(*ports)[i]; p.name == string(name[1:]) && p.proto == string(proto[1:]) {
			return p
		}
	}
	return nil
}

// makePorts makes the records of all named ports.
func (z *Zone) makePorts(v *serviceNode) []portNode {
	targets := z.targets(v)
	var ports []portNode
	for _, p := range v.of.Ports {
		if p.Name == "" {
			continue
		}
		number := p.Port
		if v.direct() && p.Target != 0 {
			number = p.Target
		}
		n := portNode{name: p.Name, proto: p.Protocol}
		set := Set{Type: typeSRV}
		for _, t := range targets {
			// Priority, weight, port, target: RFC 2782.
			data := append([]byte{0, 0, 0, 100, byte(number >> 8), byte(number)}, t.name...)
			set.Data = append(set.Data, data)
			if t.here {
				set.Local++
			}
			n.extra = append(n.extra, t.sets...)
		}
		if len(set.Data) > 0 {
			n.sets = []Set{set}
		}
		ports = append(ports, n)
	}
	return ports
}

type target struct {
	name []byte
	here bool
	sets []Set // of name
}

// targets are what a service's ports lead to, this host's first.
func (z *Zone) targets(v *serviceNode) []target {
	owner := z.serviceName(v.of)
	if owner == nil {
		return nil
	}
	if !v.direct() {
		sets := slices.Clone(v.sets)
		for i := range sets {
			sets[i].Owner = owner
		}
		return []target{{owner, false, sets}}
	}
	var targets []target
	for _, here := range []bool{true, false} {
		for _, set := range v.sets {
			data := set.Data[set.Local:]
			if here {
				data = set.Data[:set.Local]
			}
			for _, d := range data {
				a, _ := netip.AddrFromSlice(d)
				if name := compose(owner, dashed(a)); name != nil {
					targets = append(targets, target{name, here, []Set{{Owner: name, Type: set.Type, Data: [][]byte{d}}}})
				}
			}
		}
	}
	return targets
}

// serviceName is the name of a service.
func (z *Zone) serviceName(s *service.Service) []byte {
	return compose(z.base, s.Name, s.Network, "svc")
}
