package service

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/rules"
)

// large is a cluster of n services with 5 endpoints each, 250 to a host.
func large(n int) State {
	s := State{Tenant: "default", Host: "host0001", Networks: prefixes("10.0.0.0/15"), Pods: prefixes("10.64.0.0/10"), Subnets: prefixes("10.64.1.0/24"),
		Nodes: addrs("192.0.2.1")}
	for i := range n {
		app := fmt.Sprintf("app%05d", i)
		s.Services = append(s.Services, &Service{Tenant: "default", Network: "default", Name: app, Ports: []Port{{Port: 80, Target: 8080, Protocol: "tcp"}},
			Selector: map[string]string{"app": app, "tier": "web"}, VirtualIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}})
	}
	for i := range 5 * n {
		e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: fmt.Sprintf("host%04d", i/250), Container: fmt.Sprintf("%012x%052x", i*7919, i), IfName: "eth0",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 64 + byte(i>>16), byte(i >> 8), byte(i)})}, Names: []string{fmt.Sprintf("web-%d", i)},
			Labels: map[string]string{"app": s.Services[i%n].Name, "tier": "web", "pod": fmt.Sprintf("web-%d", i)}}
		e.ID = e.Host + "," + e.Container + "," + e.IfName
		s.Endpoints = append(s.Endpoints, e)
	}
	slices.SortFunc(s.Endpoints, compareInside)
	return s
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// build also tells how many bytes were allocated.
func build(t *testing.T, what string, table *Table, s State) (rules.Services, uint64) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	out, problems := table.Build(s)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	bytes := after.TotalAlloc - before.TotalAlloc
	t.Logf("%s: %v, allocated %d bytes", what, took, bytes)
	if len(problems) > 0 {
		t.Fatalf("%s: %v", what, problems)
	}
	return out, bytes
}

func TestTenThousandServicesAreCheapToKeepAndToChange(t *testing.T) {
	const n = 10_000
	s := large(n)
	before := heap()
	var table Table
	out, _ := build(t, "10,000 services of 5 endpoints", &table, s)
	size := heap() - before
	t.Logf("%d bytes, %d for each service", size, size/n)
	if size > 30<<20 {
		t.Errorf("they take %d bytes", size)
	}
	if len(out.Frontends) != n {
		t.Fatalf("%d frontends", len(out.Frontends))
	}
	// changed allows for the list of frontends, and some.
	changed := func(what string, differ int, most uint64, next State) {
		t.Helper()
		former := out.Frontends
		var bytes uint64
		if out, bytes = build(t, what, &table, next); bytes > most+9*n {
			t.Errorf("%s: allocated %d bytes", what, bytes)
		}
		other := map[*rules.Frontend]bool{}
		for _, f := range former {
			other[f] = true
		}
		for _, f := range out.Frontends {
			delete(other, f)
		}
		if len(other) != differ {
			t.Errorf("%s: %d frontends differ", what, len(other))
		}
		s = next
	}
	edit := func(change func(e *endpoint.Endpoint)) State {
		next := s
		next.Endpoints = slices.Clone(s.Endpoints)
		one := *s.Endpoints[5000]
		change(&one)
		next.Endpoints[5000] = &one
		return next
	}
	changed("nothing", 0, 0, s)
	changed("one endpoint changed its address", 1, 10_000, edit(func(e *endpoint.Endpoint) { e.Addresses = addrs("10.100.0.1") }))
	changed("one endpoint got a name", 0, 10_000, edit(func(e *endpoint.Endpoint) { e.Names = []string{"other"} }))
	changed("one endpoint moved", 2, 10_000, edit(func(e *endpoint.Endpoint) {
		e.Labels = maps.Clone(e.Labels)
		e.Labels["app"] = "app00007"
	}))
	changed("one endpoint is unhealthy", 1, 10_000, edit(func(e *endpoint.Endpoint) { e.Unhealthy = map[string]string{e.Labels["app"]: "refused"} }))
	next := s
	next.Endpoints = slices.Delete(slices.Clone(s.Endpoints), 700, 701)
	changed("one endpoint is gone", 1, 10_000, next)
	next.Services = slices.Clone(s.Services)
	one := *s.Services[70]
	one.Selector = map[string]string{"app": "app00071"}
	next.Services[70] = &one
	changed("one service changed", 1, 10_000, next)
	next.Services = slices.Delete(slices.Clone(next.Services), 20, 21)
	changed("one service is gone", 1, 10_000, next)
	next.Published = []*Publication{{Tenant: "default", Host: "host0001", Network: "default", Protocol: "tcp", Port: 8080, Target: "web-9", TargetPort: 80}}
	changed("one port published", 0, 10_000, next)
	next.Dead = map[string]string{"host0009": "silent"}
	changed("a host of 250 died", 250, 250*1000, next)
	runtime.KeepAlive(table)
}

func TestFiftyThousandServices(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	s := large(50_000)
	before := heap()
	var table Table
	build(t, "50,000 services of 5 endpoints", &table, s)
	size := heap() - before
	t.Logf("%d bytes, %d for each service", size, size/50_000)
	next := s
	next.Endpoints = slices.Clone(s.Endpoints)
	one := *s.Endpoints[5000]
	one.Addresses = addrs("10.127.0.1")
	next.Endpoints[5000] = &one
	if _, bytes := build(t, "one endpoint changed", &table, next); bytes > 9*50_000+10_000 {
		t.Errorf("allocated %d bytes", bytes)
	}
	next.Nodes = addrs("192.0.2.2")
	build(t, "this host changed its address", &table, next)
	runtime.KeepAlive(table)
}

func BenchmarkOneEndpointOfFiftyThousand(b *testing.B) {
	s := large(10_000)
	var table Table
	table.Build(s)
	one := *s.Endpoints[5000]
	one.Addresses = addrs("10.127.0.1")
	pair := [2]*endpoint.Endpoint{s.Endpoints[5000], &one}
	lists := [2][]*endpoint.Endpoint{s.Endpoints, slices.Clone(s.Endpoints)}
	lists[1][5000] = pair[1]
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		s.Endpoints = lists[i%2]
		table.Build(s)
	}
}
