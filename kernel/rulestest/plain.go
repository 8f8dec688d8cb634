package rulestest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

// plainly returns r for a network whose pods also come without a tunnel.
func plainly(r rules.Rules) rules.Rules {
	r.Tunnel.Plain = true
	return r
}

// routePlainly makes a host send to the other's pods without the tunnel.
func routePlainly(t *testing.T, w *world, n *netns.NS) {
	t.Helper()
	r := strings.NewReplacer("P", "2")
	if n == w.b {
		r = strings.NewReplacer("P", "1")
	}
	change(t, n, r.Replace("route replace 10.1.P.0/24 via 192.168.77.P dev eth0\n-6 route replace fd00:1:0:P::/64 via fd77::P dev eth0"),
		r.Replace("route replace 10.1.P.0/24 via 10.1.P.0 dev flannel.1 onlink\n-6 route del fd00:1:0:P::/64\n-6 route add fd00:1:0:P::/64 via fd00:1:0:P:: dev flannel-v6.1 onlink"))
}

// scene is host A.
func (w *world) scene(t *testing.T, f addrs) Scene {
	t.Helper()
	mac, err := net.ParseMAC(f.mac)
	if err != nil {
		t.Fatal(err)
	}
	return Scene{
		Host: w.a, MAC: MAC(t, w.a, "eth0"), Pod: w.a2, Stranger: w.stranger, Link: "eth0",
		HostAddr: f.a, StrangerAddr: f.stranger, PeerAddr: f.b, PodAddr: f.a2, Neighbour: f.a1, PeerPod: f.b1,
		Wrap: func(src, dst netip.Addr, inner []byte) []byte {
			return UDP(at(src, 1234), at(dst, tunnelPort), VXLAN(1, mac, inner))
		},
	}
}

// testScenes is about strangers' forgeries, whichever way this host takes to
// its peer.
func testScenes(t *testing.T, w *world, s Subject) {
	any := wanted()
	any.Tunnel.Link, any.Tunnel.MoreLinks = "flannel*", nil
	none := plainly(wanted())
	none.Tunnel.Link, none.Tunnel.MoreLinks, none.Tunnel.Protocol, none.Tunnel.Ports = "", nil, 0, nil
	for _, f := range both() {
		sc := w.scene(t, f)
		run := func(name string, r rules.Rules) {
			t.Run(f.name+" "+name, func(t *testing.T) { sc.Test(t, s.Open, r) })
		}
		run("tunnel", wanted())
		run("tunnel of many interfaces", any)
		run("tunnel to a peer that may send plainly", plainly(wanted()))
		t.Run("plain", func(t *testing.T) {
			routePlainly(t, w, w.a)
			run("a peer that may use the tunnel", plainly(wanted()))
			sc.Wrap = nil
			run("no tunnel", none)
		})
	}
}

// testWays sends while hosts go different ways to each other.
func testWays(t *testing.T, w *world, s Subject) {
	open(t, w, s).sync(plainly(wanted()))
	openOn(t, w, w.b, s).sync(plainly(wantedOnB()))
	for way := range 4 {
		t.Run(fmt.Sprintf("A plainly %v, B plainly %v", way&1 != 0, way&2 != 0), func(t *testing.T) {
			if way&1 != 0 {
				routePlainly(t, w, w.a)
			}
			if way&2 != 0 {
				routePlainly(t, w, w.b)
			}
			for _, f := range both() {
				expectSeen(t, f.name+" from A to B", w.a1, netip.Addr{}, f.b1, f.a1.String())
				expectSeen(t, f.name+" from B to A", w.b1, netip.Addr{}, f.a1, f.b1.String())
				expectSeen(t, f.name+" host A to B's pod", w.a, netip.Addr{}, f.b1, map[bool]string{false: f.tunnelA.String(), true: f.a.String()}[way&1 != 0])
			}
		})
	}
}

// shot is a packet with a forged source.
type shot struct {
	from     *netns.NS // through its eth0
	mac      net.HardwareAddr
	src, dst netip.Addr
	at       *netns.NS // who has dst
	// Does it arrive without rules, with them, and if pods may come plainly?
	arrives [3]bool
}

