package endpoint

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Stale are the endpoints of hosts that hold no lease any more: they will not
// come back. held tells whether a host, by name and identity, has a lease; it
// is asked once for each.
func Stale(all []*Endpoint, held func(host, identity string) bool) []*Endpoint {
	known := map[origin]bool{}
	var stale []*Endpoint
	for _, e := range all {
		lives, ok := known[e.origin()]
		if !ok {
			lives = held(e.Host, e.Identity)
			known[e.origin()] = lives
		}
		if !lives {
			stale = append(stale, e)
		}
	}
	return stale
}

// origin is whose an endpoint is.
type origin struct{ host, identity string }

func (e *Endpoint) origin() origin { return origin{e.Host, e.Identity} }

// Forgetter removes the endpoints of hosts that are gone. Every daemon runs
// one; each waits for a time of its own, and as a rule the first to wake
// leaves nothing to do for the others.
type Forgetter struct {
	Store  store.Store
	Prefix string // of all keys, as --etcd-prefix
	// Host is this host's name. What an earlier life of it left is removed at
	// once: nobody else would, and its containers may start again.
	Host string
	// Wait is the time between which and twice which others' endpoints are
	// left alone; 0: 20 s.
	Wait time.Duration
	// Report is told why nothing can be removed, when that changes, and nil
	// when it can. It must not block. nil: quiet.
	Report func(error)
}

// Run removes what is in the latest of stale, whole each time, until ctx ends;
// it returns nil then. What leaves the list is safe, and waits anew if it
// comes again. The caller must send an empty list while the store cannot be
// reached and within 60 s after a change of epoch: hosts look gone that are not.
//
// A record that was written again is not removed. Errors of the store are
// reported and it is tried again.
func (f *Forgetter) Run(ctx context.Context, stale <-chan []*Endpoint) error {
	r := &forgetting{Forgetter: f, due: map[origin]time.Time{}, removed: map[*Endpoint]bool{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-stale:
			r.hear(s)
		case <-timer.C:
		}
		next := r.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// forgetting is the state of one Run.
type forgetting struct {
	*Forgetter
	stale     []*Endpoint
	removed   map[*Endpoint]bool   // by this daemon; a list may be older than that
	due       map[origin]time.Time // when which host's are removed
	backoff   store.Backoff
	notBefore time.Time
	told      string
}

func (r *forgetting) hear(stale []*Endpoint) {
	wait := r.Wait
	if wait == 0 {
		wait = 20 * time.Second
	}
	due, removed := make(map[origin]time.Time, len(r.due)), map[*Endpoint]bool{}
	r.stale = nil
	for _, e := range stale {
		if r.removed[e] {
			removed[e] = true
			continue
		}
		r.stale = append(r.stale, e)
		o := e.origin()
		if _, ok := due[o]; ok {
			continue
		}
		at, ok := r.due[o]
		if !ok && o.host != r.Host {
			at = time.Now().Add(wait + rand.N(wait))
		}
		due[o] = at
	}
	r.due, r.removed = due, removed
}

// step removes what is due and returns how long to wait for the rest; 0: there
// is none.
func (r *forgetting) step(ctx context.Context) time.Duration {
	now := time.Now()
	if wait := r.notBefore.Sub(now); wait > 0 {
		return wait
	}
	var gone, rest []*Endpoint
	var next time.Duration
	for _, e := range r.stale {
		wait := r.due[e.origin()].Sub(now)
		if wait <= 0 {
			gone = append(gone, e)
			continue
		}
		rest = append(rest, e)
		if next == 0 || wait < next {
			next = wait
		}
	}
	if len(gone) == 0 {
		return next
	}
	err := r.remove(ctx, gone)
	if ctx.Err() != nil {
		return 0
	}
	r.tell(err)
	if err != nil {
		wait := r.backoff.Next()
		r.notBefore = now.Add(wait)
		return wait
	}
	r.backoff.Reset()
	r.stale = rest
	return next
}

// remove deletes endpoints that are as they were seen. That others are not is
// no error: a later list tells.
func (r *forgetting) remove(ctx context.Context, gone []*Endpoint) error {
	for part := range slices.Chunk(gone, mostWrites) {
		var t store.Txn
		for _, e := range part {
			key := e.Key(r.Prefix)
			t.If = append(t.If, store.Cond{Key: key, ModRevision: e.revision})
			t.Delete = append(t.Delete, key)
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := r.Store.Commit(ctx, t)
		cancel()
		switch {
		case err == nil:
			for _, e := range part {
				r.removed[e] = true
			}
		case !errors.Is(err, store.ErrConflict):
			return fmt.Errorf("remove endpoints of %s, which is gone: %w", part[0].Host, err)
		}
	}
	return nil
}

// Release removes the endpoints of an identity: its host leaves the network for
// good. Nothing to remove is no error, nor is one that somebody wrote meanwhile.
func Release(ctx context.Context, st store.Store, etcdPrefix, identity string) error {
	if identity == "" {
		return nil // that would be all of those who have none
	}
	all, err := st.List(ctx, Prefix(etcdPrefix))
	if err != nil {
		return fmt.Errorf("release %s: %w", Prefix(etcdPrefix), err)
	}
	var gone []*Endpoint
	for _, kv := range all.KVs {
		if e, err := Parse(etcdPrefix, kv); err == nil && e.Identity == identity {
			gone = append(gone, e)
		}
	}
	r := &forgetting{Forgetter: &Forgetter{Store: st, Prefix: etcdPrefix}, removed: map[*Endpoint]bool{}}
	return r.remove(ctx, gone)
}

func (r *forgetting) tell(err error) {
	if store.Turned(&r.told, err) && r.Report != nil {
		r.Report(err)
	}
}
