package dns

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/flanneld/flanneld/store"
)

// largestQuery is what a query may have at most; what is longer is cut, and so
// malformed.
const largestQuery = 4096

// reader is the goroutine that reads a UDP socket, and answers what it can
// without waiting.
type reader struct {
	*socket
	r     *responder
	in    []byte
	sieve *sieve
	wg    sync.WaitGroup // questions that are waiting for upstreams
}

// serveUDP answers until the socket is closed.
func (s *socket) serveUDP(ctx context.Context) {
	u := reader{socket: s, r: s.newResponder(), in: make([]byte, largestQuery), sieve: newSieve(s.udp)}
	defer u.wg.Wait()
	defer u.sieve.close()
	backoff := store.Backoff{Max: time.Second}
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(u.in)
		if err != nil {
			if ctx.Err() != nil || backoff.Wait(ctx) != nil {
				return
			}
			continue
		}
		backoff.Reset()
		u.packet(ctx, u.in[:n], from)
	}
}

// packet answers one packet, or has it answered.
func (u *reader) packet(ctx context.Context, msg []byte, from netip.AddrPort) {
	start := u.server.now()
	source := from.Addr()
	a := u.views.Load()
	v := a.admit(source)
	if v == nil {
		a.views[0].counters.dropped[dropSource].Add(1)
		u.sieve.drop(source, start)
		return
	}
	defer u.recovered(v)
	if u.server.limiter.wait(source, start) > 0 && !a.hosts(source) {
		v.counters.dropped[dropRate].Add(1)
		u.sieve.drop(source, start)
		return
	}
	reply, o := u.r.respond(msg, v.zone, false)
	switch o {
	case silent:
		v.counters.dropped[dropMalformed].Add(1)
	case outside:
		u.fetch(ctx, a, v, from, start)
	default:
		u.send(reply, from)
		v.counters.answered(u.r, o, u.server.now()-start)
	}
}

// send sends an answer. One that cannot be sent is asked for again.
func (u *reader) send(reply []byte, to netip.AddrPort) { _, _ = u.udp.WriteToUDPAddrPort(reply, to) }

// fetch has the question that was read last answered by the forwarder. If too
// many are waiting it is dropped: the sender asks again in a few seconds,
// while SERVFAIL would make it ask again at once, or give up.
func (u *reader) fetch(ctx context.Context, a *answering, v *answeringView, from netip.AddrPort, start time.Duration) {
	if !u.server.outside.begin(from.Addr(), a.hosts(from.Addr())) {
		v.counters.dropped[dropBusy].Add(1)
		return
	}
	e := u.r.errand(false)
	u.wg.Go(func() {
		defer u.server.outside.end(from.Addr())
		defer u.recovered(v)
		reply, err := e.run(ctx)
		if err != nil { // the socket is being closed
			return
		}
		u.send(reply, from)
		v.counters.fetched(e, reply, u.server.now()-start)
	})
}