func shots(t *testing.T, w *world, f addrs, docker, pods *netns.NS, free netip.Addr) map[string]shot {
	eth0, docker0, pods9, cni0 := MAC(t, w.a, "eth0"), MAC(t, w.a, "docker0"), MAC(t, w.a, "pods9"), MAC(t, w.a, "cni0")
	never, always := [3]bool{true, false, false}, [3]bool{true, true, true}
	unlisted := netip.MustParseAddr("10.1.1.130")
	if f.a.Is6() {
		unlisted = netip.MustParseAddr("fd00:1:0:1:8000::2")
	}
	return map[string]shot{
		"a stranger as a pod of a free subnet":              {w.stranger, eth0, free, f.a2, w.a2, never},
		"a stranger as a pod of a peer, to the gateway":     {w.stranger, eth0, f.b1, f.gatewayA, w.a, [3]bool{true, false, true}},
		"a stranger as a pod of this host, to the gateway":  {w.stranger, eth0, f.a1, f.gatewayA, w.a, never},
		"a stranger as a pod of this host, to a peer's pod": {w.stranger, eth0, f.a1, f.b1, w.b1, never},
		"another bridge's container as a peer's pod":        {docker, docker0, f.b1, f.a2, w.a2, never},
		"another bridge's container as a pod of this host":  {docker, docker0, f.a1, f.a2, w.a2, never},
		"another bridge's container as a third host's pod":  {docker, docker0, f.third, f.b1, w.b1, never},
		"a pod on a bridge that nobody told of":             {pods, pods9, unlisted, f.a2, w.a2, always},
		"a pod on a bridge that is checked":                 {w.a1, cni0, f.a1, f.b1, w.b1, always},
	}
}

// testForgedPods is about packets with the source of a pod that is elsewhere.
// The host has a default route over the underlay.
func testForgedPods(t *testing.T, w *world, s Subject) {
	docker := w.outsider(t, "docker0", 0)
	pods := w.outsider(t, "pods9", 1)
	change(t, w.a, "addr add 10.1.1.129/25 dev pods9\naddr add fd00:1:0:1:8000::1/65 dev pods9 nodad", "addr del 10.1.1.129/25 dev pods9\naddr del fd00:1:0:1:8000::1/65 dev pods9")
	change(t, w.a, "route add default via 192.168.77.9\n-6 route add default via fd77::9", "route del default\n-6 route del default")
	victims := map[*netns.NS]*Victim{}
	for _, n := range []*netns.NS{w.a, w.a2, w.b1} {
		victims[n] = Listen(t, n, victimPort)
	}
	flt := open(t, w, s)
	for i, r := range []rules.Rules{{}, wanted(), plainly(wanted())} {
		flt.sync(r)
		if r.Tunnel.Plain { // the default route leads to the underlay
			change(t, w.a, "route add unreachable 10.1.0.0/16 metric 9999\n-6 route add unreachable fd00:1::/48 metric 9999", "route del unreachable 10.1.0.0/16 metric 9999\n-6 route del unreachable fd00:1::/48 metric 9999")
		}
		for k, f := range both() {
			free := []netip.Addr{netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("fd00:1:0:9::9")}[k]
			all := shots(t, w, f, docker, pods, free)
			shoot(t, fmt.Sprintf("%s, rules %d", f.name, i), all, victims, func(x shot) bool { return x.arrives[i] })
		}
	}
	r := wanted()
	r.Checked = nil
	flt.sync(r)
	for _, f := range both() {
		cni0 := MAC(t, w.a, "cni0")
		shoot(t, f.name+", nothing is checked elsewhere", map[string]shot{
			"a pod":                   {w.a1, cni0, f.a1, f.b1, w.b1, [3]bool{true}},
			"a pod as a peer's":       {w.a1, cni0, f.b1, f.gatewayA, w.a, [3]bool{}},
			"a pod as a third host's": {w.a1, cni0, f.third, f.b1, w.b1, [3]bool{}},
		}, victims, func(x shot) bool { return x.arrives[0] })
	}
}

