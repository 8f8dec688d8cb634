package rulestest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// testForwardedAttacks is about containers whose forged tunnel packets leave
// as a peer's, so that the host that gets them cannot tell: the host that
// forwards them has to.
func testForwardedAttacks(t *testing.T, w *world, s Subject) {
	v := newVictim(t, w.a2)
	masqueradeOnB(t, w)
	type forged struct {
		name  string
		f     addrs
		outer netip.Addr
	}
	var attacks []forged
	onA := wanted()
	for _, f := range both() {
		onA.Tunnel.Peers = append(onA.Tunnel.Peers, f.thirdHost)
		host := netip.PrefixFrom(f.thirdHost, f.thirdHost.BitLen()).String() + " dev eth0"
		add := "addr add " + host
		if f.thirdHost.Is6() {
			add += " nodad"
		}
		change(t, w.b1, add, "addr del "+host)
		attacks = append(attacks, forged{f.name + " masqueraded", f, netip.Addr{}}, forged{f.name + " as a third host", f, f.thirdHost})
	}
	works := func(x forged) bool {
		return attack{w.b1, x.f.a, x.f.third}.worksAs(t, x.outer, x.f, v, x.name)
	}
	open(t, w, s).sync(onA)
	for _, x := range attacks {
		if !eventually(func() bool { return works(x) }) {
			t.Errorf("%s does not work without rules on the sending host: the test proves nothing", x.name)
		}
	}
	openOn(t, w, w.b, s).sync(wantedOnB())
	for _, x := range attacks {
		if works(x) {
			t.Errorf("%s gets in", x.name)
		}
	}
	echo(t, w.stranger, tunnelPort)
	echo(t, w.a1, tunnelPort)
	for _, f := range both() {
		if !peerGetsIn(t, w, f) {
			t.Errorf("%s: a pod of the sending host does not get in", f.name)
		}
		if got := seenAs(t, w.b1, f.b1, at(f.stranger, tunnelPort)); got != f.b.String() {
			t.Errorf("%s to the world at the tunnel's port: seen as %q, want %v", f.name, got, f.b)
		}
		if got := seenAs(t, w.b1, f.b1, at(f.a1, tunnelPort)); got != f.b1.String() {
			t.Errorf("%s to a pod at the tunnel's port: seen as %q, want %v", f.name, got, f.b1)
		}
	}
}

// testForwardedProtocol is the same for a tunnel like IPIP, and for what hosts
// send through this host.
func testForwardedProtocol(t *testing.T, w *world, s Subject) {
	r := wantedOnB()
	r.Tunnel.Protocol, r.Tunnel.Port = unix.IPPROTO_IPIP, 0
	throughB(t, w)
	for _, withRules := range []bool{false, true} {
		if withRules {
			openOn(t, w, w.b, s).sync(r)
		}
		for _, f := range both() {
			for what, c := range map[string]struct {
				from, at *netns.NS
				to       netip.Addr
				want     bool
			}{
				"a container to a peer":       {w.b1, w.a, f.a, !withRules},
				"a container to the world":    {w.b1, w.stranger, f.stranger, true},
				"a host to a peer through us": {w.stranger, w.a, f.a, true},
			} {
				arrives := func() bool { return rawArrives(t, c.from, c.at, c.to) }
				if c.want && !eventually(arrives) || !c.want && arrives() {
					t.Errorf("%s with rules %v: %s: arrives %v", f.name, withRules, what, !c.want)
				}
			}
		}
	}
}

// throughB makes the stranger send to host A through host B.
func throughB(t *testing.T, w *world) {
	t.Helper()
	for _, f := range both() {
		host := netip.PrefixFrom(f.a, f.a.BitLen()).String()
		change(t, w.stranger, "route add "+host+" via "+f.b.String(), "route del "+host)
	}
}

// rawArrives sends one IPIP packet and tells whether it arrives.
func rawArrives(t *testing.T, from, where *netns.NS, to netip.Addr) bool {
	t.Helper()
	network := "ip6:4"
	if to.Is4() {
		network = "ip4:4"
	}
	var in net.PacketConn
	err := where.Do(func() (err error) {
		in, err = net.ListenPacket(network, to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	payload := fmt.Appendf(nil, "packet of %d", time.Now().UnixNano())
	err = from.Do(func() error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(payload)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = in.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 256)
	for {
		n, _, err := in.ReadFrom(b)
		if err != nil {
			return false
		}
		if bytes.Contains(b[:n], payload) {
			return true
		}
	}
}
