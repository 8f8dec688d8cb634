package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld/flanneld/store"
)

// maxOps is etcd's limit of conditions and of writes in a transaction.
const maxOps = 128

// Store is the state in an etcd cluster.
type Store struct {
	opts      Options
	endpoints []string
	log       *slog.Logger
	timing    timing
	atOnce    int64
	users     atomic.Int32 // open watches and sessions
	wait      sync.WaitGroup

	mu     sync.Mutex // guards all below
	conn   *conn      // nil: none
	next   int        // endpoint to try next
	closed bool
	life   life
}

var _ store.Store = (*Store)(nil)

// life is what is known about the store's data, to notice that it was
// replaced.
type life struct {
	epoch    store.Epoch
	cluster  uint64
	revision int64         // the newest that was seen
	changed  chan struct{} // closed when epoch changes
}

// New checks o. It does not touch the network or the files: what is wrong
// there shows in the calls, which go on trying.
func New(o Options) (*Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	QuietGRPC()
	if o.DialTimeout <= 0 {
		o.DialTimeout = 3 * time.Second
	}
	s := &Store{
		opts:   o,
		log:    o.Log,
		timing: defaultTiming,
		atOnce: atOnce,
		next:   rand.IntN(len(o.Endpoints)),
		life:   life{changed: make(chan struct{})},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, e := range o.Endpoints {
		e = normal(e)
		s.endpoints = append(s.endpoints, e)
		if o.wantsTLS() && !o.isTLS(e) && !loopback(e) {
			s.log.Warn("etcd connection is not encrypted: use https:// in --etcd-endpoints", "endpoint", e)
		}
	}
	return s, nil
}

// Close lets go of the connection; what still uses it fails. Sessions are
// left as they are.
func (s *Store) Close() error {
	s.mu.Lock()
	k := s.conn
	s.conn, s.closed = nil, true
	s.mu.Unlock()
	if k != nil {
		k.kill(errClosed)
	}
	s.wait.Wait()
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	kv := store.KV{Key: key}
	err := s.call(ctx, "get "+key, func(ctx context.Context, k *conn) error {
		before := s.seen()
		r, err := k.cli.Get(ctx, key)
		if err != nil {
			return err
		}
		s.observe(r.Header, before)
		if len(r.Kvs) > 0 {
			kv = convert(r.Kvs[0])
		}
		return nil
	})
	return kv, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	snap, _, err := s.list(ctx, prefix, func([]store.KV) {})
	return snap, err
}

// atOnce is how many keys travel in one answer, which is in memory several
// times over until it is read. It is not small, since for each answer etcd
// counts all keys that are left.
const atOnce = 10_000

// list calls page with parts of the snapshot, in order, which it may change.
// It also returns the connection that answered.
func (s *Store) list(ctx context.Context, prefix string, page func([]store.KV)) (snap store.Snapshot, k *conn, err error) {
	return s.listIn(ctx, s.atOnce, prefix, page)
}

// listIn is list with so many keys in one answer; 0: all.
func (s *Store) listIn(ctx context.Context, atOnce int64, prefix string, page func([]store.KV)) (snap store.Snapshot, k *conn, err error) {
	from, end := cmp.Or(prefix, "\x00"), clientv3.GetPrefixRangeEnd(prefix)
	get := func(ctx context.Context, c *conn) error {
		before := s.seen()
		r, err := c.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(snap.Revision), clientv3.WithLimit(atOnce))
		if err != nil {
			return err
		}
		epoch := s.observe(r.Header, before)
		if k == nil {
			k = c
			snap = store.Snapshot{Epoch: epoch, Revision: r.Header.Revision, KVs: make([]store.KV, 0, r.Count), Fresh: time.Now()}
		}
		if epoch != snap.Epoch {
			return errReplaced
		}
		had := len(snap.KVs)
		for _, kv := range r.Kvs {
			snap.KVs = append(snap.KVs, convert(kv))
		}
		page(snap.KVs[had:])
		from = ""
		if r.More {
			from = snap.KVs[len(snap.KVs)-1].Key + "\x00"
		}
		return nil
	}
	err = s.call(ctx, "list "+prefix, get)
	for err == nil && from != "" {
		err = s.ask(ctx, k, s.timing.call, get)
		if errors.Is(err, rpctypes.ErrCompacted) { // the revision that was begun with is gone
			return s.listIn(ctx, 0, prefix, page)
		}
		err = k.explain("list "+prefix, err)
	}
	if err != nil {
		return store.Snapshot{}, nil, err
	}
	return snap, k, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, t store.Txn) (int64, error) {
	if n := len(t.Put) + len(t.Delete); n > maxOps || len(t.If) > maxOps {
		return 0, fmt.Errorf("transaction of %d conditions and %d writes: etcd's limit is %d of each: split it", len(t.If), n, maxOps)
	}
	var revision int64
	err := s.call(ctx, "commit"+about(t), func(ctx context.Context, k *conn) error {
		before := s.seen()
		r, err := k.cli.Txn(ctx).If(conditions(t)...).Then(operations(t)...).Commit()
		if err != nil {
			return err
		}
		s.observe(r.Header, before)
		if !r.Succeeded {
			return store.ErrConflict
		}
		revision = r.Header.Revision
		return nil
	})
	return revision, err
}

// about names what a transaction writes.
func about(t store.Txn) string {
	for _, p := range t.Put {
		return " " + p.Key
	}
	for _, key := range t.Delete {
		return " deletion of " + key
	}
	return ""
}

func conditions(t store.Txn) []clientv3.Cmp {
	cs := make([]clientv3.Cmp, 0, len(t.If))
	for _, c := range t.If {
		if c.Prefix {
			// A comparison with a range of no keys holds.
			cs = append(cs, clientv3.Compare(clientv3.ModRevision(c.Key).WithPrefix(), "<", c.ModRevision+1))
		} else {
			cs = append(cs, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.ModRevision))
		}
	}
	return cs
}

func operations(t store.Txn) []clientv3.Op {
	ops := make([]clientv3.Op, 0, len(t.Put)+len(t.Delete))
	for _, p := range t.Put {
		ops = append(ops, clientv3.OpPut(p.Key, string(p.Value), clientv3.WithLease(clientv3.LeaseID(p.Session))))
	}
	for _, key := range t.Delete {
		ops = append(ops, clientv3.OpDelete(key))
	}
	return ops
}

// seen is the newest revision that was seen: an answer to a request that
// begins now cannot be older, unless the data was replaced.
func (s *Store) seen() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life.revision
}

// observe compares an answer with what was known before the request was
// made, and returns the epoch that the answer belongs to.
func (s *Store) observe(h *pb.ResponseHeader, before int64) store.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.life
	switch {
	case l.cluster == 0:
		l.epoch = 1
	case h.ClusterId != l.cluster, h.Revision < before && before <= l.revision:
		s.renew()
		l.revision = 0
	}
	l.cluster, l.revision = h.ClusterId, max(l.revision, h.Revision)
	return l.epoch
}

// advance notes a revision that a watch of an epoch saw.
func (s *Store) advance(e store.Epoch, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.epoch == e {
		s.life.revision = max(s.life.revision, revision)
	}
}

// renew begins a new epoch. It needs the lock.
func (s *Store) renew() {
	s.life.epoch++
	close(s.life.changed)
	s.life.changed = make(chan struct{})
}

// epoch returns the present one and a channel that is closed when it ends.
func (s *Store) epoch() (store.Epoch, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life.epoch, s.life.changed
}
