// Package rulestest is the contract that every rules.Filter or rules.Balancer
// must pass. It sends real packets between network namespaces.
package rulestest

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Subject is a filter under test.
type Subject struct {
	// Open returns a filter for the calling thread's network namespace.
	Open func() (rules.Filter, error)
	// Flushes are shell commands with which somebody else destroys the rules.
	Flushes map[string]string
	// Others is a shell script that puts other people's rules beside ours.
	Others string
	// Dump is a shell script that prints every rule of the namespace, without
	// what changes by itself (counters).
	Dump string
	// Runs counts the programs that a filter has run; nil: none ever.
	Runs func(rules.Filter) int64
}

// Run runs the contract.
func Run(t *testing.T, s Subject) {
	w := newWorld(t)
	tests := map[string]func(*testing.T, *world, Subject){
		"pods are masqueraded towards the world":                 testMasquerade,
		"no masquerade between pods":                             testBetweenPods,
		"multicast and broadcast are not masqueraded":            testMulticast,
		"host addresses are masqueraded into the tunnel":         testHostToPod,
		"clients from outside keep their address":                testOutsideClient,
		"no masquerade without being asked":                      testNoMasquerade,
		"tunnel packets come from peers over the underlay alone": testAttacks,
		"a peer that joins or leaves is noticed":                 testPeerChange,
		"containers may use the tunnel's port elsewhere":         testContainersOwnPort,
		"containers send no tunnel packets to peers":             testForwardedAttacks,
		"nor those of other protocols":                           testForwardedProtocols,
		"each protocol's packets come from peers alone":          testProtocols,
		"forged packets get in no way":                           testScenes,
		"forged sources of pods get in nowhere":                  testForgedPods,
		"hosts may go different ways to each other":              testWays,
		"host addresses are masqueraded without a tunnel too":    testPlainMasquerade,
		"pods without a tunnel do not reach guarded services":    testPlainGuard,
		"a network without a tunnel":                             testNoTunnel,
		"containers do not reach guarded services":               testGuard,
		"nor do containers with other addresses":                 testGuardBridges,
		"DNS is not tracked":                                     testNames,
		"nobody is told that nobody answers DNS":                 testClosedNames,
		"containers reach names whatever is guarded":             testGuardedNames,
		"rules that somebody flushed come back":                  testFlushed,
		"a second sync writes nothing":                           testSecondSync,
		"a restarted filter writes nothing":                      testRestart,
		"removal leaves other people's rules as they were":       testRemove,
		"nothing asked for is nothing there":                     testZero,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, w, s) })
	}
}

// wanted is what a daemon on host A would ask for.
func wanted() rules.Rules {
	r := rules.Rules{
		Masquerade: true,
		Checked:    []string{"cni0"},
		Tunnel: rules.Tunnel{Link: "flannel.1", MoreLinks: []string{"flannel-v6.1"}, Underlay: "eth0",
			Protocol: unix.IPPROTO_UDP, Ports: []uint16{tunnelPort}},
	}
	for _, f := range both() {
		r.Networks = append(r.Networks, f.network)
		r.Subnets = append(r.Subnets, f.subnetA)
		r.Tunnel.Local = append(r.Tunnel.Local, f.a)
		r.Tunnel.Peers = append(r.Tunnel.Peers, f.b)
		r.Names, r.OffLink = append(r.Names, f.gatewayA, f.dns), append(r.OffLink, f.dns)
	}
	return r
}

// wantedOnB is what the daemon on host B would ask for.
func wantedOnB() rules.Rules {
	r := wanted()
	r.Subnets, r.Tunnel.Local, r.Tunnel.Peers, r.Names, r.OffLink = nil, nil, nil, nil, nil
	for _, f := range both() {
		r.Subnets = append(r.Subnets, f.subnetB)
		r.Tunnel.Local = append(r.Tunnel.Local, f.b)
		r.Tunnel.Peers = append(r.Tunnel.Peers, f.a)
	}
	return r
}

// filter is a filter on a host; nothing of it is left when the test ends.
type filter struct {
	t *testing.T
	n *netns.NS
	f rules.Filter
}

