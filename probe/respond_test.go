package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// The responder answers the peer's tunnel address and nobody else: neither
// another address of the peer's host nor a container there.
func TestResponderAnswersPeersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.both()
	a, b := w.hosts[0], w.hosts[1]
	b.until(10*time.Second, "ok", all(OK))
	ip(t, a.ns, "addr add 10.1.1.5/32 dev lo")
	for from, want := range map[string]bool{"10.1.1.0": true, "10.1.1.5": false, "fd00:1:1::": true} {
		to := b.own(0)
		if netip.MustParseAddr(from).Is6() {
			to = b.own(1)
		}
		var got TCP
		err := a.ns.Do(func() (err error) {
			got, err = exchangeWith(t.Context(), netip.MustParseAddr(from), netip.AddrPortFrom(to, Port))
			return err
		})
		if err != nil || (got == TCPWorks) != want {
			t.Errorf("from %s: %q, answer wanted: %v: %v", from, got, want, err)
		}
	}
}

func TestResponderFollowsAddressesAndPorts(t *testing.T) {
	netnstest.NeedRoot(t)
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		lo := netip.MustParseAddr("127.0.0.1")
		other, err := net.Listen("tcp", netip.AddrPortFrom(lo, Port).String())
		if err != nil {
			return err
		}
		defer other.Close()
		r := newResponder(func(netip.Addr) bool { return true })
		defer r.close()
		if port, err := r.listen(t.Context(), []netip.Addr{netip.MustParseAddr("10.1.1.0"), netip.MustParseAddr("fd00::")}); err != nil || port != Port {
			t.Errorf("port %d before the addresses are there: %v", port, err)
		}
		port, err := r.listen(t.Context(), []netip.Addr{lo})
		if err != nil || port == Port || port == 0 {
			t.Errorf("port %d where it is taken: %v", port, err)
		}
		if got, err := exchangeWith(t.Context(), lo, netip.AddrPortFrom(lo, port)); got != TCPWorks || err != nil {
			t.Errorf("exchange: %q %v", got, err)
		}
		if port, err := r.listen(t.Context(), nil); err != nil || port != 0 {
			t.Errorf("port %d without addresses: %v", port, err)
		}
		if got, err := exchangeWith(t.Context(), lo, netip.AddrPortFrom(lo, port+1)); got != TCPUntried || err != nil {
			t.Errorf("nobody listens: %q %v", got, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Callers that say nothing hold up neither others nor the end.
func TestSilentCallersAreBounded(t *testing.T) {
	r := newResponder(func(netip.Addr) bool { return true })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	lo := netip.MustParseAddr("127.0.0.1")
	port, err := r.listen(ctx, []netip.Addr{lo})
	if err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	for range mostCallers {
		c, err := net.Dial("tcp", netip.AddrPortFrom(lo, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	time.Sleep(100 * time.Millisecond)
	if c, err := net.Dial("tcp", netip.AddrPortFrom(lo, port).String()); err == nil { // else it was hung up on at once
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("one more than are answered: %v", err)
		}
	}
	start := time.Now()
	r.close()
	if took := time.Since(start); took > exchangeLimit/2 {
		t.Errorf("closing took %v", took)
	}
	silent[0].SetReadDeadline(time.Now().Add(time.Second))
	if _, err := silent[0].Read(make([]byte, 1)); isTimeout(err) {
		t.Errorf("a silent caller is still held: %v", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
