package dns

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhoMayAsk(t *testing.T) {
	prefixes := func(all ...string) (ps []netip.Prefix) {
		for _, p := range all {
			ps = append(ps, netip.MustParsePrefix(p))
		}
		return ps
	}
	host := map[netip.Addr]bool{netip.MustParseAddr("192.168.7.1"): true, netip.MustParseAddr("fd77::1"): true}
	own := &ownAddrs{ask: make(chan struct{}, 1)}
	own.addrs.Store(&host)
	here := &answering{
		own:   own,
		addrs: []netip.Addr{netip.MustParseAddr("10.1.19.1"), netip.MustParseAddr("10.0.0.10")},
		views: []answeringView{
			{sources: prefixes("10.1.0.0/16", "fd00:1::/48")},
			{sources: prefixes("10.2.0.0/16", "10.1.0.0/16")},
		},
	}
	elsewhere := &answering{addrs: here.addrs, views: here.views}
	for source, want := range map[string]struct{ here, elsewhere int }{
		"10.1.19.7":     {0, 0},
		"10.1.255.255":  {0, 0},
		"fd00:1::77":    {0, 0},
		"10.2.0.1":      {1, 1},
		"10.1.19.1":     {0, 0}, // the gateway itself
		"10.0.0.10":     {0, 0},
		"127.0.0.1":     {0, 0},
		"127.9.9.9":     {0, 0},
		"::1":           {0, 0},
		"192.168.7.1":   {0, -1},
		"fd77::1":       {0, -1},
		"192.168.7.2":   {-1, -1},
		"10.3.0.1":      {-1, -1},
		"fd00:2::1":     {-1, -1},
		"fe80::1%eth0":  {-1, -1},
		"0.0.0.0":       {-1, -1},
		"8.8.8.8":       {-1, -1},
		"10.0.0.11":     {-1, -1},
		"2001:db8::1":   {-1, -1},
		"169.254.169.1": {-1, -1},
	} {
		for a, want := range map[*answering]int{here: want.here, elsewhere: want.elsewhere} {
			got := -1
			switch a.admit(netip.MustParseAddr(source)) {
			case &a.views[0]:
				got = 0
			case &a.views[1]:
				got = 1
			}
			if got != want {
				t.Errorf("%s (namespace of its own: %v): view %d, want %d", source, a.own == nil, got, want)
			}
		}
	}
}

func TestOwnAddressesAreFoundWhenAskedFor(t *testing.T) {
	o := &ownAddrs{ask: make(chan struct{}, 1)}
	if o.has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("known before a look")
	}
	if len(o.ask) != 1 {
		t.Error("no look was asked for")
	}
	o.refresh()
	if !o.has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("unknown after a look")
	}
}

func TestRateOfASource(t *testing.T) {
	l := newLimiter(100, 20)
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")
	allowed := func(source netip.Addr, from, to time.Duration, queries int) (n int) {
		for i := range queries {
			if l.wait(source, from+(to-from)*time.Duration(i)/time.Duration(queries)) == 0 {
				n++
			}
		}
		return n
	}
	if n := allowed(a, 0, 0, 1000); n != 20 {
		t.Errorf("%d of 1,000 at once, want the burst of 20", n)
	}
	if n := allowed(a, 0, time.Second, 10000); n < 99 || n > 101 {
		t.Errorf("%d of 10,000 in a second, want 100", n)
	}
	if n := allowed(b, time.Second, time.Second, 1000); n != 20 {
		t.Errorf("%d of another source's, want 20", n)
	}
	if n := allowed(a, 2*time.Second, 3*time.Second, 100); n != 100 {
		t.Errorf("%d of 100 within the rate, want all", n)
	}
	if n := allowed(a, time.Hour, time.Hour, 1000); n != 20 {
		t.Errorf("%d after an hour, want the burst", n)
	}
}

func TestTooFastIsToldHowLongToWait(t *testing.T) {
	l := newLimiter(100, 1)
	a := netip.MustParseAddr("10.1.0.1")
	if d := l.wait(a, time.Second); d != 0 {
		t.Fatalf("wait %v", d)
	}
	if d := l.wait(a, time.Second+4*time.Millisecond); d != 6*time.Millisecond {
		t.Errorf("wait %v, want 6ms", d)
	}
	if d := l.wait(a, time.Second+10*time.Millisecond); d != 0 {
		t.Errorf("wait %v after waiting", d)
	}
}

// TestManySourcesTakeBoundedMemory: and the ones that are asking now are not
// forgotten for those that asked once.
func TestManySourcesTakeBoundedMemory(t *testing.T) {
	l := newLimiter(1000, 10)
	busy := netip.MustParseAddr("10.1.0.1")
	now := time.Duration(0)
	passed := 0
	for i := range 100_000 {
		now += time.Microsecond
		l.wait(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), now)
		if l.wait(busy, now) == 0 {
			passed++
		}
	}
	if passed > 10+100+10 { // 100 ms at 1,000/s, and a burst
		t.Errorf("%d of one source's queries passed, want about 110", passed)
	}
}

func TestLimiterAllocatesNothing(t *testing.T) {
	l := newLimiter(1000, 10)
	a := netip.MustParseAddr("10.1.0.1")
	if n := testing.AllocsPerRun(100, func() { l.wait(a, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestQuotaPerSource(t *testing.T) {
	q := newQuota(10, 3)
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	take := func(source netip.Addr, exempt bool) (n int) {
		for q.begin(source, exempt) {
			n++
		}
		return n
	}
	if n := take(a, false); n != 3 {
		t.Errorf("%d, want 3", n)
	}
	if n := take(b, false); n != 3 {
		t.Errorf("%d of another, want 3", n)
	}
	if n := take(netip.IPv6Loopback(), true); n != 4 {
		t.Errorf("%d exempt, want the rest of 10", n)
	}
	for range 3 {
		q.end(a)
	}
	if n := take(a, false); n != 3 {
		t.Errorf("%d again, want 3", n)
	}
	for range 3 {
		q.end(a)
		q.end(b)
	}
	for range 4 {
		q.end(netip.IPv6Loopback())
	}
	if q.total != 0 || len(q.from) != 0 {
		t.Errorf("left %d, %v", q.total, q.from)
	}
}

func TestOwnAddressesAreLookedUpOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &ownAddrs{ask: make(chan struct{}, 1)}
		done := make(chan struct{})
		go func() { o.run(t.Context()); close(done) }()
		stranger := netip.MustParseAddr("198.51.100.1")
		o.has(stranger)
		synctest.Wait()
		first := o.addrs.Load()
		if first == nil {
			t.Fatal("no look")
		}
		time.Sleep(900 * time.Millisecond)
		o.has(stranger)
		synctest.Wait()
		if o.addrs.Load() != first {
			t.Error("another look within a second")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if o.addrs.Load() == first {
			t.Error("no other look after a second")
		}
	})
}
