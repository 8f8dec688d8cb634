package forward

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestCachedAnswersCountDownUntilTheyEnd(t *testing.T) {
	for name, c := range map[string]struct {
		say   func(*dns.Msg) *dns.Msg
		good  time.Duration // how long it is not asked for again
		first uint32        // TTL at once
	}{
		"the least TTL":             {answer("x.example. 60 IN CNAME y.example.", "y.example. 20 IN A 192.0.2.1"), 20 * time.Second, 60},
		"at most an hour":           {answer("x.example. 86400 IN A 192.0.2.1"), time.Hour, 3600},
		"a TTL of 0":                {answer("x.example. 0 IN A 192.0.2.1"), 0, 0},
		"a TTL of 1":                {answer("x.example. 1 IN A 192.0.2.1"), time.Second, 1},
		"a TTL with its top bit":    {answer("x.example. 2147483649 IN A 192.0.2.1"), 0, 0},
		"no such name":              {says(dns.RcodeNameError, "3600"), 30 * time.Second, 30},
		"no such name, short":       {says(dns.RcodeNameError, "7"), 7 * time.Second, 7},
		"no data":                   {says(dns.RcodeSuccess, "300"), 30 * time.Second, 30},
		"no such name, without SOA": {says(dns.RcodeNameError, ""), 5 * time.Second, 0},
		"server failure":            {says(dns.RcodeServerFailure, ""), time.Second, 0},
		"refused":                   {says(dns.RcodeRefused, ""), time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(c.say)
				ttl := func(r *dns.Msg) uint32 {
					for _, rr := range slices.Concat(r.Answer, r.Ns) {
						return rr.Header().Ttl
					}
					return 0
				}
				r := a("x.example.").put(t, w.Forwarder)
				if got := ttl(r); got != c.first {
					t.Errorf("TTL %d, want %d", got, c.first)
				}
				w.count(0)
				if c.good > time.Second {
					time.Sleep(c.good - time.Second)
					if got := ttl(a("x.example.").put(t, w.Forwarder)); c.first > 0 && got != c.first-uint32(c.good/time.Second)+1 {
						t.Errorf("TTL %d in the last second", got)
					}
					time.Sleep(time.Second - 1)
				} else if c.good > 0 {
					time.Sleep(c.good - 1)
				}
				if c.good > 0 {
					a("x.example.").put(t, w.Forwarder)
					if n := w.count(0); n != 0 {
						t.Errorf("asked %d times within its time", n)
					}
				}
				time.Sleep(time.Nanosecond)
				a("x.example.").put(t, w.Forwarder)
				if n := w.count(0); n == 0 {
					t.Error("not asked for again")
				}
			})
		})
	}
}

func TestWhatIsAskedDifferentlyIsKeptApart(t *testing.T) {
	w := newWorld(answer("x.example. 60 IN A 192.0.2.1"))
	for _, q := range []asked{
		a("x.example."), {name: "x.example.", kind: dns.TypeAAAA}, {name: "y.example.", kind: dns.TypeA},
		{name: "x.example.", kind: dns.TypeA, size: 1232, do: true}, {name: "x.example.", kind: dns.TypeA, cd: true},
		{name: "x.example.", kind: dns.TypeA, size: 1232, do: true, cd: true},
	} {
		for range 3 {
			q.put(t, w.Forwarder)
		}
		if n := w.count(0); n != 1 {
			t.Errorf("%+v: asked %d times", q, n)
		}
	}
	for _, q := range []asked{
		{name: "X.eXample.", kind: dns.TypeA}, {name: "x.example.", kind: dns.TypeA, size: 4096}, {name: "x.example.", kind: dns.TypeA, tcp: true},
	} {
		q.put(t, w.Forwarder)
		if n := w.count(0); n != 0 {
			t.Errorf("%+v: asked %d times for what is there", q, n)
		}
	}
	s := w.Stats().Cache
	if s.Misses != 6 || s.HitsSuccess+s.HitsDenial != 15 || s.EntriesSuccess+s.EntriesDenial != 6 {
		t.Errorf("counted %+v", s)
	}
}

