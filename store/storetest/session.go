package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
)

// ttl is the shortest that every etcd keeps to.
const ttl = 2 * time.Second

func begin(t *testing.T, s store.Store, ttl time.Duration, adopt store.SessionID) store.Session {
	t.Helper()
	n, err := s.Session(t.Context(), ttl, adopt)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func bound(n store.Session, names ...string) store.Txn {
	x := put(names...)
	for i := range x.Put {
		x.Put[i].Session = n.ID()
	}
	return x
}

func expectLost(t *testing.T, n store.Session, within time.Duration) {
	t.Helper()
	select {
	case <-n.Done():
	case <-time.After(within):
		t.Fatalf("the session was not lost within %v", within)
	}
}

func expectAlive(t *testing.T, n store.Session) {
	t.Helper()
	select {
	case <-n.Done():
		t.Fatal("the session was lost")
	default:
	}
	if left := time.Until(n.Expires()); left <= 0 {
		t.Errorf("the session expired %v ago", -left)
	}
}

func testSession(t *testing.T, s Subject) {
	n := begin(t, s.Store, ttl, 0)
	must(t, s.Store, bound(n, "mine"))
	v := Watch(t, s.Other, dir)
	if snap := v.Has("mine"); snap.KVs[0].Session != n.ID() {
		t.Errorf("bound to %x, want %x", snap.KVs[0].Session, n.ID())
	}
	time.Sleep(2 * ttl)
	expectAlive(t, n)
	if kv, err := s.Other.Get(t.Context(), dir+"mine"); err != nil || kv.ModRevision == 0 {
		t.Errorf("the key of a living session is gone: %v", err)
	}
	if left := time.Until(n.Expires()); left > ttl {
		t.Errorf("expires in %v, the TTL is %v", left, ttl)
	}
}

func testSessionClose(t *testing.T, s Subject) {
	n := begin(t, s.Store, time.Hour, 0)
	must(t, s.Store, bound(n, "mine"))
	must(t, s.Store, put("free"))
	v := Watch(t, s.Other, dir)
	v.Has("free", "mine")
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.Has("free")
	n.Leave()
	if err := n.Close(t.Context()); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func testSessionLeave(t *testing.T, s Subject) {
	left, gone := begin(t, s.Store, ttl, 0), time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	ended, err := s.Store.Session(ctx, ttl, 0)
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Store, bound(left, "left"))
	must(t, s.Store, bound(ended, "ended"))
	v := Watch(t, s.Other, dir)
	v.Has("ended", "left")
	left.Leave()
	left.Leave()
	cancel()
	v.Has()
	if d := time.Since(gone); d < ttl/2 {
		t.Errorf("gone after %v, before the TTL", d)
	}
	select {
	case <-left.Done():
		t.Error("leaving is not losing")
	case <-ended.Done():
		t.Error("ending is not losing")
	default:
	}
}

func testSessionAdopt(t *testing.T, s Subject) {
	n := begin(t, s.Store, ttl, 0)
	must(t, s.Store, bound(n, "mine"))
	n.Leave()
	heir := begin(t, s.Other, ttl, n.ID())
	if heir.ID() != n.ID() {
		t.Errorf("adopted %x as %x", n.ID(), heir.ID())
	}
	time.Sleep(2 * ttl)
	expectAlive(t, heir)
	if kv, err := s.Store.Get(t.Context(), dir+"mine"); err != nil || kv.Session != heir.ID() {
		t.Errorf("%+v, %v: want it bound to %x", kv, err, heir.ID())
	}
	if err := heir.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Store.Session(t.Context(), ttl, heir.ID()); !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("adopting what is gone: %v", err)
	}
}

func testSessionRevoked(t *testing.T, s Subject) {
	n := begin(t, s.Store, ttl, 0)
	thief := begin(t, s.Other, ttl, n.ID())
	if err := thief.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectLost(t, n, ttl)
}

func testSessionRefused(t *testing.T, s Subject) {
	n := begin(t, s.Store, ttl, 0)
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Store.Commit(t.Context(), bound(n, "mine")); !errors.Is(err, store.ErrSessionLost) {
		t.Errorf("a key bound to a session that is gone: %v", err)
	}
}
