package etcd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/flanneld/flanneld/store"
)

// TestMergeIsApplyingOneByOne compares merge with a map, on random events.
func TestMergeIsApplyingOneByOne(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	want := map[string]store.KV{}
	var kvs []store.KV
	revision := int64(1)
	for range 2000 {
		before := slices.Clone(kvs)
		events := map[string]*mvccpb.Event{}
		for range r.IntN(12) {
			revision++
			key := fmt.Sprintf("k%02d", r.IntN(40))
			e := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision, CreateRevision: revision, Value: []byte{byte(revision)}}}
			if r.IntN(3) == 0 {
				e.Type = mvccpb.DELETE
				delete(want, key)
			} else {
				want[key] = convert(e.Kv)
			}
			events[key] = e
		}
		now := merge(kvs, events, store.Parsing{})
		if !slices.EqualFunc(before, kvs, sameWrite) {
			t.Fatal("merge wrote to the old snapshot")
		}
		if amended := amend(before, events, store.Parsing{}); !slices.EqualFunc(amended, now, sameWrite) {
			t.Fatalf("merge makes %v, amend %v", now, amended)
		}
		kvs = now
		var sorted []store.KV
		for _, key := range slices.Sorted(maps.Keys(want)) {
			sorted = append(sorted, want[key])
		}
		if !slices.EqualFunc(sorted, kvs, sameWrite) {
			t.Fatalf("got %v, want %v", kvs, sorted)
		}
	}
}

func sameWrite(a, b store.KV) bool { return a.Key == b.Key && a.ModRevision == b.ModRevision }

func TestMergeDropsWhatItHasSeen(t *testing.T) {
	old := []store.KV{{Key: "a", ModRevision: 7, CreateRevision: 5}}
	late := map[string]*mvccpb.Event{"a": {Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 6, CreateRevision: 5}}}
	if got := merge(old, late, store.Parsing{}); len(got) != 1 || got[0].ModRevision != 7 {
		t.Errorf("an old event won: %v", got)
	}
}

func TestRewrittenHistoryIsNoticed(t *testing.T) {
	kv := func(key string, created, written int64, value string) store.KV {
		return store.KV{Key: key, CreateRevision: created, ModRevision: written, Value: []byte(value)}
	}
	old := store.Snapshot{Revision: 10, KVs: []store.KV{kv("a", 2, 9, "1"), kv("b", 3, 3, "1"), kv("d", 4, 4, "1")}}
	for name, c := range map[string]struct {
		now  []store.KV
		want bool
	}{
		"nothing happened":            {old.KVs, false},
		"all deleted":                 {nil, false},
		"written and deleted":         {[]store.KV{kv("a", 2, 12, "2"), kv("d", 4, 4, "1")}, false},
		"created":                     {[]store.KV{kv("a", 2, 9, "1"), kv("c", 11, 11, "1"), kv("z", 12, 12, "1")}, false},
		"deleted and created again":   {[]store.KV{kv("b", 11, 11, "1")}, false},
		"another value":               {[]store.KV{kv("a", 2, 9, "2")}, true},
		"an older write is back":      {[]store.KV{kv("a", 2, 8, "0")}, true},
		"a key that was not there":    {[]store.KV{kv("c", 5, 5, "1")}, true},
		"the same at the end":         {[]store.KV{kv("z", 5, 5, "1")}, true},
		"created in a past unknown":   {[]store.KV{kv("z", 5, 15, "1")}, true},
		"created earlier than it was": {[]store.KV{kv("d", 3, 15, "1")}, true},
	} {
		if got := rewritten(old, c.now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestAmendDropsWhatItHasSeen(t *testing.T) {
	old := []store.KV{{Key: "a", ModRevision: 7, CreateRevision: 5}}
	for _, kind := range []mvccpb.Event_EventType{mvccpb.PUT, mvccpb.DELETE} {
		late := map[string]*mvccpb.Event{"a": {Type: kind, Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 6, CreateRevision: 5}}}
		if got := amend(old, late, store.Parsing{}); len(got) != 1 || got[0].ModRevision != 7 {
			t.Errorf("an old event won: %v", got)
		}
	}
}

func BenchmarkMergeOneOf50000(b *testing.B) {
	kvs := make([]store.KV, 50000)
	for i := range kvs {
		kvs[i] = store.KV{Key: fmt.Sprintf("/coreos.com/network/subnets/%05d", i), ModRevision: 1}
	}
	e := map[string]*mvccpb.Event{kvs[777].Key: {Kv: &mvccpb.KeyValue{Key: []byte(kvs[777].Key), ModRevision: 2}}}
	for b.Loop() {
		merge(kvs, e, store.Parsing{})
	}
}