func open(t *testing.T, w *world, s Subject) *filter {
	t.Helper()
	return openOn(t, w, w.a, s)
}

func openOn(t *testing.T, w *world, n *netns.NS, s Subject) *filter {
	t.Helper()
	f := &filter{t: t, n: n}
	f.do(func() (err error) {
		f.f, err = s.Open()
		return err
	})
	t.Cleanup(func() {
		f.do(func() error { return f.f.Remove(context.WithoutCancel(t.Context())) })
		if c, ok := f.f.(interface{ Close() error }); ok {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		flushConnections(t, w)
	})
	return f
}

func (f *filter) do(what func() error) {
	f.t.Helper()
	if err := f.n.Do(what); err != nil {
		f.t.Fatal(err)
	}
}

func (f *filter) sync(r rules.Rules) {
	f.t.Helper()
	f.do(func() error { return f.f.Sync(f.t.Context(), r) })
}

// flushConnections forgets what conntrack decided under earlier rules.
func flushConnections(t *testing.T, w *world) {
	t.Helper()
	for _, n := range []*netns.NS{w.a, w.b} {
		if _, err := n.Run(context.WithoutCancel(t.Context()), "conntrack", "-F"); err != nil {
			t.Error(err)
		}
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func expectSeen(t *testing.T, what string, n *netns.NS, src, to netip.Addr, want string) {
	t.Helper()
	if got := seenAs(t, n, src, at(to, echoPort)); got != want {
		t.Errorf("%s: seen as %q, want %q", what, got, want)
	}
}

func testMasquerade(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, fam := range both() {
		expectSeen(t, fam.name+" pod to the world", w.a1, netip.Addr{}, fam.stranger, fam.a.String())
	}
}

func testNoMasquerade(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	r := wanted()
	r.Masquerade = false
	f.sync(r)
	for _, fam := range both() {
		expectSeen(t, fam.name+" pod to the world", w.a1, netip.Addr{}, fam.stranger, fam.a1.String())
	}
}

func testBetweenPods(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, fam := range both() {
		expectSeen(t, fam.name+" to a pod of another host", w.a1, netip.Addr{}, fam.b1, fam.a1.String())
		expectSeen(t, fam.name+" from a pod of another host", w.b1, netip.Addr{}, fam.a1, fam.b1.String())
		expectSeen(t, fam.name+" to a pod of this host", w.a1, netip.Addr{}, fam.a2, fam.a1.String())
	}
}

func testOutsideClient(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, fam := range both() {
		expectSeen(t, fam.name+" from outside to a pod", w.stranger, netip.Addr{}, fam.a1, fam.stranger.String())
	}
}

func testHostToPod(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, fam := range both() {
		expectSeen(t, fam.name+" from the host's underlay address", w.a, fam.a, fam.b1, fam.tunnelA.String())
		expectSeen(t, fam.name+" from the host", w.a, netip.Addr{}, fam.b1, fam.tunnelA.String())
		expectSeen(t, fam.name+" from another host", w.b, netip.Addr{}, fam.a1, fam.tunnelB.String())
	}
}

// testMulticast sends as the gateway, an address of the pod network, so that
// a masquerade would show.
func testMulticast(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, fam := range both() {
		got := multicastSource(t, w, fam.gatewayA, fam.multicast)
		if got != fam.gatewayA {
			t.Errorf("%s multicast: seen as %v, want %v", fam.name, got, fam.gatewayA)
		}
	}
	v4 := both()[0]
	all := netip.MustParseAddr("255.255.255.255")
	if got := multicastSource(t, w, v4.gatewayA, all); got != v4.gatewayA {
		t.Errorf("broadcast: seen as %v, want %v", got, v4.gatewayA)
	}
}

// multicastSource sends from host A to a group on the underlay and returns
// the source that a member saw.
func multicastSource(t *testing.T, w *world, src, group netip.Addr) netip.Addr {
	t.Helper()
	const port = 4444
	var member *net.UDPConn
	err := w.stranger.Do(func() (err error) {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if group.IsMulticast() {
			member, err = net.ListenMulticastUDP("udp", eth0, &net.UDPAddr{IP: group.AsSlice(), Port: port})
		} else {
			member, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	err = w.a.Do(func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: src.AsSlice()}, Control: onEth0}
		c, err := d.DialContext(t.Context(), "udp", at(group, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("to all"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = member.SetReadDeadline(time.Now().Add(4 * patience))
	_, from, err := member.ReadFromUDPAddrPort(make([]byte, 64))
	if err != nil {
		t.Errorf("nothing arrived at %v: %v", group, err)
	}
	return from.Addr().Unmap()
}

func testContainersOwnPort(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	for _, n := range []*netns.NS{w.a2, w.b1, w.stranger} {
		echo(t, n, tunnelPort)
	}
	for _, fam := range both() {
		for name, c := range map[string]struct {
			to   netip.Addr
			want netip.Addr
		}{
			"the world":             {fam.stranger, fam.a},
			"a pod of this host":    {fam.a2, fam.a1},
			"a pod of another host": {fam.b1, fam.a1},
		} {
			if got := seenAs(t, w.a1, netip.Addr{}, at(c.to, tunnelPort)); got != c.want.String() {
				t.Errorf("%s to %s: seen as %q, want %q", fam.name, name, got, c.want)
			}
		}
	}
}

func testFlushed(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	fam := both()[0]
	for name, command := range s.Flushes {
		netnstest.Run(t, w.a, "sh", "-ec", command)
		flushConnections(t, w)
		f.sync(wanted())
		expectSeen(t, "after "+name+": pod to the world", w.a1, netip.Addr{}, fam.stranger, fam.a.String())
		if strangerGetsIn(t, w, fam) {
			t.Errorf("after %s: packets of a stranger are accepted", name)
		}
		if !peerGetsIn(t, w, fam) {
			t.Errorf("after %s: packets of a peer are not accepted", name)
		}
	}
}

func (s Subject) dump(t *testing.T, w *world) string {
	t.Helper()
	return netnstest.Run(t, w.a, "sh", "-ec", s.Dump)
}

func (s Subject) runs(f *filter) int64 {
	if s.Runs == nil {
		return 0
	}
	return s.Runs(f.f)
}

func testSecondSync(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	before, ran := s.dump(t, w), s.runs(f)
	writes := CountWrites(t, w.a)
	for range 3 {
		f.sync(wanted())
	}
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if n := s.runs(f) - ran; n != 0 {
		t.Errorf("%d programs run, want none", n)
	}
	if after := s.dump(t, w); after != before {
		t.Errorf("rules changed:\n%s\nwere:\n%s", after, before)
	}
}

func testRestart(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	f.sync(wanted())
	before := s.dump(t, w)
	second := open(t, w, s)
	writes := CountWrites(t, w.a)
	r := wanted()
	r.Tunnel.Peers = []netip.Addr{r.Tunnel.Peers[1], r.Tunnel.Peers[0]} // order is free
	second.sync(r)
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if after := s.dump(t, w); after != before {
		t.Errorf("rules changed:\n%s\nwere:\n%s", after, before)
	}
}

func testRemove(t *testing.T, w *world, s Subject) {
	netnstest.Run(t, w.a, "sh", "-ec", s.Others)
	before := s.dump(t, w)
	f := open(t, w, s)
	f.sync(wanted())
	if s.dump(t, w) == before {
		t.Error("no rules were made")
	}
	for range 2 {
		f.do(func() error { return f.f.Remove(t.Context()) })
		if after := s.dump(t, w); after != before {
			t.Errorf("after removal:\n%s\nwant:\n%s", after, before)
		}
	}
}

func testZero(t *testing.T, w *world, s Subject) {
	f := open(t, w, s)
	before := s.dump(t, w)
	f.sync(rules.Rules{})
	if after := s.dump(t, w); after != before {
		t.Errorf("rules:\n%s\nwant:\n%s", after, before)
	}
	f.sync(wanted())
	f.sync(rules.Rules{})
	f.do(func() error { return f.f.Remove(t.Context()) })
	if after := s.dump(t, w); after != before {
		t.Errorf("rules after use:\n%s\nwant:\n%s", after, before)
	}
}
