// Package embedded is an etcd server of one member inside this process, for
// the first host of a cluster or a laptop. It keeps itself small: it drops
// history, gives back space, and refuses growth before etcd would freeze.
package embedded

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3compactor"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/flanneld/flanneld/store/etcd"
)

// Options say where the server keeps its data and who may reach it.
type Options struct {
	// Dir holds the data; it is made, mode 0700, if it is not there. One
	// server at a time uses it.
	Dir string
	// Listen is where clients connect. The zero value is 127.0.0.1:2379, an
	// unspecified address every interface, port 0 a free one.
	Listen netip.AddrPort
	// CertFile and KeyFile, both or none, make it speak TLS only. With CAFile
	// too, clients need a certificate of that authority.
	CertFile, KeyFile, CAFile string
	// Quota is the largest the database may become, in bytes; 0: 2 GiB. From
	// 80 % of it on nothing new is taken.
	Quota int64
	Log   *slog.Logger // nil: quiet

	// minFree is the space on the disk under Dir below which nothing new is
	// taken; 0: 64 MiB.
	minFree uint64
}

// Server is a running server.
type Server struct {
	opts    Options
	etcd    *embed.Etcd
	guard   *guard
	lock    *os.File
	addr    netip.AddrPort
	stop    context.CancelFunc
	running sync.WaitGroup
	once    sync.Once
}

// Serve starts a server and returns when it answers. ctx bounds the start
// only; Close ends it.
func Serve(ctx context.Context, o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the embedded etcd: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, lock: lock, guard: newGuard(o)}
	if err = check(o.Dir); err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, err
	}
	if o.exposed() {
		o.Log.Warn("embedded etcd is open to everybody on the network: give it a certificate, or let it listen on loopback", "listen", s.addr)
	}
	return s, nil
}

// complete fills in defaults and checks.
func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("the embedded etcd needs a directory: set --embed-etcd=DIR")
	}
	if !o.Listen.IsValid() {
		o.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 2379)
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return errors.New("the embedded etcd needs a certificate and its key: set both --etcd-certfile and --etcd-keyfile, or neither")
	}
	if o.CAFile != "" && o.CertFile == "" {
		return errors.New("the embedded etcd cannot check certificates without its own: set --etcd-certfile and --etcd-keyfile too")
	}
	if o.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile); err != nil {
			return fmt.Errorf("certificate of the embedded etcd, --etcd-certfile %s and --etcd-keyfile %s: %w", o.CertFile, o.KeyFile, err)
		}
	}
	if o.CAFile != "" {
		if _, err := os.Stat(o.CAFile); err != nil {
			return fmt.Errorf("authority of the embedded etcd, --etcd-cafile: %w", err)
		}
	}
	if o.Quota <= 0 {
		o.Quota = 2 << 30
	}
	if o.minFree == 0 {
		o.minFree = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// exposed reports whether anybody on the network may write.
func (o Options) exposed() bool { return !o.Listen.Addr().IsLoopback() && o.CertFile == "" }

// lockDir keeps a second server away; the lock is gone with the file's last
// descriptor.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the directory of the embedded etcd: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another embedded etcd uses %s: end it, or give this one another directory with --embed-etcd=DIR", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// smallSegments keeps the log of changes from taking 64 MB a file: this
// etcd has to fit on a laptop. The library has no other way to say so.
var smallSegments = sync.OnceFunc(func() { wal.SegmentSizeBytes = segmentBytes })

func (s *Server) start(ctx context.Context) error {
	smallSegments()
	etcd.QuietGRPC()
	e, err := startEtcd(s.config())
	if err != nil {
		return s.explain(err)
	}
	s.etcd = e
	select {
	case <-e.Server.ReadyNotify():
	case <-e.Server.StopNotify():
		err = errors.New("it stopped by itself")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		s.etcd.Close()
		return fmt.Errorf("start the embedded etcd in %s: %w", s.opts.Dir, err)
	}
	// A single member has no peers, and nobody else is to pose as one.
	for _, p := range e.Peers {
		_ = p.Listener.Close() // Close closes it again
	}
	s.addr = e.Clients[0].Addr().(*net.TCPAddr).AddrPort()
	s.addr = netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port())
	var running context.Context
	running, s.stop = context.WithCancel(context.Background())
	s.guard.watch(e.Server)
	s.running.Go(func() { s.guard.keep(running) })
	return nil
}

