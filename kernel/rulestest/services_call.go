package rulestest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// serve answers TCP and UDP at a port with who it is and who asks; on TCP it
// then echoes.
func serve(t *testing.T, n *netns.NS, name string, port int) {
	t.Helper()
	me := fmt.Sprintf("%s:%d", name, port)
	c := listenUDP(t, n, port)
	go func() {
		b := make([]byte, 512)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(to{c, from}, "%s %s\n", me, from.Addr().Unmap())
		}
	}()
	serveTCP(t, n, me, fmt.Sprintf(":%d", port))
}

type to struct {
	c    *net.UDPConn
	addr netip.AddrPort
}

func (w to) Write(b []byte) (int, error) { return w.c.WriteToUDPAddrPort(b, w.addr) }

func serveTCP(t *testing.T, n *netns.NS, me, address string) {
	t.Helper()
	var l net.Listener
	listen(t, n, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				from, err := netip.ParseAddrPort(c.RemoteAddr().String())
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s\n", me, from.Addr().Unmap())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// longest is how long something may take that must happen.
const longest = 3 * time.Second

// connect opens a connection (a socket, by UDP) from a namespace, from the
// address src if valid.
func connect(n *netns.NS, network string, src netip.Addr, to netip.AddrPort) (c net.Conn, err error) {
	err = n.Do(func() error {
		d := net.Dialer{Timeout: longest}
		switch {
		case src.IsValid() && network == "tcp":
			d.LocalAddr = &net.TCPAddr{IP: src.AsSlice()}
		case src.IsValid():
			d.LocalAddr = &net.UDPAddr{IP: src.AsSlice()}
		}
		c, err = d.Dial(network, to.String())
		return err
	})
	return c, err
}

// hello asks who is there. Datagrams may get lost on the way, while a
// neighbour is looked for.
func hello(c net.Conn) (who, from string, err error) {
	b := make([]byte, 512)
	for end := time.Now().Add(longest); time.Now().Before(end); {
		wait := longest
		if c.RemoteAddr().Network() == "udp" {
			wait = patience
			if _, err := c.Write([]byte("who is there?")); err != nil && !errors.Is(err, unix.EPERM) {
				return "", "", err
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		var k int
		if k, err = c.Read(b); err == nil {
			who, from, _ = strings.Cut(strings.TrimSpace(string(b[:k])), " ")
			return who, from, nil
		}
		var slow net.Error
		if !errors.As(err, &slow) || !slow.Timeout() {
			return "", "", err
		}
	}
	return "", "", err
}

// call opens a connection and asks who is there.
func call(n *netns.NS, network string, src netip.Addr, to netip.AddrPort) (who, from string, err error) {
	c, err := connect(n, network, src, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return hello(c)
}

// expectCall calls and compares who answers, and whom he sees.
func expectCall(t *testing.T, what string, n *netns.NS, to netip.AddrPort, who string, from netip.Addr) {
	t.Helper()
	for _, network := range protocols() {
		gotWho, gotFrom, err := call(n, network, netip.Addr{}, to)
		if err != nil || gotWho != who || gotFrom != from.String() {
			t.Errorf("%s by %s to %v: %q answers and sees %q (%v), want %q, %v", what, network, to, gotWho, gotFrom, err, who, from)
		}
	}
}

// expectRefused expects to be told at once that nobody is there: had nobody
// told, it were a timeout.
func expectRefused(t *testing.T, what string, n *netns.NS, to netip.AddrPort) {
	t.Helper()
	for _, network := range protocols() {
		who, _, err := call(n, network, netip.Addr{}, to)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s by %s to %v: %q answers (%v), want %v", what, network, to, who, err, syscall.ECONNREFUSED)
		}
	}
}

// poll calls many times, each from a new socket, and counts who answers.
func poll(t *testing.T, n *netns.NS, network string, src netip.Addr, to netip.AddrPort, times int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for _, who := range turns(t, n, network, src, to, times) {
		got[who]++
	}
	return got
}

// turns is poll, in the order of the answers.
func turns(t *testing.T, n *netns.NS, network string, src netip.Addr, to netip.AddrPort, times int) []string {
	t.Helper()
	var out []string
	for range times {
		who, _, err := call(n, network, src, to)
		if err != nil {
			t.Fatalf("call %d of %v: %v", len(out), to, err)
		}
		out = append(out, who)
	}
	return out
}
