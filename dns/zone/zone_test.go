package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

func addrs(list string) (all []netip.Addr) {
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func prefixes(list string) (all []netip.Prefix) {
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// container is an endpoint whose id is made of a number.
func container(n int, host, addresses, names string, change ...func(*endpoint.Endpoint)) *endpoint.Endpoint {
	e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: host, Identity: "id", IfName: "eth0",
		Container: fmt.Sprintf("%012x%052x", n, 0), Addresses: addrs(addresses), Names: strings.Fields(names)}
	for _, f := range change {
		f(e)
	}
	e.ID = e.Host + "," + e.Container + "," + e.IfName
	return e
}

func in(tenant, network, namespace string) func(*endpoint.Endpoint) {
	return func(e *endpoint.Endpoint) { e.Tenant, e.Network, e.Namespace = tenant, network, namespace }
}

func labelled(pairs string) func(*endpoint.Endpoint) {
	return func(e *endpoint.Endpoint) { e.Labels = pairsOf(pairs) }
}

func pairsOf(pairs string) map[string]string {
	m := map[string]string{}
	for p := range strings.FieldsSeq(pairs) {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return m
}

// sick makes an endpoint unhealthy for some services.
func sick(services string) func(*endpoint.Endpoint) {
	return func(e *endpoint.Endpoint) {
		e.Unhealthy = map[string]string{}
		for s := range strings.FieldsSeq(services) {
			e.Unhealthy[s] = "connection refused"
		}
	}
}

func external(name, target string) *service.Service {
	return &service.Service{Tenant: "default", Network: "default", Name: name, External: target}
}

// example has one of everything.
func example() State {
	s := State{
		Domain: "cluster.local", Tenant: "default", TTL: 5 * time.Second,
		Networks:    prefixes("10.1.0.0/16 10.0.0.0/16 fd00:1::/32 172.16.0.0/12 192.168.7.0/25 fd09::/30"),
		Nameservers: addrs("10.0.0.10 10.1.19.1 fd00:1:19::1"),
		Local:       "host1",
		Endpoints: []*endpoint.Endpoint{
			container(1, "host1", "10.1.19.3 fd00:1:19::3", "web web-1", labelled("app=sample tier=front")),
			container(2, "host2", "10.1.20.3", "web", labelled("app=sample")),
			container(3, "host2", "10.1.20.4", "web sick", labelled("app=sample"), sick("headless frontend")),
			container(4, "host3", "10.1.21.3", "web gone", labelled("app=sample")),
			container(5, "host2", "10.1.20.5", "db", in("default", "default", "prod"), labelled("app=db")),
			container(6, "host2", "10.1.20.6 10.1.20.7", "two"),
			container(7, "host2", "10.1.20.8", ""),
			container(8, "host2", "10.1.20.9", "hidden", in("default", "default", "svc")),
			container(9, "host2", "10.1.20.10", "ns", in("default", "default", "dns")),
			container(10, "host2", "10.1.20.11", "a x", in("default", "back", "")),
			container(11, "host2", "10.1.20.12", "zzz", in("blue", "front", "ignored")),
			container(12, "host2", "10.1.19.3", "secret", in("blue", "front", "")),
			container(13, "host2", "fd00:1:20::", "six under_score"),
			container(14, "host2", "", "bare"),
			container(15, "host2", "192.168.7.9", "edge"),
			container(16, "host2", "10.1.20.13", "short", func(e *endpoint.Endpoint) { e.Container = "Abc" }),
			container(17, "host2", "10.1.20.14", "Odd odd.name -x", func(e *endpoint.Endpoint) { e.Container = "with.dots" }),
			container(18, "host1", "10.1.19.18 fd00:1:19::18", "named-1", labelled("app=named flanneld.io/port-web=8081 flanneld.io/port-odd=http")),
			container(19, "host2", "10.1.20.19", "named-2", labelled("app=named flanneld.io/port-web=8082"), sick("other")),
			container(20, "host2", "10.1.20.20", "named-3", labelled("app=named")),
			container(21, "host2", "10.1.20.21", "named-4", labelled("app=named flanneld.io/port-web=8083"), sick("named")),
		},
		Services: []*service.Service{
			{Tenant: "default", Network: "default", Name: "frontend", Selector: pairsOf("app=sample"), VirtualIPs: addrs("10.0.0.80 fd00:1:ffff::80"),
				Ports: []service.Port{{Name: "http", Port: 8888, Target: 80, Protocol: "tcp"}, {Name: "dns", Port: 53, Protocol: "udp"}, {Name: "dns", Port: 53, Protocol: "tcp"}}},
			{Tenant: "default", Network: "default", Name: "headless", Selector: pairsOf("app=sample"), Headless: true,
				Ports: []service.Port{{Name: "http", Port: 8888, Target: 80, Protocol: "tcp"}}},
			{Tenant: "default", Network: "default", Name: "listed", Endpoints: addrs("192.0.2.1 10.1.20.6 172.20.0.1"), Ports: []service.Port{{Port: 1, Protocol: "sctp"}}},
			{Tenant: "default", Network: "default", Name: "nobody", Selector: pairsOf("app=none"), Ports: []service.Port{{Name: "http", Port: 80, Protocol: "tcp"}}},
			{Tenant: "default", Network: "default", Name: "named", Selector: pairsOf("app=named"), Endpoints: addrs("192.0.2.3"), Ports: []service.Port{
				{Name: "web", Port: 80, TargetName: "web", Protocol: "tcp"}, {Name: "odd", Port: 81, TargetName: "odd", Protocol: "tcp"}, {Name: "any", Port: 82, Protocol: "tcp"}}},
			{Tenant: "default", Network: "default", Name: "virtual", Selector: pairsOf("app=named"), VirtualIPs: addrs("10.0.0.81"),
				Ports: []service.Port{{Name: "web", Port: 80, TargetName: "web", Protocol: "tcp"}}},
			{Tenant: "default", Network: "default", Name: "other", Selector: pairsOf("app=named")},
			external("out", "WWW.Example.com."), external("in", "headless.default.svc.cluster.local"), external("twice", "in.default.svc.Cluster.local"),
			external("far", "twice.default.svc.cluster.local."), external("thrice-out", "out.default.svc.cluster.local"),
			external("port", "_http._tcp.headless.default.svc.cluster.local"), external("vanished", "nope.default.cluster.local"),
			external("without", "six.default.cluster.local"), external("self", "self.default.svc.cluster.local"),
			external("ping", "pong.default.svc.cluster.local"), external("pong", "ping.default.svc.cluster.local"),
			external("reverse", "3.20.1.10.in-addr.arpa"), external("short", "headless.default.svc"),
			{Tenant: "default", Network: "default", Name: "narrow", Selector: pairsOf("app=sample tier=front")},
			{Tenant: "default", Network: "back", Name: "frontend", Selector: pairsOf("app=sample")},
			{Tenant: "blue", Network: "front", Name: "shop", Endpoints: addrs("10.9.9.9")},
		},
		Names: []*Name{
			{Tenant: "default", Network: "default", Name: "printer", Addresses: addrs("192.0.2.9 10.1.200.1")},
			{Tenant: "default", Network: "default", Name: "web", Addresses: addrs("192.0.2.7 10.1.20.3")},
			{Tenant: "default", Network: "default", Name: "a.b.c", Addresses: addrs("192.0.2.10 2001:db8::1")},
			{Tenant: "default", Network: "default", Name: "x.b.c", Addresses: addrs("192.0.2.11")},
			{Tenant: "default", Network: "extra", Name: "only.here", Addresses: addrs("192.0.2.12")},
			{Tenant: "blue", Network: "front", Name: "added", Addresses: addrs("192.0.2.13")},
		},
		Dead: map[string]string{"host3": "host3 has not been seen since 12:00:00"},
	}
	return s
}

func typeOfText(t *testing.T, s string) uint16 {
	t.Helper()
	for n, name := range typeNames() {
		if name == s {
			return n
		}
	}
	if s == "HTTPS" {
		return 65
	}
	t.Fatalf("no type %s", s)
	return 0
}

// ask is an answer in a line: the data sorted, what comes along behind a +.
func ask(z *Zone, name string, qtype uint16) string {
	wire, ok := Wire(name)
	if !ok {
		return "no name"
	}
	a, ours := z.Lookup(wire, qtype)
	if !ours {
		return "upstream"
	}
	line := shown(a.sets())
	for what, is := range map[string]bool{"NXDOMAIN " + Text(a.Apex): a.NameError, "nothing " + Text(a.Apex): a.NoData && !a.NameError,
		"unknown": a.Unknown, "and " + Text(a.Outside): a.Outside != nil} {
		if is {
			line = strings.TrimSpace(line + " " + what)
		}
	}
	if extra := shown(a.Extra); extra != "" {
		line += " + " + extra
	}
	return line
}

func shown(sets []Set) string {
	var parts []string
	for _, s := range sets {
		var local, rest []string
		for i, d := range s.data() {
			if t := dataText(s.Type, d); i < s.Local {
				local = append(local, t)
			} else {
				rest = append(rest, t)
			}
		}
		slices.Sort(local)
		slices.Sort(rest)
		line := ""
		if s.Owner != nil {
			line = Text(s.Owner) + " " + typeText(s.Type) + " "
		}
		if len(local) > 0 {
			line += strings.Join(local, " ") + " | "
		}
		parts = append(parts, line+strings.Join(rest, " "))
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}
