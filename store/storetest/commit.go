package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld/flanneld/store"
)

func testCommit(t *testing.T, s Subject) {
	kv, err := s.Store.Get(t.Context(), dir+"a")
	if err != nil || kv.Key != dir+"a" || kv.ModRevision != 0 || kv.Value != nil {
		t.Fatalf("an absent key: %+v, %v", kv, err)
	}
	first := must(t, s.Store, put("b", "a"))
	must(t, s.Store, store.Txn{Put: []store.Put{{Key: "/contracts", Value: []byte("outside")}}})
	second := must(t, s.Store, store.Txn{
		If:  []store.Cond{{Key: dir + "a", ModRevision: first}, {Key: dir + "c"}},
		Put: []store.Put{{Key: dir + "a", Value: []byte("new")}},
	})
	kv, err = s.Other.Get(t.Context(), dir+"a")
	if err != nil || string(kv.Value) != "new" || kv.ModRevision != second || kv.CreateRevision != first {
		t.Fatalf("%+v, %v: want it created at %d, written at %d", kv, err, first, second)
	}
	snap, err := s.Other.List(t.Context(), dir)
	if err != nil || !slices.Equal(keys(snap), []string{dir + "a", dir + "b"}) || snap.Revision < second {
		t.Fatalf("%+v, %v", snap, err)
	}
	must(t, s.Store, store.Txn{Delete: []string{dir + "a", dir + "absent"}})
	if snap, err = s.Store.List(t.Context(), dir); err != nil || !slices.Equal(keys(snap), []string{dir + "b"}) {
		t.Fatalf("%+v, %v", snap, err)
	}
}

func testAtomic(t *testing.T, s Subject) {
	must(t, s.Store, put("taken"))
	x := put("new")
	x.If = []store.Cond{{Key: dir + "free"}, {Key: dir + "taken"}}
	x.Delete = []string{dir + "taken"}
	if _, err := s.Store.Commit(t.Context(), x); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	snap, err := s.Store.List(t.Context(), dir)
	if err != nil || !slices.Equal(keys(snap), []string{dir + "taken"}) {
		t.Fatalf("%v, %v", keys(snap), err)
	}
	twice := put("x", "x")
	if _, err := s.Store.Commit(t.Context(), twice); err == nil || errors.Is(err, store.ErrConflict) {
		t.Fatalf("one key written twice: %v", err)
	}
}

func testLimits(t *testing.T, s Subject) {
	var x store.Txn
	for i := range 128 {
		x.Put = append(x.Put, store.Put{Key: fmt.Sprint(dir, i)})
		x.If = append(x.If, store.Cond{Key: fmt.Sprint(dir, i)})
	}
	must(t, s.Store, x)
	x.If = nil
	x.Delete = []string{dir + "one too many"}
	if _, err := s.Store.Commit(t.Context(), x); err == nil || !strings.Contains(err.Error(), "128") {
		t.Fatalf("129 writes: %v", err)
	}
}

func testPrefixCondition(t *testing.T, s Subject) {
	empty := put("first")
	empty.If = []store.Cond{{Key: dir, Prefix: true}}
	at := must(t, s.Store, empty)
	if _, err := s.Store.Commit(t.Context(), empty); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("the prefix was to be empty: %v", err)
	}
	outside := must(t, s.Store, store.Txn{Put: []store.Put{{Key: "/contracts"}}})
	x := put("second")
	x.If = []store.Cond{{Key: dir, Prefix: true, ModRevision: at}}
	must(t, s.Store, x)
	x.If[0].ModRevision = outside
	if _, err := s.Store.Commit(t.Context(), x); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("the prefix was written after %d: %v", outside, err)
	}
	snap, err := s.Store.List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Store, store.Txn{Delete: []string{dir + "first"}})
	x = put("third")
	x.If = []store.Cond{{Key: dir, Prefix: true, ModRevision: snap.Revision}}
	must(t, s.Store, x) // deletions do not break it
}

func testRace(t *testing.T, s Subject) {
	const n = 32
	stores := []store.Store{s.Store, s.Other}
	key := put("one key")
	key.If = []store.Cond{{Key: dir + "one key"}}
	if won := wins(t, n, func(i int) error { _, err := stores[i%2].Commit(t.Context(), key); return err }); won != 1 {
		t.Errorf("%d created one key", won)
	}
	snap, err := s.Store.List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if won := wins(t, n, func(i int) error {
		x := put(fmt.Sprint("one of many ", i))
		x.If = []store.Cond{{Key: dir, Prefix: true, ModRevision: snap.Revision}}
		_, err := stores[i%2].Commit(t.Context(), x)
		return err
	}); won != 1 {
		t.Errorf("%d wrote under a prefix that nobody was to have written", won)
	}
}

func testUpdate(t *testing.T, s Subject) {
	const n = 16
	stores := []store.Store{s.Store, s.Other}
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			_, err := store.Update(t.Context(), stores[i%2], dir+"counter", func(kv store.KV) (store.Txn, error) {
				count, _ := strconv.Atoi(string(kv.Value)) // absent: 0
				return store.Txn{Put: []store.Put{{Key: kv.Key, Value: []byte(strconv.Itoa(count + 1))}}}, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if kv, err := s.Store.Get(t.Context(), dir+"counter"); err != nil || string(kv.Value) != strconv.Itoa(n) {
		t.Errorf("%d increments made %q, %v", n, kv.Value, err)
	}
}

func testUpdatePrefix(t *testing.T, s Subject) {
	const n = 12
	stores := []store.Store{s.Store, s.Other}
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			_, err := store.UpdatePrefix(t.Context(), stores[i%2], dir, func(snap store.Snapshot) (store.Txn, error) {
				// Different keys for what must not be shared, as overlapping
				// subnets are.
				x := put(fmt.Sprintf("number-%d-of-host-%d", len(snap.KVs), i))
				return x, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	snap, err := s.Store.List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, k := range keys(snap) {
		number, _, _ := strings.Cut(k, "-of-")
		if seen[number] {
			t.Errorf("%s was given out twice: %v", number, keys(snap))
		}
		seen[number] = true
	}
	if len(seen) != n {
		t.Errorf("%d given out, want %d", len(seen), n)
	}
}
