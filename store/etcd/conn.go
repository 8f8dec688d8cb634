package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// timing is what tests shorten.
type timing struct {
	call   time.Duration // one request, answered or not
	probe  time.Duration // one probe
	quiet  time.Duration // probe a connection that was silent for so long
	verify time.Duration // compare a watched prefix with the store so often
}

var defaultTiming = timing{call: 5 * time.Second, probe: 2 * time.Second, quiet: 5 * time.Second, verify: 10 * time.Minute}

// strikes is how many requests in a row must go unanswered, with nothing
// else heard, before a connection counts as dead.
const strikes = 2

// conn is one connection to one endpoint. It is never repaired: it fails once
// and for all, and the next request makes another.
//
// The library's client reconnects in silence, and its watcher and keepalive
// resume in silence; here the owner of a watch has to know, and a connection
// whose packets vanish has to be given up, so each has one connection of one
// endpoint, and streams are opened on it directly.
type conn struct {
	endpoint string
	cli      *clientv3.Client
	watch    pb.WatchClient
	lease    pb.LeaseClient
	login    login

	heard   atomic.Int64 // when the server last said anything: nanoseconds since start
	strikes atomic.Int32
	once    sync.Once
	dead    chan struct{}
	err     error // why it is dead; to be read after dead is closed
}

var start = time.Now()

// alive notes that the server said something.
func (k *conn) alive() {
	k.heard.Store(int64(time.Since(start)))
	k.strikes.Store(0)
}

// silence is how long nothing was heard.
func (k *conn) silence() time.Duration {
	return time.Since(start) - time.Duration(k.heard.Load())
}

// kill ends the connection and everything that waits for it.
func (k *conn) kill(err error) {
	k.once.Do(func() {
		k.err = err
		close(k.dead)
		_ = k.cli.Close() // says only that it was closed
	})
}

var errClosed = errors.New("the store is closed")

// connect returns the connection there is, or begins one to the next
// endpoint. It does not wait for the network; the first request does.
func (s *Store) connect() (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if s.conn != nil {
		return s.conn, nil
	}
	endpoint := s.endpoints[s.next%len(s.endpoints)]
	s.next++
	k, err := s.dial(endpoint)
	if err != nil {
		return nil, &unsentError{explain(endpoint, "connect", err)}
	}
	s.conn = k
	s.wait.Go(func() { s.guard(k) })
	return k, nil
}

// fail gives up a connection.
func (s *Store) fail(k *conn, err error) {
	s.mu.Lock()
	if s.conn == k {
		s.conn = nil
	}
	s.mu.Unlock()
	k.kill(err)
}

func (s *Store) dial(endpoint string) (*conn, error) {
	k := &conn{endpoint: endpoint, login: login{user: s.opts.Username, password: s.opts.Password}, dead: make(chan struct{})}
	c := clientv3.Config{
		Endpoints:       []string{endpoint},
		MaxUnaryRetries: 1, // who tries again is decided here
		Logger:          zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1, MaxDelay: time.Second},
				MinConnectTimeout: s.opts.DialTimeout,
			}),
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithPerRPCCredentials(&k.login),
			// Large lists need few round trips.
			grpc.WithInitialWindowSize(4 << 20),
			grpc.WithInitialConnWindowSize(4 << 20),
		},
	}
	if s.opts.isTLS(endpoint) {
		conf, err := s.opts.tlsConfig()
		if err != nil {
			return nil, err
		}
		c.TLS = conf
	}
	var err error
	if k.cli, err = clientv3.New(c); err != nil {
		return nil, err
	}
	k.watch = pb.NewWatchClient(k.cli.ActiveConnection())
	k.lease = pb.NewLeaseClient(k.cli.ActiveConnection())
	k.alive()
	return k, nil
}

// explain is the package's explain; if the connection was given up meanwhile,
// the reason for that is the better error.
func (k *conn) explain(doing string, err error) error {
	select {
	case <-k.dead:
		if status.Code(err) == codes.Canceled || errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
			return k.err
		}
	default:
	}
	return explain(k.endpoint, doing, err)
}

// failFast undoes the library's choice to wait, instead of saying that nobody
// listens there.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// call does one request with a bounded deadline. A request that certainly
// was not sent is tried on each endpoint once.
func (s *Store) call(ctx context.Context, doing string, f func(context.Context, *conn) error) error {
	var err error
	for range s.endpoints {
		var k *conn
		if k, err = s.connect(); err == nil {
			if err = s.ask(ctx, k, s.timing.call, f); err == nil {
				return nil
			}
			err = k.explain(doing, err)
		}
		if _, unsent := errors.AsType[*unsentError](err); !unsent || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// ask does one request on one connection and draws the conclusions about the
// connection. The error is the library's.
func (s *Store) ask(ctx context.Context, k *conn, limit time.Duration, f func(context.Context, *conn) error) error {
	began := time.Since(start)
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := k.login.with(timed, k, f)
	switch {
	case err == nil:
		k.alive()
	case ctx.Err() != nil:
		return context.Cause(ctx) // the caller gave up: that says nothing
	case timed.Err() != nil:
		err = fmt.Errorf("%w after %v", errSilent, limit)
		if time.Duration(k.heard.Load()) < began && k.strikes.Add(1) >= strikes {
			s.fail(k, explain(k.endpoint, "probe", err))
		}
	case isTransport(err):
		s.fail(k, explain(k.endpoint, "connection", err))
	default:
		k.alive()
	}
	return err
}

// guard probes a connection while somebody depends on it and it is silent,
// until it is dead. Packets that vanish are noticed after
// quiet + strikes × probe.
func (s *Store) guard(k *conn) {
	t := time.NewTimer(s.timing.quiet)
	defer t.Stop()
	for {
		select {
		case <-k.dead:
			return
		case <-t.C:
		}
		left := s.timing.quiet - k.silence()
		if s.users.Load() == 0 {
			left = s.timing.quiet
		}
		if left <= 0 {
			s.probe(k)
			left = 0
			if k.strikes.Load() == 0 {
				left = s.timing.quiet
			}
		}
		t.Reset(left + rand.N(50*time.Millisecond))
	}
}

// probe asks for a key through the cluster's quorum; that it may not be read
// is an answer too.
func (s *Store) probe(k *conn) {
	_ = s.ask(context.Background(), k, s.timing.probe, func(ctx context.Context, k *conn) error {
		_, err := k.cli.Get(ctx, "health", clientv3.WithKeysOnly())
		return err
	})
}
