// Package mem is the store in memory, for tests: sessions expire by time (in
// a testing/synctest bubble too), and outages, wipes and restores are calls.
package mem

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flanneld/flanneld/store"
)

// ErrUnreachable is what every call returns during an outage.
var ErrUnreachable = errors.New("memory store: unreachable")

// maxOps is etcd's limit of conditions and of writes in a transaction.
const maxOps = 128

// Store is one host's connection to a store in memory. It starts no
// goroutine, and needs no Close.
type Store struct {
	srv *server
	cut bool // guarded by srv.mu
}

var _ store.Store = (*Store)(nil)

// server is the data that all connections share.
type server struct {
	mu       sync.Mutex // guards everything below, all sessions and leases
	changed  chan struct{}
	epoch    store.Epoch
	revision int64
	kvs      map[string]store.KV
	leases   map[store.SessionID]*lease
	last     store.SessionID
	down     bool
	full     bool
}

// New makes an empty store and a connection to it.
func New() *Store {
	return &Store{srv: &server{
		changed:  make(chan struct{}),
		epoch:    1,
		revision: 1,
		kvs:      map[string]store.KV{},
		leases:   map[store.SessionID]*lease{},
	}}
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, parse func(store.KV) any) iter.Seq2[store.Snapshot, error] {
	return func(yield func(store.Snapshot, error) bool) {
		var last store.Snapshot
		parsing := store.NewParsing(parse)
		first, failed := true, false
		for ctx.Err() == nil {
			now, changed, err := s.look(prefix)
			switch {
			case err != nil && !failed:
				failed = true
				if !yield(last, fmt.Errorf("watch %s: %w", prefix, err)) {
					return
				}
			case err == nil && (first || failed || differ(last, now)):
				parsing.Take(now.KVs, last.KVs)
				now.Fresh = last.Fresh
				if first || failed || now.Epoch != last.Epoch {
					now.Fresh = time.Now()
				}
				first, failed, last = false, false, now
				if !yield(now, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}
}

// look returns what is there and a channel that is closed when that changes.
func (s *Store) look(prefix string) (store.Snapshot, <-chan struct{}, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if !s.reachable() {
		return store.Snapshot{}, s.srv.changed, ErrUnreachable
	}
	return s.srv.snapshot(prefix), s.srv.changed, nil
}

// differ reports whether somebody who knows a should be told b.
func differ(a, b store.Snapshot) bool {
	return a.Epoch != b.Epoch || !slices.EqualFunc(a.KVs, b.KVs, func(x, y store.KV) bool {
		return x.Key == y.Key && x.ModRevision == y.ModRevision
	})
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return store.KV{}, fmt.Errorf("get %s: %w", key, err)
	}
	kv := s.srv.kvs[key]
	kv.Key = key
	return kv, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return store.Snapshot{}, fmt.Errorf("list %s: %w", prefix, err)
	}
	snap := s.srv.snapshot(prefix)
	snap.Fresh = time.Now()
	return snap, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, t store.Txn) (int64, error) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	err := s.check(ctx)
	if err == nil {
		err = s.srv.commit(t)
	}
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	return s.srv.revision, nil
}

func (s *Store) reachable() bool { return !s.cut && !s.srv.down }

func (s *Store) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !s.reachable() {
		return ErrUnreachable
	}
	return nil
}

// snapshot needs the lock.
func (v *server) snapshot(prefix string) store.Snapshot {
	snap := store.Snapshot{Epoch: v.epoch, Revision: v.revision}
	for _, key := range slices.Sorted(maps.Keys(v.kvs)) {
		if strings.HasPrefix(key, prefix) {
			snap.KVs = append(snap.KVs, v.kvs[key])
		}
	}
	return snap
}

// commit needs the lock.
func (v *server) commit(t store.Txn) error {
	if err := v.refuse(t); err != nil {
		return err
	}
	for _, c := range t.If {
		if !v.holds(c) {
			return store.ErrConflict
		}
	}
	for _, p := range t.Put {
		if p.Session != 0 && v.leases[p.Session] == nil {
			return store.ErrSessionLost
		}
	}
	next, dirty := v.revision+1, len(t.Put) > 0
	for _, p := range t.Put {
		kv := store.KV{Key: p.Key, Value: slices.Clone(p.Value), ModRevision: next, CreateRevision: next, Session: p.Session}
		if old, ok := v.kvs[p.Key]; ok {
			kv.CreateRevision = old.CreateRevision
		}
		v.kvs[p.Key] = kv
	}
	for _, key := range t.Delete {
		_, ok := v.kvs[key]
		dirty = dirty || ok
		delete(v.kvs, key)
	}
	if dirty {
		v.revision = next
		v.broadcast()
	}
	return nil
}

// refuse checks what does not depend on the conditions.
func (v *server) refuse(t store.Txn) error {
	if n := len(t.Put) + len(t.Delete); n > maxOps || len(t.If) > maxOps {
		return fmt.Errorf("transaction of %d conditions and %d writes: the limit is %d of each: split it", len(t.If), n, maxOps)
	}
	seen := map[string]bool{}
	for _, p := range t.Put {
		if old, ok := v.kvs[p.Key]; v.full && (!ok || len(p.Value) > len(old.Value)) {
			return store.ErrFull
		}
		if seen[p.Key] {
			return fmt.Errorf("key %s is written twice in one transaction", p.Key)
		}
		seen[p.Key] = true
	}
	for _, key := range t.Delete {
		if seen[key] {
			return fmt.Errorf("key %s is written twice in one transaction", key)
		}
		seen[key] = true
	}
	return nil
}

func (v *server) holds(c store.Cond) bool {
	if !c.Prefix {
		return v.kvs[c.Key].ModRevision == c.ModRevision
	}
	for key, kv := range v.kvs {
		if strings.HasPrefix(key, c.Key) && kv.ModRevision > c.ModRevision {
			return false
		}
	}
	return true
}

// broadcast needs the lock.
func (v *server) broadcast() {
	close(v.changed)
	v.changed = make(chan struct{})
}
