package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
)

// Candidate is an address that connections to a service may go to.
type Candidate struct {
	Addr     netip.Addr         // invalid: the endpoint has none of use
	Endpoint *endpoint.Endpoint // nil: the address is listed
	// Ready: some port of the service leads to it, but for Service.Local.
	Ready bool
	// Why it is not ready, or which ports do not lead to it; stable text.
	Why string
}

// Behind are the candidates of s as a Table sees them: the listed addresses,
// then the endpoints by key.
func Behind(s *Service, st State) []Candidate {
	want := st.families(s)
	var list []Candidate
	for _, a := range s.Endpoints {
		c := Candidate{Addr: a}
		if c.Ready, c.Why = s.ports(nil); !slices.Contains(want, familyOf(a)) {
			c.Ready, c.Why = false, "the service has no "+familyOf(a).String()+" address"
		} else if within(st.Networks, a) {
			c.Ready, c.Why = false, st.forbidden(netip.AddrPortFrom(a, 0), "")
		}
		list = append(list, c)
	}
	for _, e := range st.Endpoints {
		if !s.Selects(e) {
			continue
		}
		c := Candidate{Endpoint: e}
		if c.Ready, c.Why = s.ports(e); st.leftOut(e, s) != "" {
			c.Ready, c.Why = false, st.leftOut(e, s)
		}
		n := len(list)
		for _, f := range want {
			if c.Addr = f.of(e.Addresses); c.Addr.IsValid() {
				list = append(list, c)
			}
		}
		if len(list) == n {
			list = append(list, Candidate{Endpoint: e, Why: noAddress(want)})
		}
	}
	return list
}

// families are those of the addresses that s is reached at; both, if clients
// reach its endpoints themselves.
func (st *State) families(s *Service) (list []family) {
	at := s.VirtualIPs
	if slices.ContainsFunc(s.Ports, func(p Port) bool { return p.NodePort != 0 }) {
		at = slices.Concat(at, nodes(st))
	}
	for _, f := range []family{ipv4, ipv6} {
		if len(at) == 0 || f.of(at).IsValid() {
			list = append(list, f)
		}
	}
	return list
}

func noAddress(want []family) string {
	if len(want) > 1 {
		return "it has no address"
	}
	return "it has no " + want[0].String() + " address"
}

// ports tells whether any port of s leads to e, and why some do not; nil is a
// listed address.
func (s *Service) ports(e *endpoint.Endpoint) (ready bool, why string) {
	var missing []string
	for i := range s.Ports {
		p := &s.Ports[i]
		if e == nil {
			if p.TargetName != "" {
				missing = append(missing, fmt.Sprintf("port %d/%s: listed addresses have no port named %s", p.Port, p.Protocol, p.TargetName))
			}
		} else if _, ok := p.On(e); !ok {
			state := "is missing"
			if v, there := e.Labels[LabelPort+p.TargetName]; there {
				state = "is " + quote(v) + ", which is no port"
			}
			missing = append(missing, fmt.Sprintf("port %d/%s: its label %s%s %s", p.Port, p.Protocol, LabelPort, p.TargetName, state))
		}
	}
	return len(s.Ports) == 0 || len(missing) < len(s.Ports), strings.Join(missing, "; ")
}
