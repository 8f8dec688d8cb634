// Package forward answers questions about outside names: from its cache, else
// through the upstream servers of this host.
package forward

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a Forwarder; the zero value follows /etc/resolv.conf.
type Options struct {
	Upstreams  []netip.AddrPort // empty: those of ResolvConf
	ResolvConf string           // "": /etc/resolv.conf; not read if there are Upstreams
	// Own tells whether an address is this daemon's own, which is never asked:
	// a question would come back for ever. It is called for every question that
	// goes upstream, from any goroutine. nil: no address is.
	Own        func(netip.AddrPort) bool
	CacheBytes int          // memory for cached replies; 0: 16 MiB
	Log        *slog.Logger // nil: quiet

	port uint16 // of the servers in ResolvConf; 0: 53
}

// Query is one question about an outside name. Neither Msg nor Name is kept
// after the call that it is for.
type Query struct {
	// Msg is the query as it came: the reply takes over its id, the flags RD,
	// AD and CD, and the question's spelling. The one question stands
	// uncompressed at offset 12.
	Msg         []byte
	Name        []byte // the question's name in wire format, lower case, with the root's zero
	Type, Class uint16
	EDNS        bool // the query has an OPT record: the reply ends with one
	DO          bool // that asks for DNSSEC records
	Size        int  // of the largest reply: at least 512; 65535 over TCP
}

// Forwarder answers outside questions. Its methods may be called at any time
// from any goroutine, Cached and Resolve also before Run.
type Forwarder struct {
	opts     Options
	log      *slog.Logger
	cache    cache
	ups      atomic.Pointer[upstreams]
	gone     atomic.Bool // every upstream is down, or there is none
	flights  flights
	prefetch chan *entry   // hot entries near their end, from Cached to Run
	down     chan struct{} // holds one value if an upstream is doubted
	reload   chan struct{} // holds one value if resolv.conf is to be read now
	changed  chan struct{} // holds one value if there are new upstreams, or one went down
	loops    loops
	judging  sync.Mutex // so that the last to judge has seen the last change
	ask      func(ctx context.Context, up *upstream, k key) (*entry, error)
	counts   counts
	buffers  sync.Pool   // of *[udpBuffer]byte
	bare     atomic.Bool // "no upstream" was logged
}

// flights are the exchanges with upstreams that are under way.
type flights struct {
	mu     sync.Mutex // guards the fields up to wg
	byKey  map[key]*flight
	closed bool // Run returned
	wg     sync.WaitGroup
	stop   chan struct{} // closed when Run returns
}

// New returns a Forwarder that can already be asked: it has read the upstreams.
func New(opts Options) *Forwarder {
	opts.ResolvConf = cmp.Or(opts.ResolvConf, "/etc/resolv.conf")
	opts.CacheBytes = cmp.Or(opts.CacheBytes, 16<<20)
	opts.port = cmp.Or(opts.port, 53)
	if opts.Own == nil {
		opts.Own = func(netip.AddrPort) bool { return false }
	}
	f := &Forwarder{
		opts:     opts,
		log:      opts.Log,
		prefetch: make(chan *entry, 64),
		down:     make(chan struct{}, 1),
		reload:   make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),
		loops:    loops{out: map[string]*trial{}},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.flights.byKey = map[key]*flight{}
	f.flights.stop = make(chan struct{})
	f.cache.init(opts.CacheBytes)
	f.ask = f.exchange
	if len(opts.Upstreams) > 0 {
		f.use(slices.Clone(opts.Upstreams), "")
	} else {
		f.reread()
	}
	f.gone.Store(len(f.ups.Load().list) == 0)
	return f
}

// Run follows resolv.conf, probes upstreams that are down, asks again for hot
// names before their time ends, and drops what is too old. It returns when ctx
// has ended and every exchange with it; from then on Resolve answers SERVFAIL.
// It may be called once.
func (f *Forwarder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if len(f.opts.Upstreams) == 0 {
		wg.Go(func() { f.follow(ctx) })
	}
	wg.Go(func() { f.probeDown(ctx) })
	wg.Go(func() { f.keepHot(ctx) })
	wg.Go(func() { f.findLoops(ctx) })
	<-ctx.Done()
	f.flights.mu.Lock()
	f.flights.closed = true
	close(f.flights.stop)
	f.flights.mu.Unlock()
	f.flights.wg.Wait()
	wg.Wait()
	return nil
}

// Cached appends to buf the complete reply to q and returns it with true, or
// buf as it is with false: then Resolve must find out. It allocates nothing if
// buf has room for the reply, and never waits. buf must not overlap q.Msg.
func (f *Forwarder) Cached(q Query, buf []byte) ([]byte, bool) {
	now := f.cache.now()
	e, s := f.cache.hit(hashed(&f.cache, q), q, now, f.gone.Load())
	switch s {
	case missing, expired:
		return buf, false
	case aging:
		select {
		case f.prefetch <- e:
		default: // many are; this one is asked for when its time has ended
			e.prefetching.Store(false)
		}
	}
	return e.appendReply(buf, q, now, s == stale), true
}

// Resolve appends to buf the complete reply to q and returns it. Equal
// questions share one exchange with the upstreams, which takes about four
// seconds at most; if it gives nothing, an answer whose time has ended is given
// (RFC 8767), after half a second already if there is one, else SERVFAIL. An
// error is the cause of ctx's end; then there is no reply.
func (f *Forwarder) Resolve(ctx context.Context, q Query, buf []byte) ([]byte, error) {
	k := keyOf(q)
	old, fl := f.board(k)
	if fl == nil {
		return old.appendReply(buf, q, f.cache.now(), false), nil
	}
	var patience <-chan time.Time
	if old != nil {
		t := time.NewTimer(staleAfter)
		defer t.Stop()
		patience = t.C
	}
	select {
	case <-fl.done:
		return fl.result.appendReply(buf, q, f.cache.now(), fl.stale), nil
	case <-patience:
		old.staleFor(f.cache.now() + int64(exchangeTime))
		f.counts.stale.Add(1)
		return old.appendReply(buf, q, f.cache.now(), true), nil
	case <-ctx.Done():
		return buf, context.Cause(ctx)
	}
}

// keepHot asks again for hot names, and drops once a minute what is too old.
func (f *Forwarder) keepHot(ctx context.Context) {
	sweep := time.NewTicker(time.Minute)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.prefetch:
			f.counts.prefetches.Add(1)
			f.refresh(e.key())
		case <-sweep.C:
			f.cache.sweep()
		}
	}
}
