package mem

import (
	"maps"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Dial returns another host's connection to the same data.
func (s *Store) Dial() *Store { return &Store{srv: s.srv} }

// Cut takes this connection away, or gives it back: others go on, and see the
// sessions of this one expire.
func (s *Store) Cut(cut bool) { s.change(func() { s.cut = cut }) }

// Down stops the server, or starts it again. While it is down nothing
// expires there; started again, it gives every session its full TTL.
func (s *Store) Down(down bool) { s.change(func() { s.srv.down = down }) }

// Full makes the server refuse writes that need space, or take them again.
func (s *Store) Full(full bool) { s.change(func() { s.srv.full = full }) }

// Wipe is a server that lost its data: nothing is there, a new epoch begins.
func (s *Store) Wipe() {
	s.Restore(Saved{revision: 1, kvs: map[string]store.KV{}, ttls: map[store.SessionID]time.Duration{}})
}

// Saved is a backup.
type Saved struct {
	revision int64
	kvs      map[string]store.KV
	ttls     map[store.SessionID]time.Duration
}

// Save makes a backup.
func (s *Store) Save() Saved {
	v := s.srv
	v.mu.Lock()
	defer v.mu.Unlock()
	b := Saved{revision: v.revision, kvs: maps.Clone(v.kvs), ttls: map[store.SessionID]time.Duration{}}
	for id, l := range v.leases {
		b.ttls[id] = l.ttl
	}
	return b
}

// Restore replaces the data by a backup and begins a new epoch: writes and
// sessions since are gone.
func (s *Store) Restore(b Saved) {
	s.change(func() {
		v := s.srv
		for id, l := range v.leases {
			if _, ok := b.ttls[id]; !ok {
				v.expire(l.id)
			}
		}
		for id, ttl := range b.ttls {
			if v.leases[id] == nil {
				v.leases[id] = &lease{id: id, ttl: ttl, owners: map[*session]bool{}}
			}
		}
		v.kvs, v.revision = maps.Clone(b.kvs), b.revision
		v.epoch++
	})
}

// change runs f with the lock held and lets everybody look again.
func (s *Store) change(f func()) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	f()
	s.srv.rearm()
	s.srv.broadcast()
}
