package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"
	"context"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/conntrack"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

func TestZZProfile(t *testing.T) {
	for _, n := range []int{10000, 50000} {
		zz(t, n)
	}
}
func zz(t *testing.T, n int) {
	nm := testNames(t)
	nm.ground.own = []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}
	nm.ground.pods = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	nm.ground.services = []netip.Prefix{netip.MustParsePrefix("172.20.0.0/16")}
	nm.ground.fresh = time.Now().Add(-time.Minute)
	nm.heardOf = heardOf{true, true, true, true, true}
	nm.had = nm.heardOf
	var svcs []*service.Service
	var kvs []store.KV
	for i := range n {
		app := fmt.Sprintf("app%05d", i)
		svcs = append(svcs, &service.Service{Tenant: "default", Network: "default", Name: app, Ports: []service.Port{{Port: 80, Target: 8080, Protocol: "tcp"}},
			Selector: map[string]string{"app": app, "tier": "web"}, VirtualIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 20, byte((i + 256) >> 8), byte(i)})}})
	}
	for i := range 5 * n {
		h := i / 250
		e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: strings.Clone(fmt.Sprintf("far%04d", h)), Identity: strings.Clone(fmt.Sprintf("%032d", h)), Container: fmt.Sprintf("%012x%052x", i*7919, i), IfName: "eth0",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(64 + h>>8), byte(h), byte(i%250 + 2)})}, Names: []string{fmt.Sprintf("web-%d", i)},
			Labels: map[string]string{"app": fmt.Sprintf("app%05d", i%n), "tier": "web"}}
		e.ID = e.Host + "," + e.Container + "," + e.IfName
		nm.ground.hosts[e.Host] = subnet.Host{Name: e.Host, Identity: e.Identity}
		nm.ground.lives[e.Identity] = true
		kvs = append(kvs, store.KV{Key: e.Key("/coreos.com/network"), Parsed: e})
	}
	slices.SortFunc(kvs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	records := func() (r store.Records[endpoint.Endpoint]) {
		r = store.Records[endpoint.Endpoint]{Values: make([]*endpoint.Endpoint, 0, len(kvs)), Epoch: 1}
		for _, kv := range kvs {
			switch v := kv.Parsed.(type) {
			case *endpoint.Endpoint:
				r.Values = append(r.Values, v)
			case error:
				r.Problems = append(r.Problems, v)
			}
		}
		return r
	}
	nm.service.Values = svcs
	b := nm.balancer
	b.states = newLatest[service.State]()
	ns := netnstest.New(t)
	var k *nft.Balancer
	if err := ns.Do(func() (err error) { k, err = nft.NewBalancer(nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	sum := map[string]time.Duration{}
	var names []string
	step := func(name string, f func()) {
		s := time.Now()
		f()
		if _, ok := sum[name]; !ok {
			names = append(names, name)
		}
		sum[name] += time.Since(s)
	}
	const runs = 200
	var f *os.File
	for i := range runs + 1 {
		if i == 1 {
			clear(sum)
			if n == 10000 {
				f, _ = os.Create("/tmp/bs/cpu.prof")
				pprof.StartCPUProfile(f)
			}
		}
		at := i * 7919 % len(kvs)
		e := *kvs[at].Parsed.(*endpoint.Endpoint)
		e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 127, byte(i >> 8), byte(i)})}
		kvs[at].Parsed = &e
		var r store.Records[endpoint.Endpoint]
		step("records", func() { r = records() })
		now := time.Now()
		step("hear", func() { nm.hear(told[endpoint.Endpoint]{r, nil}, now); select { case <-nm.others: default: } })
		var list []*endpoint.Endpoint
		step("endpoints", func() { list, _ = nm.endpoints(now) })
		step("fit", func() { nm.garbage.fit(len(list)) })
		step("judge", func() { nm.dead, _ = nm.judgeHosts(list, now) })
		step("balance", func() { nm.balance(list) })
		st := <-b.states
		was := b.want
		step("table", func() { b.want, _ = b.table.Build(st) })
		step("sync", func() { if err := k.Sync(context.Background(), b.want); err != nil { t.Fatal(err) } })
		step("changed", func() { conntrack.Changed(was, b.want) })
		step("answer (all, with zone)", func() { nm.answer(now) })
	}
	if n == 10000 {
		pprof.StopCPUProfile()
		f.Close()
	}
	for _, name := range names {
		t.Logf("%d: %-10s %v", n, name, sum[name]/runs)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("gc %d pause %v cpu %.3f", m.NumGC, time.Duration(m.PauseTotalNs), m.GCCPUFraction)
}
