package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/storetest"
)

func open(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestDeadEndpointsArePassedOver(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	for i := range 4 {
		s := open(t, Options{Endpoints: []string{"http://127.0.0.1:1", endpoint, "http://127.0.0.1:2"}})
		s.next = i
		began := time.Now()
		if _, err := s.List(t.Context(), "/"); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("the first answer took %v", d)
		}
	}
}

func TestSilentEndpointIsLeftForAnother(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	proxy := storetest.NewProxy(t, strings.TrimPrefix(endpoint, "http://"), 0)
	s := open(t, Options{Endpoints: []string{"http://" + proxy.Addr, endpoint}})
	s.next = 0
	s.timing = timing{call: time.Second, probe: 200 * time.Millisecond, quiet: 300 * time.Millisecond, verify: time.Hour}
	v := storetest.Watch(t, s, "/")
	v.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	proxy.Mute(true)
	at := time.Now()
	if text := v.AwaitError(); !strings.Contains(text, proxy.Addr) || !strings.Contains(text, "no answer") {
		t.Errorf("the error names neither endpoint nor reason: %s", text)
	}
	v.Until("all is well again", func(s store.Snapshot) bool { return s.Fresh.After(at) })
	if _, err := s.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/a"}}}); err != nil {
		t.Error(err)
	}
}

func TestErrorsSayWhatToCheck(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	silent := storetest.NewProxy(t, strings.TrimPrefix(endpoint, "http://"), 0)
	silent.Mute(true)
	stopped, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, as for a stopped process
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopped.Close() })
	for name, c := range map[string]struct {
		endpoint string
		want     []string
	}{
		"etcd is stopped": {"http://" + stopped.Addr().String(), []string{stopped.Addr().String(), mute, "is etcd stopped"}},
		"stopped, TLS":    {"https://" + stopped.Addr().String(), []string{stopped.Addr().String(), mute, "is etcd stopped"}},
		"nobody listens":  {"http://127.0.0.1:1", []string{"http://127.0.0.1:1", "connection refused", "--etcd-endpoints"}},
		"no such name":    {"http://no-such-host.invalid:2379", []string{"no-such-host.invalid", "--etcd-endpoints"}},
		"TLS to plain":    {strings.Replace(endpoint, "http:", "https:", 1), []string{"https://", "http://", "--etcd-endpoints"}},
		"nobody answers":  {"http://" + silent.Addr, []string{silent.Addr, "firewall"}},
		"a closed socket": {"unix:/nowhere/etcd", []string{"/nowhere/etcd"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{Endpoints: []string{c.endpoint}, DialTimeout: 500 * time.Millisecond})
			s.timing.call = time.Second
			if strings.Contains(name, "stopped") {
				s.timing.call = 3 * time.Second // gRPC gives up a connection after one
			}
			_, err := s.Get(t.Context(), "/key")
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			for _, noise := range []string{"desc =", "transport:", "preface"} {
				if strings.Contains(err.Error(), noise) {
					t.Errorf("%q is in: %v", noise, err)
				}
			}
		})
	}
}

