package endpoint

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

// made is an endpoint of a host; what varies with version is one label.
func made(host, identity string, n, version int) *Endpoint {
	c := fmt.Sprintf("c%04d", n)
	return &Endpoint{
		Tenant: DefaultTenant, Network: DefaultNetwork, ID: id(host, c, "eth0"), Host: host, Identity: identity, Container: c, IfName: "eth0",
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})}, Names: []string{"web"}, Labels: map[string]string{"version": fmt.Sprint(version)},
	}
}

// several are the endpoints from to to-1.
func several(host, identity string, from, to int) (list []*Endpoint) {
	for i := from; i < to; i++ {
		list = append(list, made(host, identity, i, 0))
	}
	return list
}

// guarded is a store that fails the test when a write touches a record of
// another host.
type guarded struct {
	*mem.Store
	t        *testing.T
	identity string

	mu      sync.Mutex // guards what follows
	commits int
	writes  int
}

func (g *guarded) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	keys := txn.Delete
	for _, p := range txn.Put {
		keys = append(keys, p.Key)
	}
	before := map[string]string{}
	for _, key := range keys {
		kv, err := g.Get(ctx, key)
		if e, bad := Parse(prefix, kv); err == nil && bad == nil {
			before[key] = e.Identity
		}
	}
	revision, err := g.Store.Commit(ctx, txn)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.commits++
	if err != nil {
		return revision, err
	}
	g.writes += len(keys)
	for key, whose := range before {
		if whose != g.identity {
			g.t.Errorf("%s of %s was written to", key, whose)
		}
	}
	return revision, nil
}

func (g *guarded) counts() (commits, writes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.commits, g.writes
}

// offer replaces what was not received yet.
func offer[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
}

// publisher is one that runs.
type publisher struct {
	st      *guarded
	own     chan []*Endpoint
	cancel  context.CancelFunc
	running sync.WaitGroup
	report  func() string
}

// publish starts a Publisher, as a daemon does. To be called in a bubble.
func publish(t *testing.T, st *mem.Store, host, identity string) *publisher {
	ctx, cancel := context.WithCancel(t.Context())
	p := &publisher{st: &guarded{Store: st, t: t, identity: identity}, own: make(chan []*Endpoint, 1), cancel: cancel}
	var mu sync.Mutex
	said := ""
	pub := Publisher{Store: p.st, Prefix: prefix, Host: host, Identity: identity, Report: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if said = ""; err != nil {
			said = err.Error()
		}
	}}
	p.report = func() string { mu.Lock(); defer mu.Unlock(); return said }
	views := make(chan store.Records[Endpoint], 1)
	p.running.Go(func() {
		for v, err := range Watch(ctx, st, prefix) {
			if err == nil {
				offer(views, v)
			}
		}
	})
	p.running.Go(func() {
		if err := pub.Run(ctx, p.own, views); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *publisher) stop() {
	p.cancel()
	p.running.Wait()
}

// stored is what the store has, by container and version, of one identity.
func stored(t *testing.T, st *mem.Store, identity string) string {
	t.Helper()
	s, err := st.List(t.Context(), Prefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kv := range s.KVs {
		if e, err := Parse(prefix, kv); err == nil && e.Identity == identity {
			fmt.Fprintf(&b, "%s=%s ", e.Container, e.Labels["version"])
		}
	}
	return b.String()
}

func want(list []*Endpoint) string {
	var b strings.Builder
	for _, e := range list { // in order
		fmt.Fprintf(&b, "%s=%s ", e.Container, e.Labels["version"])
	}
	return b.String()
}

func put(t *testing.T, st *mem.Store, list ...*Endpoint) {
	t.Helper()
	for _, e := range list {
		value, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: e.Key(prefix), Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAttachIsPublishedWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		synctest.Wait()
		begin := time.Now()
		for n := range 5 {
			p.own <- several("host1", "id1", 0, n)
			synctest.Wait()
			if got := stored(t, st, "id1"); got != want(several("host1", "id1", 0, n)) {
				t.Errorf("%d attached: %s", n, got)
			}
		}
		p.own <- several("host1", "id1", 2, 3)
		synctest.Wait()
		if got := stored(t, st, "id1"); got != "c0002=0 " || time.Since(begin) != 0 {
			t.Errorf("after DELs: %s, %v", got, time.Since(begin))
		}
		if commits, writes := p.st.counts(); commits != 5 || writes != 7 {
			t.Errorf("%d transactions of %d writes", commits, writes)
		}
		if p.report() != "" {
			t.Error(p.report())
		}
	})
}

func TestNothingIsWrittenBeforeBothSidesAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("host1", "id1", 0, 3)...)
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		time.Sleep(time.Minute)
		if commits, _ := p.st.counts(); commits != 0 {
			t.Error("records removed before the list of attachments was told")
		}
		p.own <- nil
		synctest.Wait()
		if got := stored(t, st, "id1"); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}

