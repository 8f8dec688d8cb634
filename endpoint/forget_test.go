package endpoint

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store/mem"
)

func sortByKey(all []*Endpoint) {
	slices.SortFunc(all, func(a, b *Endpoint) int { return strings.Compare(a.Key(prefix), b.Key(prefix)) })
}

func TestEndpointsOfHostsWithoutLeaseAreStale(t *testing.T) {
	var all []*Endpoint
	for host, ids := range map[string][]string{"host1": {"id1", "former"}, "host2": {"id2"}, "host3": {"id3"}} {
		for _, id := range ids {
			all = append(all, several(host, id, 0, 3)...)
		}
	}
	asked := 0
	stale := Stale(all, func(host, identity string) bool {
		asked++
		return host == "host1" && identity == "id1" || identity == "id2"
	})
	of := map[string]int{}
	for _, e := range stale {
		of[e.Identity]++
	}
	if !maps.Equal(of, map[string]int{"former": 3, "id3": 3}) || asked != 4 {
		t.Errorf("%v, asked %d times", of, asked)
	}
}

// forgetters are daemons that each see the store and decide what is stale.
type forgetters struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
	stores  []*guarded
}

func forget(t *testing.T, st *mem.Store, n int, gone func(identity string) bool) *forgetters {
	ctx, cancel := context.WithCancel(t.Context())
	f := &forgetters{cancel: cancel}
	for i := range n {
		conn := st.Dial()
		g := &guarded{Store: conn, t: t, identity: "gone"}
		f.stores = append(f.stores, g)
		stale := make(chan []*Endpoint, 1)
		f.running.Go(func() {
			for v, err := range Watch(ctx, conn, prefix) {
				if err != nil {
					offer(stale, nil)
					continue
				}
				offer(stale, Stale(v.Values, func(_, identity string) bool { return !gone(identity) }))
			}
		})
		f.running.Go(func() {
			if err := (&Forgetter{Store: g, Prefix: prefix, Host: fmt.Sprint("host", i)}).Run(ctx, stale); err != nil {
				t.Error(err)
			}
		})
	}
	return f
}

func (f *forgetters) stop() {
	f.cancel()
	f.running.Wait()
}

func (f *forgetters) commits() (n int) {
	for _, g := range f.stores {
		c, _ := g.counts()
		n += c
	}
	return n
}

func isGone(identity string) bool { return identity == "gone" }

func TestOneOfManyDaemonsRemovesWhatAGoneHostLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("hostx", "gone", 0, 300)...)
		put(t, st, several("hosty", "there", 0, 3)...)
		f := forget(t, st, 100, isGone)
		defer f.stop()
		time.Sleep(19 * time.Second)
		if got := stored(t, st, "gone"); len(strings.Fields(got)) != 300 {
			t.Errorf("removed too soon, left %s", got)
		}
		time.Sleep(22 * time.Second)
		if got := stored(t, st, "gone"); got != "" {
			t.Errorf("left %s", got)
		}
		if got := stored(t, st, "there"); len(strings.Fields(got)) != 3 {
			t.Errorf("a host that is there has %s", got)
		}
		if n := f.commits(); n != 3 {
			t.Errorf("%d transactions, want 3 of one daemon", n)
		}
	})
}

func TestEarlierLifeOfThisHostIsRemovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("host0", "gone", 0, 3)...)
		p := publish(t, st.Dial(), "host0", "new")
		defer p.stop()
		p.own <- several("host0", "new", 0, 3) // the same containers, after a reboot
		synctest.Wait()
		begin := time.Now()
		f := forget(t, st, 1, isGone)
		defer f.stop()
		synctest.Wait()
		if got := stored(t, st, "new"); len(strings.Fields(got)) != 3 || time.Since(begin) != 0 || p.report() != "" {
			t.Errorf("has %s, reports %s", got, p.report())
		}
	})
}

func TestHostThatComesBackKeepsItsEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("hostx", "gone", 0, 3)...)
		var mu sync.Mutex
		gone := true
		f := forget(t, st, 3, func(identity string) bool { mu.Lock(); defer mu.Unlock(); return gone && identity == "gone" })
		defer f.stop()
		time.Sleep(15 * time.Second)
		mu.Lock()
		gone = false
		mu.Unlock()
		put(t, st, made("hosty", "there", 1, 0)) // everybody looks again
		time.Sleep(time.Hour)
		if got := stored(t, st, "gone"); len(strings.Fields(got)) != 3 || f.commits() != 0 {
			t.Errorf("has %s after %d transactions", got, f.commits())
		}
	})
}

func TestRecordThatIsWrittenMeanwhileIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("hostx", "gone", 0, 2)...)
		conn := st.Dial()
		var old []*Endpoint
		for v := range Watch(t.Context(), conn, prefix) {
			old = v.Values
			break
		}
		put(t, st, made("hostx", "gone", 1, 1))
		r := forgetting{Forgetter: &Forgetter{Store: conn, Prefix: prefix, Host: "hostx"}}
		r.hear(old)
		if next := r.step(t.Context()); next != 0 {
			t.Errorf("again in %v", next)
		}
		if got := stored(t, st, "gone"); got != "c0000=0 c0001=1 " {
			t.Errorf("has %s", got)
		}
	})
}

func TestOutageOnlyDelaysTheRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("hostx", "gone", 0, 3)...)
		f := forget(t, st, 2, isGone)
		defer f.stop()
		time.Sleep(10 * time.Second)
		st.Down(true)
		time.Sleep(time.Hour)
		if f.commits() != 0 {
			t.Error("tried without a store")
		}
		st.Down(false)
		time.Sleep(15 * time.Second)
		if got := stored(t, st, "gone"); len(strings.Fields(got)) != 3 {
			t.Error("removed right after an outage")
		}
		time.Sleep(30 * time.Second)
		if got := stored(t, st, "gone"); got != "" {
			t.Errorf("left %s", got)
		}
	})
}

func TestHostThatLeavesReleasesItsEndpoints(t *testing.T) {
	st := mem.New()
	put(t, st, several("hostx", "gone", 0, 300)...)
	put(t, st, several("hosty", "there", 0, 3)...)
	left := 300
	for _, identity := range []string{"", "gone", "gone"} {
		if err := Release(t.Context(), st.Dial(), prefix, identity); err != nil {
			t.Fatal(err)
		}
		if identity == "gone" {
			left = 0
		}
		for of, want := range map[string]int{"gone": left, "there": 3} {
			if got := stored(t, st, of); len(strings.Fields(got)) != want {
				t.Errorf("after the release of %q: %s, want %d of %s", identity, got, want, of)
			}
		}
	}
}
