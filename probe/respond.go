package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is where a responder listens unless somebody else does.
const Port = 8475

// mostCallers are answered at the same time.
const mostCallers = 8

// responder answers the exchanges of peers: it sends back what one block
// long they sent. It listens on tunnel addresses only, and hangs up on
// everybody else than peers' tunnel addresses: a container has none.
type responder struct {
	allowed func(netip.Addr) bool // may be called concurrently
	slots   chan struct{}
	running sync.WaitGroup
	ls      []net.Listener
	own     []netip.Addr // that ls listen on
	port    uint16
	stop    context.CancelFunc
}

func newResponder(allowed func(netip.Addr) bool) *responder {
	return &responder{allowed: allowed, slots: make(chan struct{}, mostCallers)}
}

// listen makes it listen on exactly these addresses and returns the port, 0
// if there are none. It does nothing if it does so already. The addresses
// need not be there yet.
func (r *responder) listen(ctx context.Context, own []netip.Addr) (uint16, error) {
	if slices.Equal(own, r.own) {
		return r.port, nil
	}
	r.close()
	if len(own) == 0 {
		return 0, nil
	}
	ls, port, err := listenAll(ctx, own, Port)
	if errors.Is(err, unix.EADDRINUSE) {
		ls, port, err = listenAll(ctx, own, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("listen for peers' probes: %w", err)
	}
	r.ls, r.own, r.port = ls, slices.Clone(own), port
	ctx, r.stop = context.WithCancel(ctx)
	for _, l := range ls {
		r.running.Go(func() { r.serve(ctx, l) })
	}
	return port, nil
}

// close ends listening and hangs up on whom it talks with.
func (r *responder) close() {
	if r.stop != nil {
		r.stop()
	}
	for _, l := range r.ls {
		_ = l.Close() // nothing is buffered
	}
	r.running.Wait()
	r.ls, r.own, r.port, r.stop = nil, nil, 0, nil
}

// listenAll listens with one port on all addresses; 0 is any.
func listenAll(ctx context.Context, own []netip.Addr, port uint16) (ls []net.Listener, _ uint16, err error) {
	lc := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			}), err)
		},
	}
	for _, a := range own {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			return nil, 0, err
		}
		ls = append(ls, l)
		port = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return ls, port, nil
}

// serve takes callers until l is closed.
func (r *responder) serve(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // no file descriptors left: they come back
			select {
			case <-time.After(exchangeLimit):
				continue
			case <-ctx.Done():
				return
			}
		}
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		select {
		case r.slots <- struct{}{}:
		default:
			hangUp(c)
			continue
		}
		if !r.allowed(from.Addr().Unmap()) {
			<-r.slots
			hangUp(c)
			continue
		}
		r.running.Go(func() {
			answer(ctx, c)
			<-r.slots
		})
	}
}

// answer sends one block back.
func answer(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if c.SetDeadline(time.Now().Add(exchangeLimit)) != nil {
		return
	}
	block := make([]byte, blockLen)
	if _, err := io.ReadFull(c, block); err != nil {
		return // the one who asked sees it too
	}
	_, _ = c.Write(block) // likewise
}

// hangUp resets the connection: nothing of it stays.
func hangUp(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // the connection goes either way
	}
	_ = c.Close()
}
