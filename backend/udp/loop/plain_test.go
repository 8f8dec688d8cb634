package loop

import (
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// TestAKernelThatDoesNotSplit sends a large packet piece by piece.
func TestAKernelThatDoesNotSplit(t *testing.T) {
	netnstest.NeedRoot(t)
	ns := netnstest.New(t)
	var in, out int
	err := ns.Do(func() (err error) {
		if in, err = openUDP(netip.MustParseAddrPort("127.0.0.1:1000")); err == nil {
			out, err = openUDP(netip.MustParseAddrPort("127.0.0.1:1001"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(in)
	defer unix.Close(out)
	_ = unix.SetsockoptInt(in, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	spec := spec{src: netip.MustParseAddr("10.1.1.2"), dst: netip.MustParseAddr("10.1.2.2"), proto: unix.IPPROTO_TCP, flags: flagACK, ttl: 64, payload: make([]byte, 10_100)}
	for name, prepare := range map[string]func(s *sender){
		"by itself": func(s *sender) {
			if s.plain {
				t.Error("this kernel can")
			}
		},
		"never":   func(s *sender) { s.plain = true },
		"refused": func(s *sender) {}, // below: planned as a row, sent in pieces
	} {
		t.Run(name, func(t *testing.T) {
			l := &Loop{tun: -1, sock: out}
			l.SetTable(NewTable([]Peer{{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParseAddrPort("127.0.0.1:1000")}}))
			s := newSender(l)
			prepare(s)
			s.packet(spec.offloaded(1000))
			if name == "refused" {
				s.fill(0)
				s.pieces(0)
			} else {
				s.transmit()
			}
			b := make([]byte, 65536)
			for i, want := range spec.split(1000) {
				n, _, err := unix.Recvfrom(in, b, unix.MSG_DONTWAIT)
				if err != nil || string(b[:n]) != string(want) {
					t.Fatalf("packet %d: %d bytes, %v", i, n, err)
				}
			}
			if n, _, err := unix.Recvfrom(in, b, unix.MSG_DONTWAIT); err == nil {
				t.Errorf("another of %d bytes", n)
			}
		})
	}
}
