package mem

import (
	"context"
	"fmt"
	"time"

	"github.com/flanneld/flanneld/store"
)

// lease is the server's side of a session. A session that can reach the
// server counts as renewing it all the time.
type lease struct {
	id     store.SessionID
	ttl    time.Duration
	owners map[*session]bool // who renews it: several after it was adopted
	timer  *time.Timer       // runs while it is not renewed
}

// session is the client's side. Everything but the constants is guarded by
// the server's mutex.
type session struct {
	s        *Store
	id       store.SessionID
	ttl      time.Duration
	done     chan struct{}
	over     bool // lost, left or closed
	timer    *time.Timer
	deadline time.Time
	unhook   func() bool
}

// Session implements store.Store.
func (s *Store) Session(ctx context.Context, ttl time.Duration, adopt store.SessionID) (store.Session, error) {
	v := s.srv
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return nil, fmt.Errorf("begin a session: %w", err)
	}
	l := v.leases[adopt]
	switch {
	case adopt == 0:
		v.last++
		l = &lease{id: v.last, ttl: ttl, owners: map[*session]bool{}}
		v.leases[l.id] = l
	case l == nil:
		return nil, fmt.Errorf("adopt session %x: %w", int64(adopt), store.ErrSessionLost)
	}
	n := &session{s: s, id: l.id, ttl: l.ttl, done: make(chan struct{})}
	l.owners[n] = true
	n.unhook = context.AfterFunc(ctx, n.Leave)
	v.rearm()
	return n, nil
}

func (n *session) ID() store.SessionID   { return n.id }
func (n *session) Done() <-chan struct{} { return n.done }

func (n *session) Expires() time.Time {
	n.s.srv.mu.Lock()
	defer n.s.srv.mu.Unlock()
	if n.over || n.timer != nil {
		return n.deadline
	}
	return time.Now().Add(n.ttl)
}

func (n *session) Leave() {
	n.s.srv.mu.Lock()
	defer n.s.srv.mu.Unlock()
	n.end()
	n.s.srv.rearm()
}

func (n *session) Close(ctx context.Context) error {
	n.Leave()
	v := n.s.srv
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := n.s.check(ctx); err != nil {
		return fmt.Errorf("close session %x: %w", int64(n.id), err)
	}
	v.expire(n.id)
	return nil
}

// end stops renewing; it needs the lock.
func (n *session) end() {
	if n.over {
		return
	}
	n.unhook()
	n.over = true
	if n.timer == nil {
		n.deadline = time.Now().Add(n.ttl)
	} else {
		n.timer.Stop()
	}
	if l := n.s.srv.leases[n.id]; l != nil {
		delete(l.owners, n)
	}
}

// lose is end, told to the session's owner; it needs the lock.
func (n *session) lose() {
	if !n.over {
		n.end()
		n.deadline = time.Now()
		close(n.done)
	}
}

// rearm makes every timer run that should, after anything changed. It needs
// the lock.
func (v *server) rearm() {
	for _, l := range v.leases {
		renewed := false
		for n := range l.owners {
			n.rearm(n.s.reachable())
			renewed = renewed || n.s.reachable()
		}
		switch stop := renewed || v.down; {
		case stop && l.timer != nil:
			l.timer.Stop()
			l.timer = nil
		case !stop && l.timer == nil:
			l.timer = v.after(l.ttl, func(t *time.Timer) {
				if l.timer == t {
					v.expire(l.id)
				}
			})
		}
	}
}

func (n *session) rearm(renewed bool) {
	switch {
	case renewed && n.timer != nil:
		n.timer.Stop()
		n.timer = nil
	case !renewed && n.timer == nil:
		n.deadline = time.Now().Add(n.ttl)
		n.timer = n.s.srv.after(n.ttl, func(t *time.Timer) {
			if n.timer == t {
				n.lose()
			}
		})
	}
}

// after runs f with the lock held. It needs the lock, so that f sees its own
// timer stored.
func (v *server) after(d time.Duration, f func(*time.Timer)) *time.Timer {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		f(t)
	})
	return t
}

// expire drops a lease and its keys. It needs the lock.
func (v *server) expire(id store.SessionID) {
	l := v.leases[id]
	if l == nil {
		return
	}
	delete(v.leases, id)
	if l.timer != nil {
		l.timer.Stop()
	}
	for n := range l.owners {
		n.lose()
	}
	dirty := false
	for key, kv := range v.kvs {
		if kv.Session == id {
			dirty = true
			delete(v.kvs, key)
		}
	}
	if dirty {
		v.revision++
		v.broadcast()
	}
}
