package server

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// wire is a service as clients see it.
func wire(s *service.Service) api.Service {
	w := api.Service{Tenant: s.Tenant, Network: s.Network, Name: s.Name, Selector: s.Selector,
		Endpoints: s.Endpoints, Headless: s.Headless, VirtualIPs: s.VirtualIPs}
	for _, p := range s.Ports {
		w.Ports = append(w.Ports, api.Port(p))
	}
	return w
}

// domain is the service that a client asks for, not validated yet. Virtual
// addresses are not the client's to choose.
func domain(k key, w api.Service) *service.Service {
	s := &service.Service{Tenant: k.tenant, Network: k.network, Name: k.name, Selector: w.Selector, Headless: w.Headless}
	for _, p := range w.Ports {
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if p.Target == p.Port {
			p.Target = 0
		}
		s.Ports = append(s.Ports, service.Port(p))
	}
	for _, a := range w.Endpoints {
		s.Endpoints = append(s.Endpoints, a.Unmap())
	}
	slices.SortFunc(s.Endpoints, netip.Addr.Compare)
	s.Endpoints = slices.Compact(s.Endpoints)
	return s
}

// differences says in what a service would change, for people; empty: in
// nothing. The order of ports and endpoints makes none.
func differences(have, want api.Service) []string {
	var out []string
	note := func(what, have, want string) {
		if have != want {
			out = append(out, fmt.Sprintf("%s: %s instead of %s", what, or(have, "none"), or(want, "none")))
		}
	}
	note("ports", sorted(have.Ports), sorted(want.Ports))
	note("selector", api.Labels(have.Selector), api.Labels(want.Selector))
	note("endpoints", sorted(have.Endpoints), sorted(want.Endpoints))
	note("headless", fmt.Sprint(have.Headless), fmt.Sprint(want.Headless))
	return out
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func sorted[T fmt.Stringer](xs []T) string {
	out := strings.Fields(texts(xs))
	slices.Sort(out)
	return strings.Join(out, " ")
}

// isName: one or more labels, in lower case.
func isName(name string) bool {
	for l := range strings.SplitSeq(name, ".") {
		if low, ok := endpoint.Label(l); !ok || low != l {
			return false
		}
	}
	return len(name) <= longestName
}

// longestName in front of network and domain: RFC 1035 allows 253 characters.
const longestName = 128

// nameKey is the key of a request about an added name. A full name is
// understood as well.
func (n *namesAPI) nameKey(r *http.Request) (key, error) {
	k, err := pathKey(r)
	if err != nil {
		return k, err
	}
	typed := k.name
	k.name = ""
	suffix := k.fqdn(n.domain) // with a dot in front
	name := strings.TrimSuffix(strings.TrimSuffix(typed, "."), suffix)
	switch _, err := netip.ParseAddr(typed); {
	case err == nil:
		return k, api.Invalid("name", typed, "is an address: the name comes first, then its addresses")
	case strings.HasSuffix("."+name, "."+n.domain):
		return k, api.Invalid("name", typed, "added names end with "+suffix+", which is left out: give db for db"+suffix)
	case !isName(name):
		return k, api.Invalid("name", typed, "use labels of letters, digits and dashes, at most 63 each and 128 in all, such as db or www.shop")
	}
	k.name = name
	return k, nil
}