// shoot sends all shots and compares who got theirs.
func shoot(t *testing.T, when string, all map[string]shot, victims map[*netns.NS]*Victim, want func(shot) bool) {
	t.Helper()
	left := slices.Sorted(maps.Keys(all))
	for range 5 {
		payloads, sent := map[string]string{}, map[*netns.NS][]string{}
		for i, name := range left {
			x, p := all[name], "shot "+strconv.Itoa(i)+" of "+strconv.FormatInt(time.Now().UnixNano(), 10)
			payloads[name], sent[x.at] = p, append(sent[x.at], p)
			Inject(t, x.from, "eth0", x.mac, UDP(at(x.src, 1234), at(x.dst, victimPort), []byte(p)))
		}
		got := map[string]bool{}
		for n, ps := range sent {
			maps.Copy(got, victims[n].Gets(ps...))
		}
		left = slices.DeleteFunc(left, func(name string) bool {
			arrived := got[payloads[name]]
			if arrived && !want(all[name]) {
				t.Errorf("%s: %s arrives", when, name)
			}
			return arrived || !want(all[name])
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%s: %q do not arrive", when, left)
}

// testPlainMasquerade is about what this host sends to a peer's pods without
// the tunnel.
func testPlainMasquerade(t *testing.T, w *world, s Subject) {
	docker := w.outsider(t, "docker0", 0)
	routePlainly(t, w, w.a)
	open(t, w, s).sync(plainly(wanted()))
	for _, f := range both() {
		expectSeen(t, f.name+" another bridge's container", docker, netip.Addr{}, f.b1, f.a.String())
		expectSeen(t, f.name+" this host", w.a, f.a, f.b1, f.a.String())
		expectSeen(t, f.name+" a pod", w.a1, netip.Addr{}, f.b1, f.a1.String())
	}
}

// testPlainGuard is about pods of peers that come without the tunnel.
func testPlainGuard(t *testing.T, w *world, s Subject) {
	const guarded, open2 = 2379, 2380
	listenTCP(t, w.a, guarded)
	listenTCP(t, w.a, open2)
	routePlainly(t, w, w.b)
	flt := open(t, w, s)
	r := plainly(wanted())
	flt.sync(r)
	to := func(f addrs, port uint16) string { return at(f.gatewayA, port).String() }
	for _, f := range both() {
		if !eventually(func() bool { return connects(t, w.b1, to(f, guarded)) }) {
			t.Errorf("%s: not reached without a guard: the test proves nothing", f.name)
		}
		r.Guard = append(r.Guard, at(f.a, guarded))
	}
	flt.sync(r)
	for _, f := range both() {
		if connects(t, w.b1, to(f, guarded)) {
			t.Errorf("%s: reached", f.name)
		}
		if !eventually(func() bool { return connects(t, w.b1, to(f, open2)) }) {
			t.Errorf("%s: another port is not reached", f.name)
		}
		if !eventually(func() bool { return connects(t, w.b, at(f.a, guarded).String()) }) {
			t.Errorf("%s: not reached by a host", f.name)
		}
		expectSeen(t, f.name+" this host by itself, as a pod's gateway", w.a, f.gatewayA, f.gatewayA, f.gatewayA.String())
	}
}

// testNoTunnel is a host whose pods need none: rules about tunnels are not
// there, and so other people's are as they were.
func testNoTunnel(t *testing.T, w *world, s Subject) {
	routePlainly(t, w, w.a)
	routePlainly(t, w, w.b)
	r := plainly(wanted())
	r.Tunnel.Link, r.Tunnel.MoreLinks, r.Tunnel.Protocol, r.Tunnel.Ports = "", nil, 0, nil
	flt := open(t, w, s)
	for _, r := range []rules.Rules{wanted(), r} { // the former driver's rules go
		flt.sync(r)
	}
	for _, f := range both() {
		expectSeen(t, f.name+" from A to B", w.a1, netip.Addr{}, f.b1, f.a1.String())
		expectSeen(t, f.name+" from B to A", w.b1, netip.Addr{}, f.a1, f.b1.String())
		parcel{from: w.stranger, at: w.a, to: f.a, protocol: unix.IPPROTO_UDP, port: 9999}.expect(t, "another's tunnel", true)
	}
	if d := s.dump(t, w); strings.Contains(d, "flannel.1") || strings.Contains(d, strconv.Itoa(tunnelPort)) {
		t.Errorf("rules of the former tunnel are left:\n%s", d)
	}
}
