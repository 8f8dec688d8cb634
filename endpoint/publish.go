package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// Publisher keeps the endpoints of this host in the store equal to what is
// attached here. First start, restart, an outage and a wiped store are one
// code path.
type Publisher struct {
	Store  store.Store
	Prefix string // of all keys, as --etcd-prefix
	// Host and Identity, both together, tell which endpoints are this host's.
	Host, Identity string
	// Report is told what keeps the Publisher from its aim, when that changes,
	// and nil when all is well. It must not block. nil: quiet.
	Report func(error)
}

const (
	callTimeout = 5 * time.Second
	// A transaction holds 128 writes and 1.5 MB; the keys and conditions need
	// some of that.
	mostWrites = 128
	mostBytes  = 1 << 20
)

// Run publishes the latest of own, whole each time, until ctx ends; it returns
// nil then and leaves what is in the store. views are Watch's, without those
// that come with an error. Of both only the latest counts, and nothing is
// written before there is one of each.
//
// What is equal is not written. A record of another host is never overwritten
// nor deleted: where one has a key of ours, that is reported. Errors of the
// store do not end Run, they are reported and the write is tried again.
func (p *Publisher) Run(ctx context.Context, own <-chan []*Endpoint, views <-chan store.Records[Endpoint]) error {
	r := &publishing{Publisher: p, backoff: store.Backoff{Max: 2 * time.Second}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-own:
			r.hear(o)
		case v := <-views:
			r.see(v)
		case <-timer.C:
		}
		for more := true; more; { // only the latest counts
			select {
			case o := <-own:
				r.hear(o)
			case v := <-views:
				r.see(v)
			default:
				more = false
			}
		}
		if next := r.step(ctx); next > 0 {
			timer.Reset(next)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// publishing is the state of one Run.
type publishing struct {
	*Publisher
	want     map[string]*Endpoint // by key
	heard    bool
	seen     bool
	found    []*Endpoint          // under this host's name in the latest view
	problems []error              // of that view
	have     map[string]*Endpoint // what the store has under this host's name
	current  bool                 // have is what was found, nothing was written since
	epoch    store.Epoch
	written  int64 // revision of the last write in epoch

	backoff   store.Backoff
	settled   bool      // nothing is to be done until something is heard or seen
	notBefore time.Time // the next attempt
	err       error     // of the last attempt
	told      string
}

func (r *publishing) hear(own []*Endpoint) {
	r.settled, r.heard, r.want = false, true, make(map[string]*Endpoint, len(own))
	for _, e := range own {
		r.want[e.Key(r.Prefix)] = e
	}
}

// see takes a view, unless it is older than what was written here.
func (r *publishing) see(v store.Records[Endpoint]) {
	if v.Epoch != r.epoch {
		r.epoch, r.written = v.Epoch, 0
	}
	if v.Revision < r.written {
		return
	}
	// A record that nobody wrote is the same pointer.
	found := ofHost(v.Values, r.Host)
	if r.settled && r.current && slices.Equal(found, r.found) && slices.Equal(v.Problems, r.problems) {
		return
	}
	r.settled, r.seen, r.current, r.found, r.problems = false, true, true, found, v.Problems
	r.have = make(map[string]*Endpoint, len(found))
	for _, e := range found {
		r.have[e.Key(r.Prefix)] = e
	}
	switch {
	case errors.Is(r.err, store.ErrConflict):
		r.notBefore = time.Time{} // this is what was waited for
	case r.err != nil && !errors.Is(r.err, store.ErrFull):
		// The store is back, for all hosts at once.
		if soon := time.Now().Add(rand.N(100 * time.Millisecond)); soon.Before(r.notBefore) {
			r.notBefore = soon
		}
	}
}

// ofHost finds the endpoints of one host among those of all, which are sorted
// by key. It costs little however many there are.
func ofHost(all []*Endpoint, host string) []*Endpoint {
	after := func(list []*Endpoint, key string) []*Endpoint {
		i, _ := slices.BinarySearchFunc(list, key, func(e *Endpoint, key string) int { return strings.Compare(e.Key(""), key) })
		return list[i:]
	}
	var found []*Endpoint
	for len(all) > 0 { // one turn for each network
		network := Prefix("") + all[0].Tenant + "/" + all[0].Network
		all = after(all, network+"/"+host+",")
		for len(all) > 0 && all[0].Host == host && strings.HasPrefix(all[0].Key(""), network+"/") {
			found, all = append(found, all[0]), all[1:]
		}
		all = after(all, network+"0") // the character after the slash
	}
	return found
}

// step does what is due and returns how long to wait for what is not; 0:
// there is nothing.
func (r *publishing) step(ctx context.Context) time.Duration {
	if r.settled || !r.heard || !r.seen {
		return 0
	}
	if wait := time.Until(r.notBefore); wait > 0 {
		return wait
	}
	writes, foreign, err := r.due(ctx)
	for len(writes) > 0 && err == nil {
		n := batch(writes)
		err = r.commit(ctx, writes[:n])
		writes = writes[n:]
	}
	if ctx.Err() != nil {
		return 0
	}
	if r.err = err; err != nil {
		err = fmt.Errorf("publish endpoints of this host: %w", err)
	}
	r.tell(errors.Join(err, foreign))
	if err == nil {
		r.settled = true
		r.backoff.Reset()
		return 0
	}
	wait := r.backoff.Next()
	r.notBefore = time.Now().Add(wait)
	return wait
}

// change is one key that is not as it should be.
type change struct {
	key   string
	at    int64     // revision that it is at; 0: absent
	to    *Endpoint // nil: delete it
	value []byte
}

// due lists the differences, by key.
func (r *publishing) due(ctx context.Context) (writes []change, foreign, err error) {
	for key, e := range r.have {
		if r.want[key] == nil && e.Identity == r.Identity {
			writes = append(writes, change{key: key, at: e.revision})
		}
	}
	var others []error
	for _, key := range slices.Sorted(maps.Keys(r.want)) {
		w := change{key: key, to: r.want[key]}
		have := r.have[key]
		if have == nil && r.broken(key) {
			if have, w.at, err = r.read(ctx, key); err != nil {
				return nil, nil, err
			}
		}
		switch {
		case have == nil:
		case have.Identity != r.Identity:
			others = append(others, &subnet.RecordError{Key: key, Field: "Identity", Value: quote(have.Identity),
				Remedy: "is an earlier life of this host, whose records go when no lease is its own, or another host of the same name: give each host a name of its own with --node-name"})
			continue
		case have.Equal(w.to):
			continue
		default:
			w.at = have.revision
		}
		if w.value, err = json.Marshal(w.to); err != nil {
			return nil, nil, fmt.Errorf("endpoint %s: %w", key, err)
		}
		writes = append(writes, w)
	}
	slices.SortFunc(writes, func(a, b change) int { return strings.Compare(a.key, b.key) })
	return writes, errors.Join(others...), nil
}

// broken tells whether the key is there and means nothing.
func (r *publishing) broken(key string) bool {
	return slices.ContainsFunc(r.problems, func(err error) bool {
		bad, ok := errors.AsType[*subnet.RecordError](err)
		return ok && bad.Key == key
	})
}

// read looks at a key that no view can tell of.
func (r *publishing) read(ctx context.Context, key string) (e *Endpoint, revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	kv, err := r.Store.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	if e, err := Parse(r.Prefix, kv); err == nil && kv.ModRevision != 0 {
		return e, kv.ModRevision, nil
	}
	return nil, kv.ModRevision, nil
}

// batch is how many of the first writes fit into one transaction.
func batch(writes []change) int {
	size := 0
	for i, w := range writes {
		if size += 2*len(w.key) + len(w.value); i == mostWrites || i > 0 && size > mostBytes {
			return i
		}
	}
	return len(writes)
}

// commit writes on condition that every key is as it was seen.
func (r *publishing) commit(ctx context.Context, writes []change) error {
	var t store.Txn
	for _, w := range writes {
		t.If = append(t.If, store.Cond{Key: w.key, ModRevision: w.at})
		if w.to == nil {
			t.Delete = append(t.Delete, w.key)
		} else {
			t.Put = append(t.Put, store.Put{Key: w.key, Value: w.value})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	revision, err := r.Store.Commit(ctx, t)
	if err != nil {
		return err
	}
	r.written, r.current = revision, false
	for _, w := range writes {
		if w.to == nil {
			delete(r.have, w.key)
			continue
		}
		e := *w.to
		e.revision = revision
		r.have[w.key] = &e
	}
	return nil
}

func (r *publishing) tell(err error) {
	if store.Turned(&r.told, err) && r.Report != nil {
		r.Report(err)
	}
}