// startEtcd is the library's, which panics over some damage.
func startEtcd(c *embed.Config) (_ *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errUnreadable, r)
		}
	}()
	return embed.StartEtcd(c)
}

// errUnreadable: etcd does not understand the data.
var errUnreadable = errors.New("unreadable")

func (s *Server) explain(err error) error {
	switch {
	case errors.Is(err, errUnreadable), errors.Is(err, wal.ErrCRCMismatch), errors.Is(err, wal.ErrSnapshotNotFound),
		errors.Is(err, wal.ErrFileNotFound), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the log of changes in %s is damaged: %w: %s", s.opts.Dir, err, startAnew(s.opts.Dir))
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("start the embedded etcd: the disk under %s is full: make room on it: %w", s.opts.Dir, err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("start the embedded etcd: %s is in use: end what listens there (another etcd?), or choose another address with --embed-etcd-listen: %w", s.opts.Listen, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("start the embedded etcd: %s is no address of this host: correct --embed-etcd-listen: %w", s.opts.Listen, err)
	}
	return fmt.Errorf("start the embedded etcd in %s: %w", s.opts.Dir, err)
}

func (s *Server) config() *embed.Config {
	o := s.opts
	scheme := "http"
	c := embed.NewConfig()
	if o.CertFile != "" {
		scheme = "https"
		c.ClientTLSInfo = transport.TLSInfo{CertFile: o.CertFile, KeyFile: o.KeyFile, TrustedCAFile: o.CAFile, ClientCertAuth: o.CAFile != ""}
	}
	client := url.URL{Scheme: scheme, Host: o.Listen.String()}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.Name, c.Dir = "flanneld", o.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	// Only used for a new database: its cluster id then differs from that of
	// the database that was there before.
	c.InitialClusterToken = rand.Text()

	// A single member has nobody to wait for, and becomes leader at once.
	c.TickMs, c.ElectionMs = 10, 50
	c.QuotaBackendBytes = o.Quota
	c.AutoCompactionMode, c.AutoCompactionRetention = v3compactor.ModeRevision, "1000"
	c.BootstrapDefragThresholdMegabytes = 16
	c.SnapshotCount, c.SnapshotCatchUpEntries = 5000, 500
	c.MaxWalFiles, c.MaxSnapFiles = 2, 2
	// Connections of hosts that vanished are not kept for hours.
	c.GRPCKeepAliveInterval, c.GRPCKeepAliveTimeout = time.Minute, 10*time.Second
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(o.zap())
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.guard.unary),
		grpc.ChainStreamInterceptor(s.guard.stream),
	}
	return c
}

// Addr is where clients connect.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Endpoints is how this host reaches it.
func (s *Server) Endpoints() []string {
	a := s.addr.Addr()
	switch {
	case a.IsUnspecified() && a.Is6():
		a = netip.IPv6Loopback()
	case a.IsUnspecified():
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	scheme := "http://"
	if s.opts.CertFile != "" {
		scheme = "https://"
	}
	return []string{scheme + netip.AddrPortFrom(a, s.addr.Port()).String()}
}

// Client is how this process connects: with the server's own certificate,
// where there is one.
func (s *Server) Client() etcd.Options {
	return etcd.Options{Endpoints: s.Endpoints(), CAFile: s.opts.CAFile, CertFile: s.opts.CertFile, KeyFile: s.opts.KeyFile, Log: s.opts.Log}
}

// Done is closed when the server stopped, by Close or by itself.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close ends all requests and the server. It may be called twice.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.guard.close()
		s.stop()
		s.running.Wait()
		s.etcd.Close()
		_ = s.lock.Close() // nothing was written
	})
	return nil
}