func TestHotNamesAreAskedForBeforeTheirTimeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(answer("x.example. 60 IN A 192.0.2.1"))
		defer w.run(t)()
		for range 5 {
			a("hot.example.").put(t, w.Forwarder)
		}
		a("cold.example.").put(t, w.Forwarder)
		w.count(0)
		time.Sleep(55 * time.Second)
		for range 5 {
			a("hot.example.").put(t, w.Forwarder)
		}
		a("cold.example.").put(t, w.Forwarder)
		synctest.Wait()
		if n := w.count(0); n != 1 || w.Stats().Prefetches != 1 {
			t.Errorf("asked %d times, %d prefetches", n, w.Stats().Prefetches)
		}
		if ttl := a("hot.example.").put(t, w.Forwarder).Answer[0].Header().Ttl; ttl != 60 {
			t.Errorf("TTL %d after it was asked for again", ttl)
		}
		time.Sleep(6 * time.Second)
		a("hot.example.").put(t, w.Forwarder)
		if n := w.count(0); n != 0 {
			t.Errorf("asked %d times for a hot name", n)
		}
	})
}

func TestAHotNameSurvivesAFailedPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(answer("x.example. 60 IN A 192.0.2.1"))
		defer w.run(t)()
		for range 5 {
			a("x.example.").put(t, w.Forwarder)
		}
		w.change(0, says(dns.RcodeServerFailure, ""))
		time.Sleep(55 * time.Second)
		for range 3 {
			if r := a("x.example.").put(t, w.Forwarder); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 5 {
				t.Errorf("got %v", r)
			}
			synctest.Wait()
		}
		if n := w.count(0); n != 2 {
			t.Errorf("asked %d times, want the first and the prefetch", n)
		}
	})
}

func TestAddressesTakeTurns(t *testing.T) {
	lines := []string{"x.example. 60 IN CNAME y.example."}
	for i := range 4 {
		lines = append(lines, fmt.Sprintf("y.example. 60 IN A 192.0.2.%d", i))
	}
	w := newWorld(answer(lines...))
	first := map[string]int{}
	for range 40 {
		r := a("x.example.").put(t, w.Forwarder)
		all := map[string]bool{}
		for _, rr := range r.Answer[1:] {
			all[rr.(*dns.A).A.String()] = true
		}
		if len(all) != 4 || r.Answer[0].Header().Rrtype != dns.TypeCNAME {
			t.Fatalf("not all addresses: %v", r)
		}
		first[r.Answer[1].(*dns.A).A.String()]++
	}
	for addr, n := range first {
		if n < 9 || n > 11 {
			t.Errorf("%s was first %d times of 40", addr, n)
		}
	}
}

func TestAddressesOfDifferentOwnersStayWithThem(t *testing.T) {
	w := newWorld(answer("x.example. 60 IN A 192.0.2.1", "other.example. 60 IN A 192.0.2.2"))
	for range 8 {
		if r := a("x.example.").put(t, w.Forwarder); r.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
			t.Errorf("got %v", r)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	w := newWorld(answer("x.example. 60 IN A 192.0.2.1"))
	limit := 256 << 10
	w.cache.limit = limit / shards
	hot := a("hot.example.")
	hot.put(t, w.Forwarder)
	for i := range 5000 {
		a(fmt.Sprintf("n%d.example.", i)).put(t, w.Forwarder)
		hot.put(t, w.Forwarder)
	}
	s := w.Stats().Cache
	if s.Bytes > limit || s.Bytes < limit/2 || s.Evictions == 0 {
		t.Errorf("%d bytes, %d evictions, want up to %d bytes", s.Bytes, s.Evictions, limit)
	}
	for i := range w.seen[1:] {
		if w.seen[1+i].name == w.seen[0].name {
			t.Errorf("a name that is always asked for made room, at %d", i)
		}
	}
	w.cache.mustAgree(t)
}

func TestEntriesTooLargeAreNotKept(t *testing.T) {
	w := newWorld(func(q *dns.Msg) *dns.Msg {
		r := answer()(q)
		for i := range 1000 {
			r.Answer = append(r.Answer, rrs(fmt.Sprintf("x.example. 60 IN TXT \"%032d\"", i))...)
		}
		return r
	})
	w.cache.limit = 100 << 10
	for range 2 {
		if r := (asked{name: "x.example.", kind: dns.TypeTXT, tcp: true}).put(t, w.Forwarder); len(r.Answer) == 0 {
			t.Error("no answer")
		}
	}
	if n := w.count(0); n != 2 {
		t.Errorf("asked %d times", n)
	}
	w.cache.mustAgree(t)
}

func TestSweepRemovesWhatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(answer("x.example. 60 IN A 192.0.2.1"))
		defer w.run(t)()
		for i := range 100 {
			a(fmt.Sprintf("n%d.example.", i)).put(t, w.Forwarder)
		}
		time.Sleep(23 * time.Hour)
		if n := w.Stats().Cache.EntriesSuccess; n != 100 {
			t.Errorf("%d entries after 23 hours", n)
		}
		time.Sleep(2 * time.Hour)
		if s := w.Stats().Cache; s.EntriesSuccess != 0 || s.Bytes != 0 {
			t.Errorf("%+v after 25 hours", s)
		}
		w.cache.mustAgree(t)
	})
}

