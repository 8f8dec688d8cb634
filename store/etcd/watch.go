package etcd

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/flanneld/flanneld/store"
)

// Reasons to list again that are nobody's business.
var (
	errStopped  = errors.New("the consumer stopped")
	errOutdated = errors.New("list again")
)

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, parse func(store.KV) any) iter.Seq2[store.Snapshot, error] {
	return func(yield func(store.Snapshot, error) bool) {
		s.users.Add(1)
		defer s.users.Add(-1)
		w := watch{s: s, prefix: prefix, parsing: store.NewParsing(parse), yield: yield}
		pause := store.Backoff{Min: 50 * time.Millisecond, Max: 3 * time.Second}
		said := ""
		for {
			shown := w.shown
			err := w.follow(ctx)
			switch {
			case ctx.Err() != nil, errors.Is(err, errStopped):
				return
			case w.shown != shown:
				said = ""
				pause.Reset()
			}
			if errors.Is(err, errOutdated) {
				continue
			}
			if err.Error() != said {
				said = err.Error()
				w.stale = true
				if !yield(w.snap, err) {
					return
				}
			}
			if pause.Wait(ctx) != nil {
				return
			}
		}
	}
}

// watch is the state of one Watch over its connections.
type watch struct {
	s       *Store
	prefix  string
	parsing store.Parsing
	yield   func(store.Snapshot, error) bool

	conn     *conn          // that snap came by
	snap     store.Snapshot // the last one; zero: none
	stale    bool           // an error was yielded since
	shown    int            // snapshots yielded
	verified int64          // snap was compared with a complete list of this revision
}

// follow lists the prefix, then applies what the store says until that ends:
// it returns why, never nil.
func (w *watch) follow(ctx context.Context) error {
	if err := w.list(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := feed{notify: make(chan struct{}, 1)}
	var g sync.WaitGroup
	g.Go(func() { f.end(f.receive(ctx, w.conn, w.prefix, w.snap.Revision+1)) })
	defer g.Wait()
	defer cancel()
	if w.shown == 0 || w.stale {
		if !w.show() {
			return errStopped
		}
	}
	every := w.s.timing.verify
	verify := time.NewTimer(every - every/5 + rand.N(2*every/5))
	defer verify.Stop()
	for {
		now, changed := w.s.epoch()
		if now != w.snap.Epoch {
			return errOutdated
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-verify.C:
			if err := w.verify(ctx); err != nil {
				return err
			}
			verify.Reset(every - every/5 + rand.N(2*every/5))
		case <-f.notify:
			if err := w.apply(&f); err != nil {
				return err
			}
		}
	}
}

// list takes a new snapshot and yields it at once unless it says nothing new.
func (w *watch) list(ctx context.Context) error {
	snap, k, err := w.s.list(ctx, w.prefix, func(kvs []store.KV) { w.parsing.Take(kvs, w.snap.KVs) })
	if err != nil {
		return err
	}
	if w.conn != nil && w.snap.Epoch == snap.Epoch && rewritten(w.snap, snap.KVs) {
		snap.Epoch = w.s.replaced(snap.Epoch)
	}
	if k == w.conn && snap.Epoch == w.snap.Epoch {
		snap.Fresh = w.snap.Fresh
	}
	w.stale = w.stale || k != w.conn || !same(w.snap, snap)
	w.conn, w.snap, w.verified = k, snap, snap.Revision
	return nil
}

// replaced begins a new epoch because the data of epoch e turned out to be
// other data.
func (s *Store) replaced(e store.Epoch) store.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.epoch == e {
		s.renew()
	}
	return s.life.epoch
}

func (w *watch) show() bool {
	w.shown++
	w.stale = false
	return w.yield(w.snap, nil)
}

// apply takes what arrived, all of it at once.
func (w *watch) apply(f *feed) error {
	events, revision, err := f.take()
	if len(events) > 0 {
		if w.parsing.Reuses() && len(events) <= few {
			w.snap.KVs = amend(w.snap.KVs, events, w.parsing)
		} else {
			w.snap.KVs = merge(w.snap.KVs, events, w.parsing)
		}
		w.snap.Revision = revision
		w.s.advance(w.snap.Epoch, revision)
		if !w.show() {
			return errStopped
		}
	}
	if err == nil || errors.Is(err, errOutdated) {
		return err
	}
	err = w.conn.explain("watch "+w.prefix, err)
	w.s.fail(w.conn, err)
	return err
}

// verify compares the snapshot with the store, since servers of version 3.4
// have lost events: the keys written since the last comparison must be in
// it, and no others may be gone. Only those keys and a count travel.
func (w *watch) verify(ctx context.Context) error {
	var r *clientv3.GetResponse
	err := w.s.ask(ctx, w.conn, w.s.timing.call, func(ctx context.Context, k *conn) (err error) {
		r, err = k.cli.Get(ctx, w.prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithMinModRev(w.verified+1))
		return err
	})
	if err != nil {
		return explain(w.conn.endpoint, "compare "+w.prefix, err)
	}
	if r.Count != int64(len(w.snap.KVs)) {
		return errOutdated
	}
	for _, kv := range r.Kvs {
		i, ok := find(w.snap.KVs, string(kv.Key))
		if !ok || w.snap.KVs[i].ModRevision != kv.ModRevision {
			return errOutdated
		}
	}
	w.verified = r.Header.Revision
	return nil
}

// feed carries events from the goroutine that receives them to the one that
// yields: while that is busy only the newest event of each key is kept.
type feed struct {
	notify chan struct{} // holds one token when there is something to take

	mu       sync.Mutex // guards all below
	events   map[string]*mvccpb.Event
	revision int64
	err      error
}

func (f *feed) take() (events map[string]*mvccpb.Event, revision int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events, f.events = f.events, nil
	return events, f.revision, f.err
}

func (f *feed) put(events []*mvccpb.Event) {
	f.mu.Lock()
	if f.events == nil {
		f.events = make(map[string]*mvccpb.Event, len(events))
	}
	for _, e := range events {
		f.events[string(e.Kv.Key)] = e
		f.revision = max(f.revision, e.Kv.ModRevision)
	}
	f.mu.Unlock()
	f.wake()
}

func (f *feed) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	f.wake()
}

func (f *feed) wake() {
	select {
	case f.notify <- struct{}{}:
	default:
	}
}

// receive reads events from a revision on until the stream ends, and returns
// why it did. A transaction's events are put together or not at all.
func (f *feed) receive(ctx context.Context, k *conn, prefix string, from int64) error {
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	stream, err := k.watch.Watch(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key:           []byte(prefix),
		RangeEnd:      []byte(clientv3.GetPrefixRangeEnd(prefix)),
		StartRevision: from,
		Fragment:      true,
	}}}); err != nil {
		return err
	}
	var parts []*mvccpb.Event
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		k.alive()
		switch {
		case r.CompactRevision != 0:
			return errOutdated
		case r.Canceled:
			return errors.New(r.CancelReason)
		}
		parts = append(parts, r.Events...)
		if !r.Fragment && len(parts) > 0 {
			f.put(parts)
			parts = nil
		}
	}
}
