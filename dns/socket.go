package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket answers at one place. It is either UDP's or TCP's.
type socket struct {
	server *Server
	place  place
	views  atomic.Pointer[answering] // set before run
	cancel context.CancelFunc        // set before run
	udp    *net.UDPConn
	tcp    *net.TCPListener
}

// run answers until stop.
func (s *socket) run(ctx context.Context) {
	if s.udp != nil {
		s.serveUDP(ctx)
	} else {
		s.serveTCP(ctx)
	}
}

// stop closes the socket and what came through it. The address is free when
// it returns.
func (s *socket) stop() {
	s.cancel()
	if s.udp != nil {
		s.udp.Close()
	} else {
		s.tcp.Close()
	}
}

func (s *socket) newResponder() *responder {
	return newResponder(s.server.opts.Forward, rand.Uint64(), rand.Uint64())
}

// recovered, deferred, keeps a fault in answering one query from ending the
// daemon: otherwise a container could do that, again and again. The first is
// logged, all are counted.
func (s *socket) recovered(v *answeringView) {
	if fault := recover(); fault != nil && v.counters.panics.Add(1) == 1 {
		s.server.log.Error("query not answered", "error", fmt.Sprintf("%v: %s", fault, debug.Stack()))
	}
}

// openSocket opens the socket of a place. Of an error, refusal says what to do.
func (s *Server) openSocket(p place, w *want) (*socket, error) {
	sock := &socket{server: s, place: p}
	lc := net.ListenConfig{Control: prepare}
	lc.SetMultipathTCP(false)
	network := p.proto + "4"
	if p.addr.Is6() {
		network = p.proto + "6"
	}
	at := netip.AddrPortFrom(p.addr, s.opts.Port)
	open := func() error {
		if p.proto == "udp" {
			c, err := lc.ListenPacket(context.Background(), network, at.String())
			if err == nil {
				sock.udp = c.(*net.UDPConn)
			}
			return err
		}
		l, err := lc.Listen(context.Background(), network, at.String())
		if err == nil {
			sock.tcp = l.(*net.TCPListener)
		}
		return err
	}
	var err error
	if w.listen != nil {
		err = w.listen(open)
	} else {
		err = open()
	}
	if err == nil {
		return sock, nil
	}
	sock.discard()
	return nil, err
}

// discard closes what was opened by a w.listen that failed afterwards.
func (s *socket) discard() {
	if s.udp != nil {
		s.udp.Close()
	}
	if s.tcp != nil {
		s.tcp.Close()
	}
}

// refusal is the error of a socket that could not be opened, with its cure.
func (s *Server) refusal(p place, err error) error {
	at := netip.AddrPortFrom(p.addr, s.opts.Port)
	what := fmt.Sprintf("answer names at %s (%s)", at, p.proto)
	if p.owner != "" {
		what += " for " + p.owner
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		who := ""
		if p.owner == "" {
			who = Holder(p.proto, at)
		}
		return fmt.Errorf("%s: %s has that port: keep it off this address "+
			"(dnsmasq: bind-interfaces, except-interface; named: listen-on; systemd-resolved: DNSStubListener, DNSStubListenerExtra), "+
			"or start flanneld with --no-dns: %w", what, cmp.Or(who, "another program"), err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: ports below 1024 need root or CAP_NET_BIND_SERVICE: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// receiveBuffer is room for the queries that come while the reader is busy or
// not scheduled: about a thousand.
const receiveBuffer = 1 << 20

// prepare sets a socket up before it is bound: its address need not exist
// (yet), so that names are answered from the first container's first packet on.
func prepare(network, _ string, c syscall.RawConn) error {
	var err error
	ctrlErr := c.Control(func(handle uintptr) {
		fd := int(handle)
		if network == "udp6" || network == "tcp6" {
			err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
		if network == "udp4" || network == "udp6" {
			// Without CAP_NET_ADMIN it is what the kernel allows.
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		}
	})
	return errors.Join(ctrlErr, err)
}
