package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
)

func testWatch(t *testing.T, s Subject) {
	v := Watch(t, s.Store, dir)
	v.Has()
	at := must(t, s.Other, put("a"))
	if snap := v.Has("a"); snap.Revision < at || string(snap.KVs[0].Value) != "value of a" {
		t.Errorf("%+v: want revision %d at least", snap, at)
	}
	late := Watch(t, s.Store, dir)
	late.Has("a")
	must(t, s.Other, store.Txn{Put: []store.Put{{Key: "/contracts"}}})
	must(t, s.Other, put("c", "b"))
	v.Has("a", "b", "c")
	must(t, s.Other, store.Txn{Delete: []string{dir + "b"}})
	v.Has("a", "c")
	must(t, s.Other, store.Txn{Put: []store.Put{{Key: dir + "a", Value: []byte("again")}}})
	late.Until("a written again", func(s store.Snapshot) bool { return string(s.KVs[0].Value) == "again" && len(s.KVs) == 2 })
}

func testWatchParsed(t *testing.T, s Subject) {
	must(t, s.Other, put("a", "c"))
	var parsed atomic.Int32
	v := watchParsed(t, s.Store, dir, func(kv store.KV) any {
		parsed.Add(1)
		text := strings.TrimPrefix(kv.Key, dir) + " is " + string(kv.Value)
		return &text
	})
	has := func(snap store.Snapshot, key, value string) *string {
		t.Helper()
		for _, kv := range snap.KVs {
			if text, _ := kv.Parsed.(*string); kv.Key == dir+key && kv.Value == nil && text != nil && *text == key+" is "+value {
				return text
			}
		}
		t.Fatalf("%s is not %q in %+v", key, value, snap)
		return nil
	}
	first := v.Has("a", "c") // valid until the second
	a, c := has(first, "a", "value of a"), has(first, "c", "value of c")
	must(t, s.Other, store.Txn{Put: []store.Put{{Key: dir + "a", Value: []byte("1")}, {Key: dir + "b", Value: []byte("2")}}})
	second := v.Has("a", "b", "c")
	b := has(second, "b", "2")
	if has(second, "a", "1") == a || has(second, "c", "value of c") != c || parsed.Load() != 4 {
		t.Errorf("%d were parsed", parsed.Load())
	}
	need(t, s.Stop != nil)
	s.Stop()
	v.AwaitError()
	s.Start()
	v.Has("a", "b", "c")
	must(t, s.Other, store.Txn{Delete: []string{dir + "a"}})
	third := v.Has("b", "c")
	if has(third, "b", "2") != b || has(third, "c", "value of c") != c || parsed.Load() != 4 {
		t.Errorf("%d were parsed, after an outage without writes", parsed.Load())
	}
}

func testWatchAtomic(t *testing.T, s Subject) {
	v := Watch(t, s.Store, dir)
	v.Has()
	const n, last = 100, 30
	var g sync.WaitGroup
	g.Go(func() {
		for round := range last + 1 {
			var x store.Txn
			for i := range n {
				x.Put = append(x.Put, store.Put{Key: fmt.Sprint(dir, i), Value: fmt.Appendf(make([]byte, 0, 1000), "%0900d", round)})
			}
			must(t, s.Other, x)
		}
	})
	v.Until("the last round", func(snap store.Snapshot) bool {
		if len(snap.KVs) == 0 {
			return false
		}
		for _, kv := range snap.KVs {
			if string(kv.Value) != string(snap.KVs[0].Value) || len(snap.KVs) != n {
				t.Fatalf("half a transaction: %d keys, %.5s beside %.5s", len(snap.KVs), kv.Value, snap.KVs[0].Value)
			}
		}
		return string(snap.KVs[0].Value) == fmt.Sprintf("%0900d", last)
	})
	g.Wait()
}

func testSlowConsumer(t *testing.T, s Subject) {
	const n = 300
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var writing sync.WaitGroup
	count := 0
	for snap, err := range s.Store.Watch(ctx, dir, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; count == 1 {
			writing.Go(func() {
				for i := range n {
					must(t, s.Other, put(fmt.Sprint("key-", i%50)))
				}
				must(t, s.Other, put("last"))
			})
		}
		time.Sleep(50 * time.Millisecond)
		if slices.Contains(keys(snap), dir+"last") {
			if len(snap.KVs) != 51 {
				t.Errorf("%d keys, want 51", len(snap.KVs))
			}
			break
		}
	}
	writing.Wait()
	if ctx.Err() != nil || count > n/2 {
		t.Errorf("%d snapshots for %d changes to a consumer that is busy", count, n)
	}
}

func testWatchEnds(t *testing.T, s Subject) {
	must(t, s.Store, put("a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	count := 0
	for _, err := range s.Store.Watch(ctx, dir, nil) {
		if err != nil {
			t.Errorf("the end of the context is no failure: %v", err)
		}
		count++
		cancel()
	}
	for range s.Store.Watch(ctx, dir, nil) {
		count++
	}
	if count != 1 {
		t.Errorf("%d snapshots, want 1", count)
	}
	for range s.Store.Watch(t.Context(), dir, nil) {
		break
	}
}

func testImmutable(t *testing.T, s Subject) {
	must(t, s.Store, put("a", "c"))
	v := Watch(t, s.Store, dir)
	first := v.Has("a", "c")
	before := slices.Clone(first.KVs)
	must(t, s.Store, put("a", "b"))
	v.Has("a", "b", "c")
	must(t, s.Store, store.Txn{Delete: []string{dir + "a"}})
	v.Has("b", "c")
	if !slices.EqualFunc(before, first.KVs, sameKV) {
		t.Errorf("a snapshot changed from %v to %v", before, first.KVs)
	}
}
