package rulestest

import (
	"net/netip"
	"testing"
)

// testForwardedAttacks is about containers whose forged tunnel packets leave
// as a peer's, so that the host that gets them cannot tell: the host that
// forwards them has to.
func testForwardedAttacks(t *testing.T, w *world, s Subject) {
	v := Listen(t, w.a2, victimPort)
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
