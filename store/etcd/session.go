package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld/flanneld/store"
)

// session is one lease of etcd's, renewed by one goroutine.
type session struct {
	s       *Store
	id      store.SessionID
	ttl     atomic.Int64 // as the store has it
	expires atomic.Int64 // nanoseconds since start
	done    chan struct{}
	stop    context.CancelFunc
	stopped chan struct{}

	// The goroutine's own: the stream that renewals go by.
	conn   *conn
	stream pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
}

// Session implements store.Store.
func (s *Store) Session(ctx context.Context, ttl time.Duration, adopt store.SessionID) (store.Session, error) {
	n := &session{s: s, id: adopt, done: make(chan struct{}), stopped: make(chan struct{})}
	var err error
	if adopt == 0 {
		err = n.grant(ctx, ttl)
	} else {
		err = n.adopt(ctx)
	}
	if err != nil {
		return nil, err
	}
	ctx, n.stop = context.WithCancel(ctx)
	s.users.Add(1)
	go func() {
		defer close(n.stopped)
		defer s.users.Add(-1)
		defer n.hangUp()
		n.keep(ctx)
	}()
	return n, nil
}

func (n *session) grant(ctx context.Context, ttl time.Duration) error {
	return n.s.call(ctx, "begin a session", func(ctx context.Context, k *conn) error {
		began := time.Since(start)
		seconds := (ttl + time.Second - 1) / time.Second
		r, err := k.cli.Grant(ctx, int64(seconds))
		if err != nil {
			return err
		}
		n.id = store.SessionID(r.ID)
		n.renewed(began, r.TTL)
		return nil
	})
}

func (n *session) adopt(ctx context.Context) error {
	return n.s.call(ctx, fmt.Sprintf("adopt session %x", int64(n.id)), n.ping)
}

// renewed notes a success; the store counts from some time after began.
func (n *session) renewed(began time.Duration, seconds int64) {
	ttl := time.Duration(seconds) * time.Second
	n.ttl.Store(int64(ttl))
	n.expires.Store(int64(began + ttl))
}

func (n *session) ID() store.SessionID   { return n.id }
func (n *session) Done() <-chan struct{} { return n.done }
func (n *session) Expires() time.Time    { return start.Add(time.Duration(n.expires.Load())) }

func (n *session) left() time.Duration {
	return time.Duration(n.expires.Load()) - time.Since(start)
}

func (n *session) Leave() {
	n.stop()
	<-n.stopped
}

func (n *session) Close(ctx context.Context) error {
	n.Leave()
	err := n.s.call(ctx, fmt.Sprintf("close session %x", int64(n.id)), func(ctx context.Context, k *conn) error {
		_, err := k.cli.Revoke(ctx, clientv3.LeaseID(n.id))
		return err
	})
	if isLost(err) {
		return nil
	}
	return err
}

// keep renews the session at a third of its TTL and, when that does not work,
// again and again until it does or the TTL has passed.
func (n *session) keep(ctx context.Context) {
	ttl := time.Duration(n.ttl.Load())
	pause := store.Backoff{Min: 100 * time.Millisecond, Max: min(ttl/8, 10*time.Second)}
	limit := min(max(ttl/6, 500*time.Millisecond), n.s.timing.probe)
	wait := n.due()
	for {
		t := time.NewTimer(min(wait, max(n.left(), 0)))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if n.left() <= 0 {
			n.lose("not renewed in time")
			return
		}
		switch err := n.renew(ctx, limit); {
		case err == nil:
			pause.Reset()
			wait = n.due()
		case ctx.Err() != nil, errors.Is(err, errClosed):
			return
		case isLost(err):
			n.lose("the store does not know it")
			return
		default:
			wait = pause.Next()
		}
	}
}

// due is when to renew: a third of the TTL after the last time, a little
// earlier so that hosts which started together drift apart.
func (n *session) due() time.Duration {
	ttl := time.Duration(n.ttl.Load())
	return max(n.left()-ttl*2/3-rand.N(ttl/30+1), 0)
}

func (n *session) lose(why string) {
	n.s.log.Warn("session lost", "session", fmt.Sprintf("%x", int64(n.id)), "reason", why)
	close(n.done)
}

// isLost reports whether the store said that there is no such session.
func isLost(err error) bool {
	return err != nil && (errors.Is(err, store.ErrSessionLost) || strings.Contains(desc(err), leaseNotFound))
}

// renew asks once.
func (n *session) renew(ctx context.Context, limit time.Duration) error {
	k, err := n.s.connect()
	if err != nil {
		return err
	}
	return n.s.ask(ctx, k, limit, n.ping)
}

// ping renews on the stream that is open to k, or on a new one.
func (n *session) ping(ctx context.Context, k *conn) (err error) {
	defer func() {
		if err != nil {
			n.hangUp()
		}
	}()
	if n.conn != k {
		n.hangUp()
		var streaming context.Context
		streaming, n.cancel = context.WithCancel(context.Background())
		n.conn = k
		defer n.until(ctx)()
		if n.stream, err = k.lease.LeaseKeepAlive(streaming); err != nil {
			return err
		}
	} else {
		defer n.until(ctx)()
	}
	began := time.Since(start)
	if err := n.stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(n.id)}); err != nil {
		_, err = n.stream.Recv() // has the reason
		return err
	}
	r, err := n.stream.Recv()
	if err != nil {
		return err
	}
	if r.TTL <= 0 {
		return store.ErrSessionLost
	}
	n.renewed(began, r.TTL)
	return nil
}

// until makes the stream end with ctx, up to the call of what it returns.
func (n *session) until(ctx context.Context) func() {
	keep := context.AfterFunc(ctx, n.cancel)
	return func() {
		if !keep() {
			n.hangUp()
		}
	}
}

// hangUp lets go of the stream.
func (n *session) hangUp() {
	if n.conn != nil {
		n.cancel()
		n.conn, n.stream, n.cancel = nil, nil, nil
	}
}