func TestRestartAdoptsWhatIsEqualAndRemovesWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, several("host0", "id0", 0, 3)...)
		put(t, st, several("host1", "id1", 0, 300)...)
		put(t, st, several("host10", "id10", 0, 3)...)
		p := publish(t, st.Dial(), "host1", "id1")
		p.own <- several("host1", "id1", 0, 300)
		time.Sleep(time.Hour)
		if commits, _ := p.st.counts(); commits != 0 {
			t.Errorf("%d transactions for nothing", commits)
		}
		p.stop()
		p = publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		own := append(several("host1", "id1", 100, 299), made("host1", "id1", 299, 1), made("host1", "id1", 300, 0))
		p.own <- own
		synctest.Wait()
		if got := stored(t, st, "id1"); got != want(own) {
			t.Errorf("has %s", got)
		}
		if commits, writes := p.st.counts(); commits != 1 || writes != 102 {
			t.Errorf("%d transactions of %d writes", commits, writes)
		}
		for _, other := range []string{"id0", "id10"} {
			if got := stored(t, st, other); got != "c0000=0 c0001=0 c0002=0 " {
				t.Errorf("%s has %s", other, got)
			}
		}
	})
}

func TestManyArePublishedInFewTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		own := several("host1", "id1", 0, 300)
		p.own <- own
		synctest.Wait()
		if commits, writes := p.st.counts(); commits != 3 || writes != 300 || stored(t, st, "id1") != want(own) {
			t.Errorf("%d transactions of %d writes", commits, writes)
		}
		for _, e := range own { // more than a transaction may hold by its size
			e.Labels = map[string]string{"version": "1", "x": strings.Repeat("<", maxLabels-100)}
		}
		p.own <- own
		synctest.Wait()
		if got := stored(t, st, "id1"); got != want(own) || p.report() != "" {
			t.Errorf("has %s, reports %s", got, p.report())
		}
	})
}

func TestEverythingIsRegisteredAgainAfterTheStoreWasWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		own := several("host1", "id1", 0, 10)
		p.own <- own
		synctest.Wait()
		backup := st.Save()
		st.Wipe()
		synctest.Wait()
		if got := stored(t, st, "id1"); got != want(own) {
			t.Errorf("after the wipe: %s", got)
		}
		p.own <- own[:5]
		synctest.Wait()
		st.Restore(backup)
		synctest.Wait()
		if got := stored(t, st, "id1"); got != want(own[:5]) {
			t.Errorf("after the restore: %s", got)
		}
	})
}

func TestOutageIsReportedAndOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		synctest.Wait()
		st.Down(true)
		p.own <- several("host1", "id1", 0, 3)
		time.Sleep(time.Hour)
		if !strings.Contains(p.report(), "publish endpoints of this host: commit: ") {
			t.Errorf("reported %q", p.report())
		}
		if commits, _ := p.st.counts(); commits < 1800 || commits > 3700 { // 1 to 2 s apart
			t.Errorf("%d attempts in an hour", commits)
		}
		st.Down(false)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := stored(t, st, "id1"); got != "c0000=0 c0001=0 c0002=0 " || p.report() != "" {
			t.Errorf("has %s, reports %s", got, p.report())
		}
	})
}

func TestRecordOfAnotherHostAtAKeyOfOursIsLeftAndReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put(t, st, made("host1", "former", 1, 7))
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		p.own <- several("host1", "id1", 0, 3)
		time.Sleep(time.Hour)
		if a, b := stored(t, st, "former"), stored(t, st, "id1"); a != "c0001=7 " || b != "c0000=0 c0002=0 " {
			t.Errorf("former %s, present %s", a, b)
		}
		if !strings.Contains(p.report(), `host1,c0001,eth0: Identity = "former"`) {
			t.Errorf("reported %q", p.report())
		}
		if commits, _ := p.st.counts(); commits != 1 {
			t.Errorf("%d transactions", commits)
		}
		if _, err := st.Commit(t.Context(), store.Txn{Delete: []string{made("host1", "", 1, 0).Key(prefix)}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := stored(t, st, "id1"); got != "c0000=0 c0001=0 c0002=0 " || p.report() != "" {
			t.Errorf("has %s, reports %s", got, p.report())
		}
	})
}

func TestGarbageAtAKeyOfOursIsOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		key := made("host1", "", 1, 0).Key(prefix)
		if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte("{")}}}); err != nil {
			t.Fatal(err)
		}
		p := publish(t, st.Dial(), "host1", "id1")
		defer p.stop()
		p.own <- several("host1", "id1", 0, 3)
		synctest.Wait()
		if got := stored(t, st, "id1"); got != "c0000=0 c0001=0 c0002=0 " || p.report() != "" {
			t.Errorf("has %s, reports %s", got, p.report())
		}
	})
}

