package etcd

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/flanneld/flanneld/store"
)

func convert(kv *mvccpb.KeyValue) store.KV {
	return store.KV{
		Key:            string(kv.Key),
		Value:          kv.Value,
		ModRevision:    kv.ModRevision,
		CreateRevision: kv.CreateRevision,
		Session:        store.SessionID(kv.Lease),
	}
}

// find returns where key is or belongs in a sorted slice.
func find(kvs []store.KV, key string) (int, bool) {
	return slices.BinarySearchFunc(kvs, key, func(kv store.KV, key string) int { return cmp.Compare(kv.Key, key) })
}

// merge returns a new sorted slice: old with the newest event of each key
// applied, and parsed. It copies what is between the changes and compares only to find
// them, so that one change among 50,000 keys costs a memory copy.
func merge(old []store.KV, events map[string]*mvccpb.Event, parsing store.Parsing) []store.KV {
	out := make([]store.KV, 0, len(old)+len(events))
	for _, key := range slices.Sorted(maps.Keys(events)) {
		i, found := find(old, key)
		out = append(out, old[:i]...)
		old = old[i:]
		e := events[key]
		if found {
			if old[0].ModRevision >= e.Kv.ModRevision { // seen already
				out, old = append(out, old[0]), old[1:]
				continue
			}
			old = old[1:]
		}
		if e.Type == mvccpb.PUT {
			out = append(out, convert(e.Kv))
			parsing.Take(out[len(out)-1:], nil)
		}
	}
	return append(out, old...)
}

// few events are cheaper to apply with amend, which moves what is behind each.
const few = 32

// amend is merge into old itself, for when nobody holds it: a new slice for
// each change among 100,000 keys would be most of the garbage.
func amend(old []store.KV, events map[string]*mvccpb.Event, parsing store.Parsing) []store.KV {
	for key, e := range events {
		i, found := find(old, key)
		switch {
		case found && old[i].ModRevision >= e.Kv.ModRevision: // seen already
		case e.Type == mvccpb.PUT:
			if !found {
				old = slices.Insert(old, i, store.KV{})
			}
			old[i] = convert(e.Kv)
			parsing.Take(old[i:i+1], nil)
		case found:
			old = slices.Delete(old, i, i+1)
		}
	}
	return old
}

// rewritten reports whether now cannot be the future of old: it holds a write
// no newer than old, which old, though complete, did not hold. Both are
// sorted.
func rewritten(old store.Snapshot, now []store.KV) bool {
	i := 0
	for _, kv := range now {
		if kv.CreateRevision > old.Revision {
			continue
		}
		for i < len(old.KVs) && old.KVs[i].Key < kv.Key {
			i++
		}
		if i == len(old.KVs) {
			return true
		}
		was := old.KVs[i]
		if was.Key != kv.Key || was.CreateRevision != kv.CreateRevision {
			return true
		}
		if kv.ModRevision <= old.Revision && (was.ModRevision != kv.ModRevision || was.Sum != kv.Sum || !bytes.Equal(was.Value, kv.Value)) {
			return true
		}
	}
	return false
}

// same reports whether two snapshots hold the same writes.
func same(a, b store.Snapshot) bool {
	return a.Epoch == b.Epoch && slices.EqualFunc(a.KVs, b.KVs, func(x, y store.KV) bool {
		return x.Key == y.Key && x.ModRevision == y.ModRevision
	})
}
