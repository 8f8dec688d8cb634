package service

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
)

// pod is an endpoint of app=web.
func pod(host, name, list string) *endpoint.Endpoint {
	e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: host, Container: somebody + name, IfName: "eth0", Addresses: addrs(list),
		Names: []string{name}, Labels: map[string]string{"app": "web"}}
	e.ID = e.Host + "," + e.Container + "," + e.IfName
	return e
}

// with is a copy of e with another label.
func with(e *endpoint.Endpoint, key, value string) *endpoint.Endpoint {
	c := *e
	c.Labels = maps.Clone(e.Labels)
	c.Labels[key] = value
	return &c
}

func web(ports ...Port) *Service {
	return &Service{Tenant: "default", Network: "default", Name: "web", Ports: ports, Selector: map[string]string{"app": "web"}, VirtualIPs: addrs("10.0.0.80")}
}

// small is one service on three hosts; this is host1.
func small() State {
	return State{Tenant: "default", Host: "host1", Networks: prefixes("10.0.0.0/16"), Pods: prefixes("10.1.0.0/16"), Subnets: prefixes("10.1.1.0/24"),
		Nodes:     addrs("192.0.2.1"),
		Services:  []*Service{web(Port{Port: 80, Target: 8080, Protocol: "tcp"})},
		Endpoints: []*endpoint.Endpoint{pod("host1", "a", "10.1.1.2"), pod("host2", "b", "10.1.2.2"), pod("host3", "c", "10.1.3.2")}}
}

// built shows the frontends and problems of s, a line each.
func built(s State) string {
	out, problems := new(Table).Build(s)
	var lines []string
	for _, f := range out.Frontends {
		lines = append(lines, text(f))
	}
	for _, p := range problems {
		lines = append(lines, p.Error())
	}
	return strings.Join(lines, "\n")
}

