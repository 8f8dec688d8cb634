// Package health looks whether this host's own endpoints of services work.
package health

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// Check says how to look at one endpoint of one service.
type Check struct {
	Subject
	// Addrs are the endpoint's, one per family. Each of Ports must answer at one
	// of them: a server may listen on one family only.
	Addrs []netip.Addr
	Ports []uint16
	// Path is asked for by HTTP GET, printable ASCII; "": a connection is enough.
	Path string
	// Interval is between looks, Timeout how long one waits, Threshold after how
	// many results in a row that say otherwise the verdict changes.
	Interval, Timeout time.Duration
	Threshold         int
	// Former is the verdict that counts until there is another: that of the
	// endpoint's published record, so that a restart of the daemon changes
	// nothing, or NotYet.
	Former string
}

// Subject is an endpoint, by its key below an empty prefix, of a service of its
// network, by name.
type Subject struct{ Endpoint, Service string }

func (s Subject) compare(o Subject) int {
	return cmp.Or(strings.Compare(s.Endpoint, o.Endpoint), strings.Compare(s.Service, o.Service))
}

// NotYet is the verdict on an endpoint that is new: it gets no connections
// before it answered once.
const NotYet = "no answer yet"

// Verdicts say why a subject must not get connections, in one line of at most
// 200 bytes of our own words; "": it works. They are immutable.
type Verdicts map[Subject]string

// Unhealthy is what records of endpoints are to say (endpoint.Endpoint.Unhealthy)
// by key below an empty prefix: the verdict on each check, its Former where
// there is none.
func (v Verdicts) Unhealthy(checks []Check) map[string]map[string]string {
	out := map[string]map[string]string{}
	for i := range checks {
		c := &checks[i]
		why, ok := v[c.Subject]
		if !ok {
			why = c.Former
		}
		if why == "" {
			continue
		}
		if out[c.Endpoint] == nil {
			out[c.Endpoint] = map[string]string{}
		}
		out[c.Endpoint][c.Service] = why
	}
	return out
}

// What is usual where a service.Health has 0.
const (
	usualInterval  = 5 * time.Second
	usualTimeout   = 2 * time.Second
	usualThreshold = 2
)

// Checks are those that services ask for of this host's own endpoints, sorted.
// published are the endpoints as the store has them, of this host at least,
// sorted by key; an endpoint without a record there, or with one of an earlier
// life of it or of this host, is new. One whose record says nothing of a service
// (it is younger, or was not looked at before) counts as healthy to begin with.
//
// It costs little for each service, whatever the number of endpoints.
func Checks(services []*service.Service, own, published []*endpoint.Endpoint) []Check {
	type label struct{ key, value string }
	labelled := map[label][]*endpoint.Endpoint{}
	for _, e := range own {
		for k, v := range e.Labels {
			labelled[label{k, v}] = append(labelled[label{k, v}], e)
		}
	}
	var out []Check
	for _, s := range services {
		if s.Health == nil {
			continue
		}
		for k, v := range s.Selector { // any of the labels that it must have
			for _, e := range labelled[label{k, v}] {
				if !s.Selects(e) {
					continue
				}
				if c := checkOf(s, e); len(c.Addrs) > 0 && len(c.Ports) > 0 {
					c.Former = former(c.Subject, e, published)
					out = append(out, c)
				}
			}
			break
		}
	}
	slices.SortFunc(out, func(a, b Check) int { return a.compare(b.Subject) })
	return out
}

func checkOf(s *service.Service, e *endpoint.Endpoint) Check {
	h := s.Health
	c := Check{
		Subject:   Subject{e.Key(""), s.Name},
		Interval:  cmp.Or(time.Duration(h.Interval)*time.Second, usualInterval),
		Timeout:   cmp.Or(time.Duration(h.Timeout)*time.Second, usualTimeout),
		Threshold: cmp.Or(h.Threshold, usualThreshold),
	}
	if h.Type == service.HealthHTTP {
		c.Path = h.Path
	}
	for _, v4 := range []bool{true, false} {
		ofFamily := func(a netip.Addr) bool { return a.Is4() == v4 }
		i := slices.IndexFunc(e.Addresses, ofFamily)
		if i >= 0 && (len(s.VirtualIPs) == 0 || slices.ContainsFunc(s.VirtualIPs, ofFamily)) {
			c.Addrs = append(c.Addrs, e.Addresses[i])
		}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		n, ok := p.On(e)
		if p.Protocol != "tcp" || !ok || slices.Contains(c.Ports, n) {
			continue
		}
		if c.Ports = append(c.Ports, n); c.Path != "" {
			break
		}
	}
	return c
}

// former is what e's record says of a service.
func former(s Subject, e *endpoint.Endpoint, published []*endpoint.Endpoint) string {
	i, ok := slices.BinarySearchFunc(published, s.Endpoint, func(e *endpoint.Endpoint, key string) int { return strings.Compare(e.Key(""), key) })
	if !ok {
		return NotYet
	}
	p := published[i]
	if p.Identity != e.Identity || p.MAC != e.MAC || !slices.Equal(p.Addresses, e.Addresses) {
		return NotYet
	}
	return p.Unhealthy[s.Service]
}
