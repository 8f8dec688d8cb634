package server

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// Wire is a service as clients see it. service.AutoPort becomes NodePortAuto.
func Wire(s *service.Service) api.Service {
	w := api.Service{Tenant: s.Tenant, Network: s.Network, Name: s.Name, Selector: s.Selector, Endpoints: s.Endpoints, Headless: s.Headless,
		External: s.External, VirtualIPs: s.VirtualIPs, Affinity: s.Affinity, Local: s.Local, Balance: s.Balance, Version: version(s)}
	for _, p := range s.Ports {
		port := api.Port{Name: p.Name, Port: p.Port, Target: p.Target, TargetName: p.TargetName, Protocol: p.Protocol, NodePort: p.NodePort}
		if p.NodePort == service.AutoPort {
			port.NodePort, port.NodePortAuto = 0, true
		}
		w.Ports = append(w.Ports, port)
	}
	if h := s.Health; h != nil {
		w.Health = &api.Health{Type: h.Type, Path: h.Path, Interval: h.Interval, Timeout: h.Timeout, Threshold: h.Threshold}
	}
	return w
}

// Domain is the service that a client asks for, not validated yet: Wire the
// other way round. What is usual is left out, addresses are sorted.
func Domain(w api.Service) *service.Service {
	s := &service.Service{Tenant: w.Tenant, Network: w.Network, Name: w.Name, Selector: w.Selector, Headless: w.Headless,
		External: strings.ToLower(strings.TrimSuffix(w.External, ".")), Affinity: w.Affinity, Local: w.Local, Balance: w.Balance,
		Endpoints: addressSet(w.Endpoints), VirtualIPs: addressSet(w.VirtualIPs)}
	for _, p := range w.Ports {
		port := service.Port{Name: p.Name, Port: p.Port, Target: p.Target, TargetName: p.TargetName, Protocol: cmp.Or(p.Protocol, "tcp"), NodePort: p.NodePort}
		if p.Target == p.Port {
			port.Target = 0
		}
		if p.NodePortAuto && p.NodePort == 0 {
			port.NodePort = service.AutoPort
		}
		s.Ports = append(s.Ports, port)
	}
	if s.Local == service.LocalCluster {
		s.Local = ""
	}
	if s.Balance == service.BalanceRandom {
		s.Balance = ""
	}
	if h := w.Health; h != nil {
		s.Health = &service.Health{Type: h.Type, Path: h.Path, Interval: h.Interval, Timeout: h.Timeout, Threshold: h.Threshold}
	}
	return s
}

func addressSet(list []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, a.Unmap())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// version is another one for every other service.
func version(s *service.Service) string {
	value, err := s.Marshal()
	if err != nil {
		return ""
	}
	h := fnv.New64a()
	_, _ = h.Write(value) // never an error
	return strconv.FormatUint(h.Sum64(), 16)
}

// keep gives want what it leaves to the daemon and have, the service until now,
// has already: clients may hold on to it. With anew it gets other addresses.
func keep(want, have *service.Service, anew bool) {
	if !anew && !want.Headless && want.External == "" {
		for _, a := range have.VirtualIPs {
			if !slices.ContainsFunc(want.VirtualIPs, func(w netip.Addr) bool { return w.Is4() == a.Is4() }) {
				want.VirtualIPs = append(want.VirtualIPs, a)
			}
		}
		slices.SortFunc(want.VirtualIPs, netip.Addr.Compare)
	}
	for i, p := range want.Ports {
		for _, h := range have.Ports {
			if p.NodePort == service.AutoPort && h.Port == p.Port && h.Protocol == p.Protocol && h.NodePort != 0 {
				want.Ports[i].NodePort = h.NodePort
			}
		}
	}
}

// difference is what one field would be instead of what it is, as people
// read it; "": none.
type difference struct{ field, have, want string }

func (d difference) String() string {
	return fmt.Sprintf("%s: %s instead of %s", d.field, cmp.Or(d.have, "none"), cmp.Or(d.want, "none"))
}

// differences are those of two services. The order of ports and addresses makes
// none.
func differences(have, want api.Service) []difference {
	a, b := fields(have), fields(want)
	var out []difference
	for i, d := range a {
		if d.have != b[i].have {
			out = append(out, difference{d.field, d.have, b[i].have})
		}
	}
	return out
}

// fields of a service in the words of the command line.
func fields(s api.Service) []difference {
	var nodePorts []string
	for _, p := range s.Ports {
		if p.NodePort != 0 || p.NodePortAuto {
			nodePorts = append(nodePorts, p.NodePortText())
		}
	}
	slices.Sort(nodePorts)
	return []difference{
		{"ports", sorted(s.Ports), ""},
		{"selector", api.Labels(s.Selector), ""},
		{"endpoints", sorted(s.Endpoints), ""},
		{"virtual ip", sorted(s.VirtualIPs), ""},
		{"node ports", strings.Join(nodePorts, " "), ""},
		{"headless", fmt.Sprint(s.Headless), ""},
		{"affinity", s.AffinityText(), ""},
		{"local", s.Local, ""},
		{"balance", s.Balance, ""},
		{"external", s.External, ""},
		{"health", s.Health.String(), ""},
	}
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
