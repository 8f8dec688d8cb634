package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/flanneld/flanneld/store"
)

// serveTCP accepts connections until the socket is closed.
func (s *socket) serveTCP(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	backoff := store.Backoff{Max: time.Second}
	for {
		conn, err := s.tcp.AcceptTCP()
		if err != nil { // also: no file descriptors left
			if ctx.Err() != nil || backoff.Wait(ctx) != nil {
				return
			}
			continue
		}
		backoff.Reset()
		source := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		a := s.views.Load()
		reason := -1
		if a.admit(source) == nil {
			reason = dropSource
		} else if !s.server.conns.begin(source, a.hosts(source)) {
			reason = dropBusy
		}
		if reason >= 0 {
			a.views[0].counters.dropped[reason].Add(1)
			_ = conn.SetLinger(0) // nothing to remember of it
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.server.conns.end(source)
			c := conversation{socket: s, conn: conn, source: source, r: s.newResponder()}
			c.run(ctx)
		})
	}
}

// mostKept is the memory that a connection keeps from answer to answer; some
// are of 64 KiB.
const mostKept = 4096

// conversation is one connection: queries come one after the other, answers go
// as they are found (RFC 7766 section 7).
type conversation struct {
	*socket
	conn   *net.TCPConn
	source netip.Addr
	r      *responder
	wg     sync.WaitGroup // questions that are waiting for upstreams

	mu  sync.Mutex // held by whoever writes, guards out
	out []byte
}

// run answers until the other side closes or is silent for too long, or sends
// what is no query.
func (c *conversation) run(ctx context.Context) {
	defer c.conn.Close()
	defer c.wg.Wait()
	defer context.AfterFunc(ctx, func() { c.conn.Close() })()
	in := bufio.NewReaderSize(c.conn, 1024)
	var msg []byte
	for {
		if c.conn.SetReadDeadline(time.Now().Add(c.server.opts.idle)) != nil {
			return
		}
		head, err := in.Peek(2)
		if err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head))
		if n > largestQuery {
			return
		}
		if n > cap(msg) {
			msg = make([]byte, n)
		}
		msg = msg[:n]
		if _, err := in.Discard(2); err != nil {
			return
		}
		if _, err := io.ReadFull(in, msg); err != nil {
			return
		}
		if !c.query(ctx, msg) {
			return
		}
	}
}

// query answers a query, or has it answered. It reports whether another one may
// follow.
func (c *conversation) query(ctx context.Context, msg []byte) bool {
	a := c.views.Load()
	v := a.admit(c.source)
	if v == nil { // no longer
		return false
	}
	if !a.hosts(c.source) && !c.pace(ctx) {
		return false
	}
	defer c.recovered(v)
	start := c.server.now()
	reply, o := c.r.respond(msg, v.zone, true)
	switch o {
	case silent:
		v.counters.dropped[dropMalformed].Add(1)
		return false
	case outside:
		if c.fetch(ctx, a, v, start) {
			return true
		}
		// Nobody asks again over TCP unless told.
		v.counters.dropped[dropBusy].Add(1)
		reply, o = c.r.refuse(rcodeServFail, tcpSize), cached
	}
	sent := c.send(reply)
	v.counters.answered(c.r, o, c.server.now()-start)
	if cap(c.r.buf) > mostKept {
		c.r.buf = nil
	}
	return sent
}

// pace waits until the source may ask again. It reports whether ctx is there
// still.
func (c *conversation) pace(ctx context.Context) bool {
	for {
		d := c.server.limiter.wait(c.source, c.server.now())
		if d == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
		}
	}
}

// fetch has the question that was read last answered by the forwarder. It
// reports whether there is room for it.
func (c *conversation) fetch(ctx context.Context, a *answering, v *answeringView, start time.Duration) bool {
	if !c.server.outside.begin(c.source, a.hosts(c.source)) {
		return false
	}
	e := c.r.errand(true)
	c.wg.Go(func() {
		defer c.server.outside.end(c.source)
		defer c.recovered(v)
		reply, err := e.run(ctx)
		if err != nil { // the socket is being closed
			return
		}
		c.send(reply)
		v.counters.fetched(e, reply, c.server.now()-start)
	})
	return true
}

// send writes an answer with its length (RFC 1035 section 4.2.2). It reports
// whether the other side takes it in time.
func (c *conversation) send(reply []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(binary.BigEndian.AppendUint16(c.out[:0], uint16(len(reply))), reply...)
	if c.conn.SetWriteDeadline(time.Now().Add(c.server.opts.idle)) != nil {
		return false
	}
	_, err := c.conn.Write(c.out)
	if cap(c.out) > mostKept {
		c.out = nil
	}
	return err == nil
}