// mustAgree checks that each shard's books agree.
func (c *cache) mustAgree(t *testing.T) {
	t.Helper()
	for i := range c.shards {
		sh := &c.shards[i]
		bytes, negative := 0, 0
		for n, e := range sh.ring {
			bytes += e.cost()
			if e.negative {
				negative++
			}
			if int(e.slot) != n || sh.by[e.hash] != e {
				t.Errorf("shard %d: entry %d is at %d", i, n, e.slot)
			}
		}
		if bytes != sh.bytes || len(sh.by) != len(sh.ring) || negative != sh.stats.EntriesDenial || len(sh.ring)-negative != sh.stats.EntriesSuccess {
			t.Errorf("shard %d: %d bytes in %d entries (%d in the map), booked %d: %+v", i, bytes, len(sh.ring), len(sh.by), sh.bytes, sh.stats)
		}
	}
}

func TestCachedAllocatesNothing(t *testing.T) {
	w := newWorld(answer("x.example. 60 IN A 192.0.2.1", "x.example. 60 IN A 192.0.2.2"))
	for _, q := range []asked{a("x.example."), {name: "X.example.", kind: dns.TypeA, size: 1232, do: true}} {
		q.put(t, w.Forwarder)
		_, query := q.wire(t)
		buf := make([]byte, 0, 512)
		if n := testing.AllocsPerRun(100, func() { w.Cached(query, buf) }); n != 0 {
			t.Errorf("%+v: %v allocations", q, n)
		}
	}
}

func TestTenThousandNamesAreSmall(t *testing.T) {
	w := newWorld(answer("www.x.example. 60 IN A 192.0.2.1", "www.x.example. 60 IN A 192.0.2.2"))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const names = 10000
	before := heap()
	for i := range names {
		k := key{name: fmt.Sprintf("\x03www\x06n%05d\x07example\x00", i), kind: dns.TypeA, class: dns.ClassINET}
		e, err := w.reply(t.Context(), w.ups.Load().list[0], k)
		if err != nil {
			t.Fatal(err)
		}
		w.cache.put(e)
	}
	w.seen = nil
	each := (heap() - before) / names
	s := w.Stats().Cache
	t.Logf("%d bytes a name, %d booked", each, s.Bytes/names)
	if s.EntriesSuccess != names || s.Evictions != 0 {
		t.Errorf("%d of %d names are kept", s.EntriesSuccess, names)
	}
	if each > 512 {
		t.Errorf("%d bytes a name", each)
	}
	runtime.KeepAlive(w)
}

func BenchmarkCached(b *testing.B) {
	w := newWorld(answer("x.example. 3600 IN A 192.0.2.1", "x.example. 3600 IN A 192.0.2.2"))
	q := asked{name: "x.example.", kind: dns.TypeA, size: 1232}
	q.put(b, w.Forwarder)
	_, query := q.wire(b)
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		w.Cached(query, buf)
	}
}
