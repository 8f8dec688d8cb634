package zone

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/service"
)

func TestAnExternalServiceIsAnAlias(t *testing.T) {
	s := example()
	for i := range mostAliases + 2 { // chain-1 leads to chain-0 leads to web, and so on
		target := fmt.Sprintf("chain-%d.default.svc.cluster.local", i-1)
		if i == 0 {
			target = "web-1.default.cluster.local"
		}
		s.Services = append(s.Services, external(fmt.Sprintf("chain-%d", i), target))
	}
	z := new(Builder).Build(s)
	headless := "headless.default.svc.cluster.local. A 10.1.19.3 10.1.20.3"
	for q, want := range map[string]string{
		"out.default.svc.cluster.local A":              "www.example.com. and www.example.com.",
		"out.default.svc.cluster.local AAAA":           "www.example.com. and www.example.com.",
		"out.default.svc.cluster.local MX":             "www.example.com. and www.example.com.",
		"out.default.svc.cluster.local CNAME":          "www.example.com.",
		"out.default.svc.cluster.local ANY":            "www.example.com.",
		"x.out.default.svc.cluster.local A":            nx,
		"_http._tcp.out.default.svc.cluster.local SRV": nx,
		"in.default.svc.cluster.local A":               "headless.default.svc.cluster.local.; " + headless,
		"in.default.svc.cluster.local AAAA":            "headless.default.svc.cluster.local.; headless.default.svc.cluster.local. AAAA fd00:1:19::3",
		"in.default.svc.cluster.local MX":              "headless.default.svc.cluster.local. " + none,
		"in.default.svc.cluster.local CNAME":           "headless.default.svc.cluster.local.",
		"in.default.svc.cluster.local ANY":             "headless.default.svc.cluster.local.",
		"twice.default.svc.cluster.local A":            headless + "; in.default.svc.cluster.local.; in.default.svc.cluster.local. CNAME headless.default.svc.cluster.local.",
		"twice.default.svc.cluster.local CNAME":        "in.default.svc.cluster.local.",
		"thrice-out.default.svc.cluster.local A":       "out.default.svc.cluster.local.; out.default.svc.cluster.local. CNAME www.example.com. and www.example.com.",
		"vanished.default.svc.cluster.local A":         "nope.default.cluster.local. " + nx,
		"vanished.default.svc.cluster.local ANY":       "nope.default.cluster.local.",
		"without.default.svc.cluster.local A":          "six.default.cluster.local. " + none,
		"short.default.svc.cluster.local A":            "headless.default.svc. NXDOMAIN svc.",
		"self.default.svc.cluster.local A":             "unknown",
		"self.default.svc.cluster.local CNAME":         "self.default.svc.cluster.local.",
		"ping.default.svc.cluster.local AAAA":          "unknown",
		"chain-7.default.svc.cluster.local MX":         chainTo(7) + " " + none,
		"chain-8.default.svc.cluster.local A":          "unknown",
		"reverse.default.svc.cluster.local PTR":        "3.20.1.10.in-addr.arpa.; 3.20.1.10.in-addr.arpa. PTR web.default.cluster.local.",
		"reverse.default.svc.cluster.local A":          "3.20.1.10.in-addr.arpa. nothing 1.10.in-addr.arpa.",
		"port.default.svc.cluster.local A":             "_http._tcp.headless.default.svc.cluster.local. " + none,
		"10-1-19-3.in.default.svc.cluster.local A":     nx,
		"10-1-19-3.default.pod.cluster.local A":        "10.1.19.3",
		"out.default.cluster.local A":                  nx,
		"in.default.svc.cluster.local. TYPE65":         "headless.default.svc.cluster.local. " + none,
		"out.front.svc.cluster.local A":                nx,
		"default.svc.cluster.local A":                  none,
		"OUT.default.SVC.cluster.local A":              "www.example.com. and www.example.com.",
		"in.default.svc.cluster.local SOA":             "headless.default.svc.cluster.local. " + none,
	} {
		f := strings.Fields(q)
		qtype := uint16(65)
		if f[1] != "TYPE65" {
			qtype = typeOfText(t, f[1])
		}
		if got := ask(z, f[0], qtype); got != want {
			t.Errorf("%s\n\tis   %s\n\twant %s", q, got, want)
		}
	}
	if a, _ := z.Lookup(mustWire("port.default.svc.cluster.local"), typeSRV); len(a.More) != 1 || len(a.Extra) != 3 {
		t.Errorf("%+v", a)
	}
}

// chainTo is what ask shows of the aliases from chain-n on.
func chainTo(n int) string {
	parts := []string{}
	for i := range n {
		target := fmt.Sprintf("chain-%d.default.svc.cluster.local.", i-1)
		if i == 0 {
			target = "web-1.default.cluster.local."
		}
		parts = append(parts, fmt.Sprintf("chain-%d.default.svc.cluster.local. CNAME %s", i, target))
		if i == n-1 {
			parts = append(parts[:i], fmt.Sprintf("chain-%d.default.svc.cluster.local.", i), parts[i])
		}
	}
	return strings.Join(parts, "; ")
}

func TestAnAliasFollowsItsTarget(t *testing.T) {
	s := example()
	var b Builder
	b.Build(s)
	for _, step := range []struct {
		name   string
		change func()
		want   string
	}{
		{"a dead host's endpoints go", func() { s.Dead = map[string]string{"host1": "silent", "host3": "silent"} },
			"headless.default.svc.cluster.local.; headless.default.svc.cluster.local. A 10.1.20.3"},
		{"the target gets a virtual IP", func() {
			s.Services = replaced(s.Services, &service.Service{Tenant: "default", Network: "default", Name: "headless", VirtualIPs: addrs("10.0.0.9")})
		}, "headless.default.svc.cluster.local.; headless.default.svc.cluster.local. A 10.0.0.9"},
		{"the target becomes an alias", func() { s.Services = replaced(s.Services, external("headless", "example.org")) },
			"headless.default.svc.cluster.local.; headless.default.svc.cluster.local. CNAME example.org. and example.org."},
		{"it leads elsewhere", func() { s.Services = replaced(s.Services, external("in", "example.net")) }, "example.net. and example.net."},
		{"it is no alias any more", func() {
			s.Services = replaced(s.Services, &service.Service{Tenant: "default", Network: "default", Name: "in", Endpoints: addrs("192.0.2.5")})
		}, "192.0.2.5"},
	} {
		step.change()
		if got := ask(b.Build(s), "in.default.svc.cluster.local", typeA); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
	}
}

// replaced is list with s in the place of the service of its name.
func replaced(list []*service.Service, s *service.Service) []*service.Service {
	var all []*service.Service
	for _, o := range list {
		if o.Name == s.Name && o.Network == s.Network && o.Tenant == s.Tenant {
			o = s
		}
		all = append(all, o)
	}
	return all
}
