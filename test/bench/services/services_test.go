package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
)

func TestFiguresHaveThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 340: "340ns", 1234: "1.23 µs", 16_800: "16.8 µs", 3_080_000: "3.08 ms", 152_000_000: "152 ms", 5_260_000_000: "5.26 s", 100 * time.Second: "100 s",
	} {
		if got := round(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
	}
	if got := (stats{3_000, 1_000, 2_000}).String(); got != "2.00 µs (1.00 µs–3.00 µs)" {
		t.Errorf("%q", got)
	}
}

// TestTheClusterIsOneThatDaemonsAccept: every address once, where it belongs,
// and nobody's problem.
func TestTheClusterIsOneThatDaemonsAccept(t *testing.T) {
	const n = 50_000
	seen := map[netip.Addr]bool{}
	once := func(a netip.Addr, in netip.Prefix) {
		t.Helper()
		if seen[a] || !in.Contains(a) {
			t.Fatalf("%s: twice, or not in %s", a, in)
		}
		seen[a] = true
	}
	for i := range n {
		once(virtualIP(i), serviceNetwork())
		for c := range copies {
			h, _ := hostOf(n, i, c)
			once(endpointAt(n, i, c).Addresses[0], hostSubnet(h))
		}
	}
	for i := range 1000 {
		once(moved(i), foreignPods())
	}
	v := serviceAt(n - 1)
	put, err := record(v, v.Key(etcdPrefix))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.Parse(etcdPrefix, store.KV{Key: put.Key, Value: put.Value}); err != nil {
		t.Error(err)
	}
	var table service.Table
	out, problems := table.Build(state(1000))
	if len(out.Frontends) != 1000 || len(problems) > 0 {
		t.Errorf("%d frontends, %v", len(out.Frontends), problems)
	}
	for _, f := range out.Frontends {
		if len(f.Slots) != copies {
			t.Fatalf("%v has %d slots", f.Addr, len(f.Slots))
		}
	}
	if a := lastIP(n); a.As4()[3] != 255 {
		t.Errorf("last is %s", a)
	}
}