func TestCallsEndWithTheirContext(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	proxy := storetest.NewProxy(t, strings.TrimPrefix(endpoint, "http://"), 0)
	s := open(t, Options{Endpoints: []string{proxy.Addr}})
	if _, err := s.Get(t.Context(), "/key"); err != nil {
		t.Fatal(err)
	}
	proxy.Mute(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Commit(ctx, store.Txn{Put: []store.Put{{Key: "/a"}}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %v", d)
	}
}

// A server that forgot to tell about a change is found out by comparing.
func TestLostEventsAreFoundByComparing(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	s := open(t, Options{Endpoints: []string{endpoint}})
	commit := func(x store.Txn) {
		t.Helper()
		if _, err := s.Commit(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	commit(store.Txn{Put: []store.Put{{Key: "/p/a"}, {Key: "/p/b"}}})
	for name, x := range map[string]store.Txn{
		"put":            {Put: []store.Put{{Key: "/p/a", Value: []byte("2")}}},
		"new":            {Put: []store.Put{{Key: "/p/c"}}},
		"delete":         {Delete: []string{"/p/b"}},
		"put for delete": {Delete: []string{"/p/a"}, Put: []store.Put{{Key: "/p/d"}}},
	} {
		w := watch{s: s, prefix: "/p/"}
		if err := w.list(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.verify(t.Context()); err != nil {
			t.Errorf("%s: nothing changed: %v", name, err)
		}
		commit(store.Txn{Put: []store.Put{{Key: "/elsewhere"}}})
		if err := w.verify(t.Context()); err != nil {
			t.Errorf("%s: nothing changed under the prefix: %v", name, err)
		}
		commit(x)
		if err := w.verify(t.Context()); !errors.Is(err, errOutdated) {
			t.Errorf("%s: an event that never came was not missed: %v", name, err)
		}
		if err := w.list(t.Context()); err != nil || w.verify(t.Context()) != nil {
			t.Errorf("%s: still different after listing: %v", name, err)
		}
	}
}

func TestComparingRepairsAWatch(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	s, other := open(t, Options{Endpoints: []string{endpoint}}), open(t, Options{Endpoints: []string{endpoint}})
	s.timing.verify = 20 * time.Millisecond
	v := storetest.Watch(t, s, "/p/")
	first := v.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	for i := range 50 {
		if _, err := other.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: fmt.Sprint("/p/", i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	last := v.Until("50 keys", func(s store.Snapshot) bool { return len(s.KVs) == 50 })
	if last.Epoch != first.Epoch || !last.Fresh.Equal(first.Fresh) {
		t.Error("comparing is no failure of the connection")
	}
}

func TestCompactedRevisionIsListedAgain(t *testing.T) {
	endpoint, ctl := storetest.Etcd(t)
	s := open(t, Options{Endpoints: []string{endpoint}})
	var at int64
	for range 10 {
		var err error
		if at, err = s.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/a"}}}); err != nil {
			t.Fatal(err)
		}
	}
	ctl.Compact(at)
	k, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	f := feed{notify: make(chan struct{}, 1)}
	if err := f.receive(t.Context(), k, "/", 2); !errors.Is(err, errOutdated) {
		t.Errorf("got %v", err)
	}
}

func TestCloseLeavesNothingRunning(t *testing.T) {
	endpoint, _ := storetest.Etcd(t)
	before := runtime.NumGoroutine()
	s := open(t, Options{Endpoints: []string{endpoint}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, err := s.Session(ctx, 8*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range s.Watch(ctx, "/", nil) {
		cancel()
	}
	n.Leave()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "/a"); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestUserAndPassword(t *testing.T) {
	endpoint, ctl := storetest.Etcd(t, "--auth-token-ttl", "1")
	for _, args := range []string{
		"user add root:hunter2", "user grant-role root root",
		"role add net", "role grant-permission net readwrite --prefix=true /net/",
		"user add flanneld:swordfish", "user grant-role flanneld net", "auth enable",
	} {
		ctl.Ctl(strings.Fields(args)...)
	}
	var log bytes.Buffer
	o := Options{Endpoints: []string{endpoint}, Username: "flanneld", Password: "swordfish", Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	s := open(t, o)
	v := storetest.Watch(t, s, "/net/")
	v.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	n, err := s.Session(t.Context(), 2*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // the token expires meanwhile, where that can be set
		if _, err := s.Commit(t.Context(), store.Txn{
			If:  []store.Cond{{Key: "/net/", Prefix: true, ModRevision: 1 << 40}},
			Put: []store.Put{{Key: fmt.Sprint("/net/", i), Session: n.ID()}},
		}); err != nil {
			t.Fatal(err)
		}
		v.Until("the key", func(s store.Snapshot) bool { return len(s.KVs) == i+1 })
		time.Sleep(1500 * time.Millisecond)
	}
	select {
	case <-n.Done():
		t.Error("the session was lost")
	default:
	}
	_, err = s.Get(t.Context(), "/other")
	expect(t, err, "permission denied", "--etcd-username")

	o.Password = "wrong-swordfish"
	_, err = open(t, o).Get(t.Context(), "/net/a")
	expect(t, err, "authentication failed", "--etcd-password")
	o.Username, o.Password = "", ""
	_, err = open(t, o).Get(t.Context(), "/net/a")
	expect(t, err, "--etcd-username")
	if strings.Contains(log.String(), "swordfish") {
		t.Errorf("a secret in the log: %s", log.String())
	}
}

func expect(t *testing.T, err error, wants ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", wants)
		return
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "swordfish") {
		t.Errorf("a secret in: %v", err)
	}
}

// What does not fit into one answer is listed at one revision nevertheless.
func TestLongListIsOfOneRevision(t *testing.T) {
	endpoint, ctl := storetest.Etcd(t)
	s := open(t, Options{Endpoints: []string{endpoint}})
	s.atOnce = 3
	commit := func(x store.Txn) int64 {
		t.Helper()
		revision, err := s.Commit(t.Context(), x)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	var all store.Txn
	for i := range 10 {
		all.Put = append(all.Put, store.Put{Key: fmt.Sprint("/p/", i)})
	}
	commit(all)
	for what, meanwhile := range map[string]func(){
		"nothing":   func() {},
		"written":   func() { commit(all) },
		"deleted":   func() { commit(store.Txn{Delete: []string{"/p/8"}}) },
		"compacted": func() { ctl.Compact(commit(all)) },
	} {
		revision := commit(all)
		pages := 0
		snap, _, err := s.list(t.Context(), "/p/", func([]store.KV) {
			if pages++; pages == 2 {
				meanwhile()
			}
		})
		wantPages := 4
		if what == "compacted" {
			revision, wantPages = snap.Revision, 3 // it began again, with all at once
		}
		if err != nil || len(snap.KVs) != 10 || pages != wantPages || snap.Revision != revision {
			t.Errorf("%s: %d keys of revision %d, %d at first, in %d parts, %v", what, len(snap.KVs), snap.Revision, revision, pages, err)
		}
		for i, kv := range snap.KVs {
			if kv.Key != fmt.Sprint("/p/", i) || kv.ModRevision != revision {
				t.Errorf("%s: %+v", what, kv)
			}
		}
	}
}
