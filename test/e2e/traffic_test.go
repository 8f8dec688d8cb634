package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// interval is how often traffic sends.
const interval = 5 * time.Millisecond

// traffic is a ping and a TCP stream from one container to another that must
// not lose anything.
type traffic struct {
	t        *testing.T
	stopSend chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex // guards what follows
	sent     map[uint16]time.Time
	answered map[uint16]bool
	streamed uint64 // by the sender
	received uint64 // by the receiver, in order
	gap      time.Duration
	err      error
}

// startTraffic begins to send, when a first ping was answered.
func startTraffic(t *testing.T, from, to *lab.Container) *traffic {
	t.Helper()
	addr := to.Addrs[0].Addr()
	if _, err := lab.PingUntil(t.Context(), from, addr); err != nil {
		t.Fatal(err)
	}
	f := &traffic{t: t, stopSend: make(chan struct{}), sent: map[uint16]time.Time{}, answered: map[uint16]bool{}}
	f.startPing(from, addr)
	f.startStream(from, to, addr)
	return f
}

func (f *traffic) startPing(from *lab.Container, to netip.Addr) {
	f.t.Helper()
	p, err := lab.NewPinger(from, to)
	if err != nil {
		f.t.Fatal(err)
	}
	f.wg.Go(func() {
		for {
			seq, err := p.Receive(time.Second)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				f.mu.Lock()
				f.answered[seq] = true
				f.mu.Unlock()
			}
		}
	})
	f.wg.Go(func() {
		defer p.Close()
		f.every(func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			seq, err := p.Send(64)
			f.sent[seq] = time.Now()
			return err
		})
		time.Sleep(500 * time.Millisecond) // for the last answers
	})
}

func (f *traffic) startStream(from, to *lab.Container, addr netip.Addr) {
	f.t.Helper()
	var ln net.Listener
	err := to.Do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(addr.String(), "0"))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.wg.Go(func() {
		defer ln.Close()
		conn, err := ln.Accept()
		if err != nil {
			f.fail(err)
			return
		}
		defer conn.Close()
		last := time.Now()
		for {
			var b [8]byte
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second)) // an outage that long is found here
			if _, err := io.ReadFull(conn, b[:]); err != nil {
				if !errors.Is(err, io.EOF) {
					f.fail(fmt.Errorf("stream: %w", err))
				}
				return
			}
			f.mu.Lock()
			if n := binary.BigEndian.Uint64(b[:]); n != f.received {
				f.err = fmt.Errorf("stream: got number %d, want %d", n, f.received)
			}
			f.received++
			f.gap = max(f.gap, time.Since(last))
			last = time.Now()
			f.mu.Unlock()
		}
	})
	var conn net.Conn
	err = from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
		return err
	})
	if err != nil {
		ln.Close()
		f.t.Fatal(err)
	}
	f.wg.Go(func() {
		defer conn.Close()
		f.every(func() error {
			f.mu.Lock()
			n := f.streamed
			f.streamed++
			f.mu.Unlock()
			_, err := conn.Write(binary.BigEndian.AppendUint64(nil, n))
			return err
		})
	})
}

// every calls f until the traffic is stopped.
func (f *traffic) every(send func() error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-f.stopSend:
			return
		case <-tick.C:
			if err := send(); err != nil {
				f.fail(err)
			}
		}
	}
}

func (f *traffic) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// stop ends the traffic and fails the test if anything was lost.
func (f *traffic) stop() {
	f.t.Helper()
	f.stopWith(0)
}

// stopWith allows for so many lost pings; the stream must be whole.
func (f *traffic) stopWith(allowed int) {
	f.t.Helper()
	close(f.stopSend)
	f.wg.Wait()
	lost := 0
	var first time.Time
	for seq, at := range f.sent {
		if !f.answered[seq] {
			lost++
			if first.IsZero() || at.Before(first) {
				first = at
			}
		}
	}
	if lost > allowed {
		f.t.Errorf("%d of %d pings were not answered, the first one of %s", lost, len(f.sent), first.Format("15:04:05.000"))
	}
	if f.err != nil {
		f.t.Error(f.err)
	}
	if f.received != f.streamed {
		f.t.Errorf("stream: %d numbers arrived of %d", f.received, f.streamed)
	}
	f.t.Logf("traffic: %d pings, %d lost; stream of %d, longest gap %s", len(f.sent), lost, f.streamed, f.gap.Round(time.Millisecond))
}
