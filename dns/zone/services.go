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
	sets    []Set                      // A and AAAA, or CNAME alone
	alias   []byte                     // of which name, in wire format; nil: of none
	ports   atomic.Pointer[[]portNode] // nil: not asked for
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
		w.z.addrs = leave(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, w.hashOfAddr)
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
			w.z.addrs = join(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, w.alone(s), w.hashOfAddr)
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
	if v.of.External != "" {
		if wire, ok := Wire(v.of.External); ok {
			v.alias, v.sets = wire, []Set{{Type: typeCNAME, Data: [][]byte{wire}}}
		}
		return
	}
	var l addresses
	if !v.direct() {
		l.addAll(v.of.VirtualIPs, false)
	} else {
		for _, e := range v.members {
			if !st.outOf(v.of, e) {
				l.addAll(e.Addresses, st.here(e))
			}
		}
		l.addAll(v.of.Endpoints, false)
	}
	v.sets = l.sets()
}

// direct tells whether the name of v stands for the endpoints themselves.
func (v *serviceNode) direct() bool { return v.of.Headless || len(v.of.VirtualIPs) == 0 }