func TestFrontendsOf(t *testing.T) {
	const all = "10.0.0.80:80/tcp -> 10.1.1.2:8080 10.1.2.2:8080 10.1.3.2:8080"
	for name, c := range map[string]struct {
		change func(s *State)
		want   string
	}{
		"a service":            {func(*State) {}, all},
		"no target":            {func(s *State) { s.Services[0].Ports[0].Target = 0 }, strings.ReplaceAll(all, "8080", "80")},
		"headless":             {func(s *State) { s.Services[0].Headless, s.Services[0].VirtualIPs = true, nil }, ""},
		"external":             {func(s *State) { s.Services[0] = &Service{Tenant: "default", Name: "web", External: "x"} }, ""},
		"another tenant":       {func(s *State) { s.Tenant = "blue" }, ""},
		"no services here":     {func(s *State) { s.Networks = nil }, ""},
		"no endpoints":         {func(s *State) { s.Endpoints = nil }, "10.0.0.80:80/tcp ->"},
		"another network":      {func(s *State) { s.Endpoints[0].Network = "back" }, "10.0.0.80:80/tcp -> 10.1.2.2:8080 10.1.3.2:8080"},
		"unhealthy":            {func(s *State) { s.Endpoints[1].Unhealthy = map[string]string{"web": "refused"} }, "10.0.0.80:80/tcp -> 10.1.1.2:8080 10.1.3.2:8080"},
		"unhealthy for others": {func(s *State) { s.Endpoints[1].Unhealthy = map[string]string{"db": "refused"} }, all},
		"dead":                 {func(s *State) { s.Dead = map[string]string{"host2": "silent"} }, "10.0.0.80:80/tcp -> 10.1.1.2:8080 10.1.3.2:8080"},
		"this host is dead":    {func(s *State) { s.Dead = map[string]string{"host1": "silent"} }, all},
		"elsewhere": {func(s *State) { s.Services[0].VirtualIPs = addrs("10.9.0.1") },
			"service web of network default: its virtual address 10.9.0.1 is outside of the service network 10.0.0.0/16: update it with another one"},
		"a host's own": {func(s *State) { s.Hosts = addrs("10.0.0.79 10.0.0.80") },
			"service web of network default: its virtual address 10.0.0.80 is a host's own: update it with another one"},
		"a host's own beside": {func(s *State) { s.Hosts = addrs("10.0.0.79 10.0.0.81") }, all},
		"two addresses":       {func(s *State) { s.Endpoints[0].Addresses = addrs("fd00::1 10.1.1.9 10.1.1.8") }, strings.Replace(all, "10.1.1.2", "10.1.1.9", 1)},
		"of one family":       {func(s *State) { s.Endpoints[0].Addresses = addrs("fd00::1") }, "10.0.0.80:80/tcp -> 10.1.2.2:8080 10.1.3.2:8080"},
		"both families": {func(s *State) {
			s.Networks, s.Services[0].VirtualIPs = prefixes("10.0.0.0/16 fd00::/112"), addrs("10.0.0.80 fd00::80")
			s.Endpoints[0].Addresses = addrs("fd00:1::1 10.1.1.2")
		}, all + "\n[fd00::80]:80/tcp -> [fd00:1::1]:8080"},
		"choice": {func(s *State) { s.Services[0].Balance, s.Services[0].Affinity = BalanceRoundRobin, 3 }, all + " (balance 1, affinity 3s)"},
		"listed": {func(s *State) { s.Services[0].Endpoints = addrs("192.0.2.9 fd00::9 10.1.2.2") },
			"10.0.0.80:80/tcp -> 192.0.2.9:8080 10.1.2.2:8080 10.1.1.2:8080 10.1.3.2:8080"},
		"listed only": {func(s *State) { s.Services[0].Endpoints, s.Services[0].Selector = addrs("192.0.2.9"), nil }, "10.0.0.80:80/tcp -> 192.0.2.9:8080"},
		"several labels": {func(s *State) {
			s.Services[0].Selector = map[string]string{"app": "web", "tier": "x"}
			s.Endpoints[2] = with(s.Endpoints[2], "tier", "x")
		}, "10.0.0.80:80/tcp -> 10.1.3.2:8080"},
		"weights": {func(s *State) {
			s.Endpoints[1] = with(s.Endpoints[1], LabelWeight, "3")
			s.Endpoints[2] = with(s.Endpoints[2], LabelWeight, "1000")
		}, "10.0.0.80:80/tcp -> 10.1.1.2:8080 10.1.2.2:8080 10.1.2.2:8080 10.1.2.2:8080 10.1.3.2:8080\n" +
			`container 0123456789ab on host3: its label flanneld.io/weight is "1000" and counts as 1: it must be from 1 to 100`},
		"named": {func(s *State) {
			s.Services[0].Ports[0] = Port{Port: 80, TargetName: "http", Protocol: "tcp"}
			s.Endpoints[0] = with(s.Endpoints[0], LabelPort+"http", "81")
			s.Endpoints[1] = with(s.Endpoints[1], LabelPort+"http", "82")
			s.Endpoints[2] = with(s.Endpoints[2], LabelPort+"http", "0")
		}, "10.0.0.80:80/tcp -> 10.1.1.2:81 10.1.2.2:82"},
		"named and listed": {func(s *State) {
			s.Services[0].Ports[0] = Port{Port: 80, TargetName: "http", Protocol: "tcp"}
			s.Services[0].Endpoints = addrs("192.0.2.9")
		}, "10.0.0.80:80/tcp ->\nservice web of network default: port 80/tcp: the listed endpoints have no port named http and are left out: give the port a number as its target"},
		"local": {func(s *State) { s.Services[0].Local, s.Services[0].Endpoints = LocalOnly, addrs("10.1.1.77 192.0.2.9") },
			"10.0.0.80:80/tcp -> 10.1.1.77:8080 10.1.1.2:8080"},
		"nothing local": {func(s *State) { s.Services[0].Local, s.Host = LocalOnly, "host4" }, "10.0.0.80:80/tcp ->"},
		"local first":   {func(s *State) { s.Services[0].Local = LocalFirst }, "10.0.0.80:80/tcp -> 10.1.1.2:8080"},
		"local is sick": {func(s *State) {
			s.Services[0].Local, s.Endpoints[0].Unhealthy = LocalFirst, map[string]string{"web": "refused"}
		}, "10.0.0.80:80/tcp -> 10.1.2.2:8080 10.1.3.2:8080"},
		"node port": {func(s *State) {
			s.Services[0].Ports[0].NodePort = 30080
			s.Services[0].VirtualIPs = nil
			s.Services[0].Endpoints, s.Services[0].Selector = addrs("192.0.2.9 fd00::9"), nil
			s.Nodes = addrs("192.0.2.1 2001:db8::1 192.0.2.1")
		}, "node 127.0.0.1:30080/tcp -> 192.0.2.9:8080\nnode 192.0.2.1:30080/tcp -> 192.0.2.9:8080\nnode [2001:db8::1]:30080/tcp -> [fd00::9]:8080"},
		"node port without IPv4": {func(s *State) {
			s.Services[0] = &Service{Tenant: "default", Network: "default", Name: "web", Ports: []Port{{Port: 80, Protocol: "udp", NodePort: 30080}}, Endpoints: addrs("fd00::9")}
			s.Nodes, s.Pods = addrs("2001:db8::1"), prefixes("fd00::/64")
		}, "node [2001:db8::1]:30080/udp -> [fd00::9]:80"},
	} {
		s := small()
		c.change(&s)
		if got := built(s); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

func published(host, target string) *Publication {
	return &Publication{Tenant: "default", Host: host, Protocol: "tcp", Port: 8080, Network: "default", Target: target, TargetPort: 80}
}

func TestPublishedPortsLeadToContainersOfANameOrID(t *testing.T) {
	for target, want := range map[string]string{
		"b":              "10.1.2.2:80",
		"nobody":         "",
		somebody:         "10.1.1.2:80 10.1.2.2:80 10.1.3.2:80",
		somebody + "c":   "10.1.3.2:80",
		somebody + "c-":  "",
		somebody[:11]:    "",
		"other":          "10.1.2.2:80",
		"other-and-long": "10.1.3.2:80",
	} {
		s := small()
		s.Services = nil
		s.Endpoints[1].Names = append(s.Endpoints[1].Names, "other", "other-and-wide")
		s.Endpoints[2].Names = append(s.Endpoints[2].Names, "other-and-long")
		s.Endpoints[1].Unhealthy = map[string]string{"web": "refused"}
		s.Published = []*Publication{published("host1", target), published("host2", target)}
		lines := strings.TrimRight("node 127.0.0.1:8080/tcp -> "+want, " ") + "\n" + strings.TrimRight("node 192.0.2.1:8080/tcp -> "+want, " ")
		if got := built(s); got != lines {
			t.Errorf("%s:\n%s\nwant\n%s", target, got, lines)
		}
		var table Table
		endpoints := s.Endpoints
		for _, list := range [][]*endpoint.Endpoint{nil, endpoints[:1], endpoints[1:], endpoints, endpoints[:2]} {
			s.Endpoints = list
			got, _ := table.Build(s)
			if afresh, _ := new(Table).Build(s); shown(got, nil) != shown(afresh, nil) {
				t.Errorf("%s: %s, built afresh %s", target, shown(got, nil), shown(afresh, nil))
			}
		}
	}
	s := small()
	s.Services, s.Published, s.Dead = nil, []*Publication{published("host1", "b")}, map[string]string{"host2": "silent"}
	if got := built(s); strings.Contains(got, "10.1.2.2") {
		t.Errorf("a dead host's container is published:\n%s", got)
	}
}

func TestOneAddressAndPortIsOneServices(t *testing.T) {
	s := small()
	older, younger := web(Port{Port: 80, Protocol: "tcp", NodePort: 30080}), web(Port{Port: 80, Protocol: "tcp", NodePort: 30080})
	older.Name, younger.Name = "zebra", "ant"
	older.created, younger.created = 3, 4
	older.Selector, younger.Selector = nil, nil
	older.Endpoints, younger.Endpoints = addrs("192.0.2.3"), addrs("192.0.2.4")
	s.Services = []*Service{younger, older}
	p := published("host1", "a")
	p.Port = 30080
	s.Published = []*Publication{p}
	const conflicts = `
service ant of network default: port 30080/tcp of this host is taken by service zebra of network default: give one of the two another port
service ant of network default: port 80/tcp at 10.0.0.80 is taken by service zebra of network default: give one of the two another address or port`
	want := `10.0.0.80:80/tcp -> 192.0.2.3:80
node 127.0.0.1:30080/tcp -> 192.0.2.3:80
node 192.0.2.1:30080/tcp -> 192.0.2.3:80
published port 30080/tcp of host1: port 30080/tcp of this host is taken by service zebra of network default: give one of the two another port` + conflicts
	if got := built(s); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	_, problems := new(Table).Build(s)
	if p, ok := errors.AsType[*Problem](problems[1]); !ok || p.Service != younger {
		t.Errorf("%#v is not told of the younger service", problems[1])
	}
	older.created = younger.created // the key decides
	if got := built(s); !strings.Contains(got, "10.0.0.80:80/tcp -> 192.0.2.4:80\n") {
		t.Errorf("of the same age: %s", got)
	}
	var table Table
	table.Build(s)
	s.Services = s.Services[1:]
	out, problems := table.Build(s)
	if len(problems) != 1 || text(out.Frontends[0]) != "10.0.0.80:80/tcp -> 192.0.2.3:80" {
		t.Errorf("the holder went: %s, %v", text(out.Frontends[0]), problems)
	}
}

func TestAServiceDoesNotContendWithItself(t *testing.T) {
	s := small()
	s.Nodes = addrs("10.0.0.80") // the virtual address, which is also the host's own
	s.Services[0].Ports[0].Port, s.Services[0].Ports[0].NodePort = 30080, 30080
	other := web(Port{Port: 81, Protocol: "tcp", NodePort: 30080})
	other.Name, other.VirtualIPs, other.created = "other", nil, 1
	both := []*Service{other, s.Services[0]}
	const want = "10.0.0.80:30080/tcp -> 10.1.1.2:8080 10.1.2.2:8080 10.1.3.2:8080\nnode 127.0.0.1:30080/tcp -> 10.1.1.2:8080 10.1.2.2:8080 10.1.3.2:8080"
	if got := built(s); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	var table Table
	for _, list := range [][]*Service{both[1:], both, both[:1], both, nil} {
		s.Services = list
		got, problems := table.Build(s)
		if want, afresh := new(Table).Build(s); shown(got, problems) != shown(want, afresh) {
			t.Errorf("%s\nbuilt afresh\n%s", shown(got, problems), shown(want, afresh))
		}
	}
}

func TestSlotsAreBounded(t *testing.T) {
	s := small()
	s.Endpoints = nil
	for i := range 5000 {
		e := pod("host1", fmt.Sprintf("p%04d", i), fmt.Sprintf("10.1.%d.%d", i>>8, i&255))
		s.Endpoints = append(s.Endpoints, with(e, LabelWeight, "2"))
	}
	for n, want := range map[int]string{
		2048: "",
		2049: "service web of network default: port 80/tcp has more than 4096 endpoints if each counts by its weight: all count the same; make the values of flanneld.io/weight smaller",
		4096: "service web of network default: port 80/tcp has more than 4096 endpoints if each counts by its weight: all count the same; make the values of flanneld.io/weight smaller",
		5000: "service web of network default: port 80/tcp has more than 4096 endpoints: the others get no connections; divide them among several services",
	} {
		c := s
		c.Endpoints = s.Endpoints[:n]
		out, problems := new(Table).Build(c)
		slots := out.Frontends[0].Slots
		if got := fmt.Sprint(problems); got != "["+want+"]" || len(slots) > maxSlots {
			t.Errorf("%d endpoints: %d slots, %s", n, len(slots), got)
		}
		if distinct := slices.Compact(slices.Clone(slots)); len(distinct) != min(n, maxSlots) {
			t.Errorf("%d endpoints: %d get connections", n, len(distinct))
		}
	}
}

func TestBehindAServiceIsEveryEndpointWithItsReason(t *testing.T) {
	s := small()
	v := s.Services[0]
	v.Ports = []Port{{Name: "http", Port: 80, TargetName: "http", Protocol: "tcp"}, {Name: "dns", Port: 53, TargetName: "dns", Protocol: "udp"}}
	v.Endpoints = addrs("192.0.2.9 fd00::9")
	label := func(e *endpoint.Endpoint, http, dns string) *endpoint.Endpoint {
		return with(with(e, LabelPort+"http", http), LabelPort+"dns", dns)
	}
	sick := label(pod("host1", "sick", "10.1.1.3"), "80", "53")
	sick.Unhealthy = map[string]string{"web": "connection refused"}
	s.Endpoints = []*endpoint.Endpoint{label(s.Endpoints[0], "81", "53"), sick, with(s.Endpoints[1], LabelPort+"http", "81"), with(s.Endpoints[2], LabelPort+"http", "none"),
		label(pod("host4", "v6", "fd00::5"), "80", "53"), label(pod("host5", "gone", "10.1.5.5"), "80", "53")}
	s.Dead = map[string]string{"host5": "host5 has not been seen since 12:00:00"}
	var lines []string
	for _, c := range Behind(v, s) {
		host := ""
		if c.Endpoint != nil {
			host = c.Endpoint.Host
		}
		lines = append(lines, fmt.Sprintf("%v|%s|%v|%s", c.Addr, host, c.Ready, c.Why))
	}
	want := `192.0.2.9||false|port 80/tcp: listed addresses have no port named http; port 53/udp: listed addresses have no port named dns
fd00::9||false|the service has no IPv6 address
10.1.1.2|host1|true|
10.1.1.3|host1|false|unhealthy: connection refused
10.1.2.2|host2|true|port 53/udp: its label flanneld.io/port-dns is missing
10.1.3.2|host3|false|port 80/tcp: its label flanneld.io/port-http is "none", which is no port; port 53/udp: its label flanneld.io/port-dns is missing
invalid IP|host4|false|it has no IPv4 address
10.1.5.5|host5|false|host5 has not been seen since 12:00:00`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	v.Ports, v.VirtualIPs, v.Headless = nil, nil, true
	s.Endpoints[0].Addresses = addrs("10.1.1.2 fd00::6 fd00::7")
	list := Behind(v, s)
	if len(list) != 9 || !list[1].Ready || !list[2].Ready || list[3].Addr != addrs("fd00::6")[0] {
		t.Errorf("headless: %+v", list)
	}
}

func TestAHostTakesItsAddressFromAService(t *testing.T) {
	s := small()
	var table Table
	for _, hosts := range []string{"", "10.0.0.80", "10.0.0.81 10.0.0.82", "10.0.0.80 10.0.0.81", ""} {
		s.Hosts = addrs(hosts)
		got, problems := table.Build(s)
		want, afresh := new(Table).Build(s)
		if !slices.Equal(got.Hosts, s.Hosts) || shown(got, problems) != shown(want, afresh) {
			t.Errorf("%q: %s\nbuilt afresh\n%s", hosts, shown(got, problems), shown(want, afresh))
		}
	}
}

func TestLocalAreTheAddressesOfThisHostsContainers(t *testing.T) {
	s := small()
	twin := pod("host1", "twin", "10.1.1.2 fd00::1")
	twin.Network, s.Services = "back", nil
	s.Endpoints = append(s.Endpoints, twin)
	var table Table
	for _, step := range []struct {
		endpoints []*endpoint.Endpoint
		want      string
	}{{s.Endpoints, "[10.1.1.2 fd00::1]"}, {s.Endpoints[:2], "[10.1.1.2]"}, {s.Endpoints[3:], "[10.1.1.2 fd00::1]"}, {s.Endpoints[1:3], "[]"}} {
		s.Endpoints = step.endpoints
		if out, _ := table.Build(s); fmt.Sprint(out.Local) != step.want {
			t.Errorf("%v, want %s", out.Local, step.want)
		}
	}
}

func TestListedAddressesThatLeadWhereNobodyMayGo(t *testing.T) {
	s := small()
	s.Services[0].Selector = nil
	s.Services[0].Endpoints = addrs("10.0.0.10 192.0.2.7 192.0.2.8")
	s.Guarded = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:8080"), netip.MustParseAddrPort("192.0.2.8:2379")}
	got := built(s)
	for _, want := range []string{
		"10.0.0.80:80/tcp -> 192.0.2.8:8080\n",
		"the listed address 10.0.0.10 is left out: it is in the network of services itself",
		"the listed address 192.0.2.7 is left out: it is etcd's port",
	} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%s\ninstead of once %q", got, want)
		}
	}
	s.Services[0].Ports[0].Protocol = "udp" // etcd's is TCP
	if got := built(s); !strings.Contains(got, "-> 192.0.2.7:8080 192.0.2.8:8080") {
		t.Errorf("UDP: %s", got)
	}
	for _, c := range Behind(s.Services[0], s) {
		if c.Ready == (c.Addr == s.Services[0].Endpoints[0]) {
			t.Errorf("%v: ready %v, %s", c.Addr, c.Ready, c.Why)
		}
	}
	var table Table
	table.Build(small())
	s.Guarded = nil
	after, problems := table.Build(s)
	if want, afresh := new(Table).Build(s); shown(after, problems) != shown(want, afresh) {
		t.Errorf("%s\nbuilt afresh\n%s", shown(after, problems), shown(want, afresh))
	}
}
