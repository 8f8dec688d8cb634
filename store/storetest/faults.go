package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
)

func need(t *testing.T, hooks ...bool) {
	t.Helper()
	for _, there := range hooks {
		if !there {
			t.Skip("this store has no hook for it")
		}
	}
}

func testOutage(t *testing.T, s Subject) {
	need(t, s.Stop != nil)
	must(t, s.Store, put("before"))
	v := Watch(t, s.Store, dir)
	was := v.Has("before")
	s.Stop()
	v.AwaitError()
	if _, err := s.Store.Commit(t.Context(), put("lost")); err == nil {
		t.Error("a commit to a store that is away")
	}
	unknown := Watch(t, s.Store, "/elsewhere/")
	unknown.AwaitError()
	back := time.Now()
	s.Start()
	snap := v.Has("before")
	if snap.Fresh.Before(back) {
		t.Errorf("fresh since %v, the store was back at %v", snap.Fresh, back)
	}
	if snap.Epoch != was.Epoch {
		t.Errorf("epoch %d became %d", was.Epoch, snap.Epoch)
	}
	unknown.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	must(t, s.Store, put("after"))
	if later := v.Has("after", "before"); !later.Fresh.Equal(snap.Fresh) {
		t.Errorf("fresh since %v, then %v, without a failure", snap.Fresh, later.Fresh)
	}
}

func testSessionOutage(t *testing.T, s Subject) {
	need(t, s.Stop != nil)
	const ttl = 5 * time.Second
	n := begin(t, s.Store, ttl, 0)
	must(t, s.Store, bound(n, "mine"))
	s.Stop()
	time.Sleep(ttl / 4)
	s.Start()
	v := Watch(t, s.Other, dir)
	v.Has("mine")
	time.Sleep(ttl + time.Second)
	expectAlive(t, n)
	if kv, err := s.Other.Get(t.Context(), dir+"mine"); err != nil || kv.ModRevision == 0 {
		t.Errorf("the key of a living session is gone: %v", err)
	}
}

func testCompaction(t *testing.T, s Subject) {
	need(t, s.Stop != nil, s.Compact != nil)
	must(t, s.Store, put("stays", "goes"))
	v := Watch(t, s.Store, dir)
	was := v.Has("goes", "stays")
	s.Stop()
	v.AwaitError()
	s.Start()
	must(t, s.Other, store.Txn{Delete: []string{dir + "goes"}})
	var at int64
	for i := range 20 {
		at = must(t, s.Other, put("stays", fmt.Sprint("new-", i%3)))
	}
	s.Compact(at)
	if snap := v.Has("new-0", "new-1", "new-2", "stays"); snap.Epoch != was.Epoch {
		t.Errorf("epoch %d became %d", was.Epoch, snap.Epoch)
	}
	must(t, s.Other, put("later"))
	v.Has("later", "new-0", "new-1", "new-2", "stays")
}

func testWipe(t *testing.T, s Subject) {
	need(t, s.Wipe != nil)
	for range 10 {
		must(t, s.Store, put("old"))
	}
	v, idle := Watch(t, s.Store, dir), Watch(t, s.Store, "/elsewhere/")
	was := v.Has("old")
	idle.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	n := begin(t, s.Store, ttl, 0)
	s.Wipe()
	if snap := v.Has(); snap.Epoch == was.Epoch {
		t.Error("the same epoch after a wipe")
	}
	idle.Until("a new epoch", func(s store.Snapshot) bool { return s.Epoch != was.Epoch })
	expectLost(t, n, 2*ttl)
	must(t, s.Store, put("new"))
	v.Has("new")
}

func testRestore(t *testing.T, s Subject) {
	need(t, s.Save != nil)
	must(t, s.Store, put("kept"))
	restore := s.Save()
	for range 10 {
		must(t, s.Store, put("lost"))
	}
	v := Watch(t, s.Store, dir)
	was := v.Has("kept", "lost")
	restore()
	if snap := v.Has("kept"); snap.Epoch == was.Epoch {
		t.Error("the same epoch after a restore")
	}
}

// After a restore others may write so much that no revision goes backwards
// for a host that comes back late.
func testRestoreHidden(t *testing.T, s Subject) {
	need(t, s.Save != nil, s.Stop != nil)
	must(t, s.Store, put("kept"))
	restore := s.Save()
	must(t, s.Store, put("lost"))
	must(t, s.Store, put("late"))
	v := Watch(t, s.Store, dir)
	was := v.Has("kept", "late", "lost")
	s.Stop()
	v.AwaitError()
	restore()
	for range 10 {
		must(t, s.Other, put("other"))
	}
	v.Until("a new epoch", func(s store.Snapshot) bool { return s.Epoch != was.Epoch })
	must(t, s.Other, put("end"))
	v.Has("end", "kept", "other")
}

func testRestart(t *testing.T, s Subject) {
	need(t, s.Stop != nil)
	v := Watch(t, s.Store, dir)
	was := v.Has()
	for i := range 3 {
		must(t, s.Store, put(fmt.Sprint("key-", i)))
		s.Stop()
		s.Start()
	}
	if snap := v.Has("key-0", "key-1", "key-2"); snap.Epoch != was.Epoch {
		t.Errorf("epoch %d became %d", was.Epoch, snap.Epoch)
	}
}

func testCut(t *testing.T, s Subject) {
	need(t, s.Cut != nil)
	v := Watch(t, s.Store, dir)
	v.Has()
	at := time.Now()
	s.Cut()
	must(t, s.Other, put("unheard"))
	snap := v.Has("unheard")
	t.Logf("recovered after %v", time.Since(at))
	if d := time.Since(at); d > 15*time.Second {
		t.Errorf("recovered after %v", d)
	}
	if !snap.Fresh.After(at) {
		t.Errorf("fresh since %v, the connection was cut at %v", snap.Fresh, at)
	}
	must(t, s.Store, put("later"))
	v.Has("later", "unheard")
}

func testCutSession(t *testing.T, s Subject) {
	need(t, s.Cut != nil)
	n := begin(t, s.Store, 8*time.Second, 0)
	must(t, s.Store, bound(n, "mine"))
	s.Cut()
	time.Sleep(10 * time.Second) // longer than the TTL
	expectAlive(t, n)
	if kv, err := s.Other.Get(t.Context(), dir+"mine"); err != nil || kv.ModRevision == 0 {
		t.Errorf("the key of a living session is gone: %v", err)
	}
}
