package zone

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// large is a cluster of n containers with a name, an alias and an id each,
// 300 to a host.
func large(n int) State {
	s := example()
	s.Endpoints = make([]*endpoint.Endpoint, 0, n)
	s.Names, s.Dead = nil, nil
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)})
		e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: fmt.Sprintf("host%04d", i/300),
			Container: fmt.Sprintf("%012x%052x", i*7919, i), IfName: "eth0", Addresses: []netip.Addr{a},
			Names: []string{fmt.Sprintf("web-%d", i), fmt.Sprintf("app%d", i/10)}, Labels: map[string]string{"app": fmt.Sprintf("app%d", i/100)}}
		e.ID = e.Host + "," + e.Container + "," + e.IfName
		s.Endpoints = append(s.Endpoints, e)
	}
	for i := range n / 100 {
		s.Services = append(s.Services, &service.Service{Tenant: "default", Network: "default", Name: fmt.Sprintf("svc%d", i),
			Selector: map[string]string{"app": fmt.Sprintf("app%d", i)}, Ports: []service.Port{{Name: "http", Port: 80, Protocol: "tcp"}}})
	}
	slices.SortFunc(s.Endpoints, func(a, b *endpoint.Endpoint) int {
		return compareKeys(a.Tenant, a.Network, a.ID, b.Tenant, b.Network, b.ID)
	})
	return s
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestAHundredThousandEndpointsAreCheapToKeepAndToChange(t *testing.T) {
	const n = 100_000
	s := large(n)
	before := heap()
	var b Builder
	start := time.Now()
	z := b.Build(s)
	took := time.Since(start)
	size := heap() - before
	t.Logf("%d endpoints: built in %v, %d bytes each", n, took, size/n)
	if size > 350*n {
		t.Errorf("the zone takes %d bytes", size)
	}
	ask(z, "web-1.default.cluster.local", typeA)

	changed := func(what string, most int, next State) {
		t.Helper()
		var m, after runtime.MemStats
		runtime.ReadMemStats(&m)
		start := time.Now()
		_, w := b.build(next)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		t.Logf("%s: %v, copied %d, allocated %d bytes", what, took, w.edit.copied, after.TotalAlloc-m.TotalAlloc)
		if w.edit.copied > most {
			t.Errorf("%s: copied %d branches and entries", what, w.edit.copied)
		}
		if bytes := after.TotalAlloc - m.TotalAlloc; bytes > uint64(most)*100+200_000 {
			t.Errorf("%s: allocated %d bytes", what, bytes)
		}
	}
	one := *s.Endpoints[5000]
	one.Addresses = addrs("10.200.0.1")
	next := s
	next.Endpoints = slices.Clone(s.Endpoints)
	next.Endpoints[5000] = &one
	changed("one endpoint changed", 2500, next)
	next.Endpoints = slices.Delete(slices.Clone(next.Endpoints), 700, 701)
	changed("one endpoint removed", 2500, next)
	next.Names = []*Name{{Tenant: "default", Network: "default", Name: "printer", Addresses: addrs("192.0.2.1")}}
	changed("one name added", 2500, next)
	next.Services = slices.Clone(next.Services)
	next.Services[10] = &service.Service{Tenant: "default", Network: "default", Name: next.Services[10].Name, Selector: map[string]string{"app": "app77"}}
	changed("one service changed", 2500, next)
	next.Dead = map[string]string{"host0009": "silent"}
	changed("a host of 300 died", 300*200, next)
	next.TTL = time.Minute
	changed("another TTL", 0, next)
	runtime.KeepAlive(z)
}

func TestAnswersCostNoMemory(t *testing.T) {
	z := new(Builder).Build(example())
	for q, want := range questions() {
		var name, kind string
		if n, _ := fmt.Sscan(q, &name, &kind); n != 2 || kind != "A" && kind != "AAAA" && (len(want) < 2 || want[:2] != "NX") {
			continue
		}
		wire, ok := Wire(name)
		if !ok {
			t.Fatal(name)
		}
		qtype := typeOfText(t, kind)
		if n := testing.AllocsPerRun(10, func() { z.Lookup(wire, qtype) }); n != 0 {
			t.Errorf("%s: %v allocations", q, n)
		}
	}
	srv := mustWire("_http._tcp.headless.default.svc.cluster.local")
	if n := testing.AllocsPerRun(10, func() { z.Lookup(srv, typeSRV) }); n != 0 {
		t.Errorf("a port: %v allocations", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	z := new(Builder).Build(large(100_000))
	var hits, misses [][]byte
	for i := range 10_000 {
		hits = append(hits, mustWire(fmt.Sprintf("web-%d.default.cluster.local", i*9)))
		misses = append(misses, mustWire(fmt.Sprintf("nope-%d.default.cluster.local", i*9)))
	}
	for name, list := range map[string][][]byte{"hit": hits, "miss": misses} {
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				z.Lookup(list[i%len(list)], typeA)
				i += 7
			}
		})
	}
}
