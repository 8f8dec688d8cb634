// Package dns answers containers' questions about names.
package dns

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Options of a Server; the zero value is the usual one, without outside names.
type Options struct {
	Forward Forwarder // nil: outside names are refused
	Port    uint16    // 0: 53
	// Rate is how many queries a second a source may send, Burst how many at
	// once. This host's own addresses are exempt.
	Rate  int // 0: 2,000
	Burst int // 0: as many as Rate
	// Outside is how many questions for outside names may wait for upstreams at
	// once, OutsideEach how many from one source.
	Outside     int // 0: 2,000
	OutsideEach int // 0: 200
	// Conns is how many TCP connections there may be, ConnsEach how many from
	// one source.
	Conns     int          // 0: 1,000
	ConnsEach int          // 0: 20
	Log       *slog.Logger // nil: quiet

	idle time.Duration // how long a connection may be silent; 0: 10 s
}

// View is who is answered what: the names of one zone, to the networks that may
// see them.
type View struct {
	Name string // unique
	// Addrs are where it answers, UDP and TCP. They need not be there yet. Views
	// without Listen may share some: then the first that has the question's
	// source among its Sources answers.
	Addrs []netip.Addr
	// Sources are who may ask, beside this host's own addresses (of the network
	// namespace without Listen; else Addrs and loopback).
	Sources []netip.Prefix
	Zone    Zone // nil (the interface): it has no names of its own
	// Listen calls open where its sockets belong and returns its error; nil:
	// in this network namespace. (*netns.NS).Do is one. It is called again
	// only for sockets that are not open.
	Listen func(open func() error) error
}

// Server answers on the addresses of its views. Its methods may be called at
// any time from any goroutine.
type Server struct {
	opts    Options
	log     *slog.Logger
	start   time.Time
	limiter *limiter
	outside *quota
	conns   *quota
	own     ownAddrs
	changed chan struct{} // holds one value if views was replaced

	mu       sync.Mutex // guards what follows
	views    []View
	problems map[place]string
	counters map[counted]*counters // also of sockets that were closed, while their view is there
}

// New returns a Server that does nothing before Run.
func New(opts Options) *Server {
	opts.Port = cmp.Or(opts.Port, 53)
	opts.Rate = cmp.Or(opts.Rate, 2000)
	opts.Burst = cmp.Or(opts.Burst, opts.Rate)
	opts.idle = cmp.Or(opts.idle, 10*time.Second)
	s := &Server{
		opts:     opts,
		log:      cmp.Or(opts.Log, slog.New(slog.DiscardHandler)),
		start:    time.Now(),
		limiter:  newLimiter(opts.Rate, opts.Burst),
		outside:  newQuota(cmp.Or(opts.Outside, 2000), cmp.Or(opts.OutsideEach, 200)),
		conns:    newQuota(cmp.Or(opts.Conns, 1000), cmp.Or(opts.ConnsEach, 20)),
		changed:  make(chan struct{}, 1),
		problems: map[place]string{},
		counters: map[counted]*counters{},
	}
	s.own.ask = make(chan struct{}, 1)
	return s
}

// Serve says what to answer, whole state: sockets of addresses that are no
// longer there are closed, those of new ones opened, and the others go on with
// the new zones without losing a query. It does not wait for that. Nobody may
// write to views afterwards.
func (s *Server) Serve(views []View) {
	s.mu.Lock()
	s.views = views
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Errors says which addresses are not answered at, and what to do; nil if all
// are. The order is stable.
func (s *Server) Errors() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Values(s.problems))
}

// now is the time since the start, the only clock here.
func (s *Server) now() time.Duration { return time.Since(s.start) }

// Run answers until ctx ends, and returns nil when all sockets are closed and
// all goroutines have ended. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	k := keeper{server: s, open: map[place]*socket{}}
	defer k.wg.Wait()
	defer cancel()
	s.own.refresh()
	k.wg.Go(func() { s.own.run(ctx) })

	backoff := store.Backoff{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		again := false
		select {
		case <-ctx.Done():
			k.closeAll()
			return nil
		case <-s.changed:
		case <-retry.C:
			again = true
		}
		failed, fresh := k.settle(ctx, again)
		switch {
		case !failed:
			retry.Stop()
			backoff.Reset()
		case fresh:
			backoff.Reset()
			retry.Reset(backoff.Next())
		case again:
			retry.Reset(backoff.Next())
		}
	}
}

// place is what a socket is told apart by.
type place struct {
	owner string // the view that opens it its own way; "": this namespace
	proto string // udp or tcp
	addr  netip.Addr
}

// views that answer at a place, and how to open it there.
type want struct {
	views  []*View
	listen func(open func() error) error
}

// wants is what is to be open.
func wants(views []View) map[place]*want {
	all := map[place]*want{}
	for i := range views {
		v := &views[i]
		for _, addr := range v.Addrs {
			for _, proto := range []string{"udp", "tcp"} {
				p := place{proto: proto, addr: addr.Unmap()}
				if v.Listen != nil {
					p.owner = v.Name
				}
				w := all[p]
				if w == nil {
					w = &want{listen: v.Listen}
					all[p] = w
				}
				if !slices.Contains(w.views, v) {
					w.views = append(w.views, v)
				}
			}
		}
	}
	return all
}