func TestRecordDeletedBeforeAnyViewShowedItComesBack(t *testing.T) {
	st := mem.New()
	r := publishing{Publisher: &Publisher{Store: st, Prefix: prefix, Host: "host1", Identity: "id1"}}
	empty := store.Records[Endpoint]{Epoch: 1, Revision: 1}
	r.see(empty)
	r.hear(several("host1", "id1", 0, 1))
	r.step(t.Context())
	if _, err := st.Commit(t.Context(), store.Txn{Delete: []string{made("host1", "", 0, 0).Key(prefix)}}); err != nil {
		t.Fatal(err)
	}
	r.see(empty) // too old to tell
	r.step(t.Context())
	if got := stored(t, st, "id1"); got != "" {
		t.Errorf("an old view made it write %s", got)
	}
	empty.Revision = 3
	r.see(empty)
	r.step(t.Context())
	if got := stored(t, st, "id1"); got != "c0000=0 " {
		t.Errorf("has %q", got)
	}
}

func TestHostsOwnEndpointsAreFoundAmongMany(t *testing.T) {
	var all []*Endpoint
	for _, network := range []string{"a", "a-b", "b"} {
		for _, host := range []string{"h", "h-1", "h1", "h10", "h2"} {
			for n := range 3 {
				e := made(host, "id", n, 0)
				e.Network = network
				all = append(all, e)
			}
		}
	}
	sortByKey(all)
	for _, host := range []string{"h", "h-1", "h1", "h10", "h2", "h3", "a"} {
		n := 0
		for _, e := range all {
			if e.Host == host {
				n++
			}
		}
		found := ofHost(all, host)
		for _, e := range found {
			if e.Host != host {
				t.Errorf("%s: found one of %s", host, e.Host)
			}
		}
		if len(found) != n {
			t.Errorf("%s: found %d of %d", host, len(found), n)
		}
	}
}

// TestWhateverHappensTheStoreEndsEqualToTheLastState drives a Publisher with a
// random sequence of attachments, faults and restarts.
func TestWhateverHappensTheStoreEndsEqualToTheLastState(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { storm(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func storm(t *testing.T, rnd *rand.Rand) {
	st := mem.New()
	conn := st.Dial()
	backup := st.Save()
	p := publish(t, conn, "host1", "id1")
	var own []*Endpoint
	others := func() { // as another host's daemon would after a wipe
		put(t, st, made("host0", "id0", 1, 0), made("host1", "former", 5000, 0), made("host1", "other", 5001, 0), made("host1-2", "id2", 1, 0))
	}
	others()
	for range 60 {
		switch rnd.IntN(12) {
		default:
			own = nil
			for n := range 200 {
				if rnd.IntN(3) == 0 {
					own = append(own, made("host1", "id1", n, rnd.IntN(2)))
				}
			}
			offer(p.own, own)
		case 0:
			conn.Cut(true)
		case 1:
			conn.Cut(false)
		case 2:
			st.Full(rnd.IntN(2) == 0)
		case 3:
			st.Full(false)
			st.Wipe()
			others()
		case 4:
			backup = st.Save()
		case 5:
			st.Restore(backup)
			st.Full(false)
			others()
		case 6:
			p.stop()
			p = publish(t, conn, "host1", "id1")
			offer(p.own, own)
		case 7: // somebody meddles
			if s, err := st.List(t.Context(), Prefix(prefix)); err == nil && len(s.KVs) > 0 {
				kv := s.KVs[rnd.IntN(len(s.KVs))]
				if e, err := Parse(prefix, kv); err == nil && e.Identity == "id1" {
					txn := store.Txn{Delete: []string{kv.Key}}
					if rnd.IntN(2) == 0 {
						txn = store.Txn{Put: []store.Put{{Key: kv.Key, Value: []byte("{}")}}}
					}
					_, _ = st.Commit(t.Context(), txn) // it may be full
				}
			}
		}
		if rnd.IntN(2) == 0 {
			time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
		}
		synctest.Wait()
	}
	conn.Cut(false)
	st.Full(false)
	time.Sleep(5 * time.Second)
	synctest.Wait()
	if got := stored(t, st, "id1"); got != want(own) {
		t.Errorf("has  %s\nwant %s\nreports %s", got, want(own), p.report())
	}
	for _, other := range []string{"id0", "former", "other", "id2"} {
		if len(strings.Fields(stored(t, st, other))) != 1 {
			t.Errorf("%s has %q", other, stored(t, st, other))
		}
	}
	before, _ := p.st.counts()
	time.Sleep(time.Hour)
	if after, _ := p.st.counts(); after != before || p.report() != "" {
		t.Errorf("%d transactions with nothing to do; reports %q", after-before, p.report())
	}
	p.stop()
}
