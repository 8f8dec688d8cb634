package rulestest

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func testGuard(t *testing.T, w *world, s Subject) {
	const guarded, open2 = 2379, 2380
	for _, n := range []*netns.NS{w.a, w.stranger} {
		listenTCP(t, n, guarded)
		listenTCP(t, n, open2)
	}
	flt := open(t, w, s)
	r := wanted()
	flt.sync(r)
	inside := fromContainers(t, w)
	for what, c := range inside {
		if !eventually(func() bool { return connects(t, c.from, c.to(guarded)) }) {
			t.Errorf("%s is not reached without a guard: the test proves nothing", what)
		}
	}
	for _, f := range both() {
		r.Guard = append(r.Guard, at(f.a, guarded), at(f.stranger, guarded))
	}
	flt.sync(r)
	for what, c := range inside {
		if connects(t, c.from, c.to(guarded)) {
			t.Errorf("%s is reached", what)
		}
		if !eventually(func() bool { return connects(t, c.from, c.to(open2)) }) {
			t.Errorf("%s: another port is not reached", what)
		}
	}
	for _, f := range both() {
		for what, c := range map[string]place{
			"this host by a host":               {w.stranger, f.a, ""},
			"this host by itself":               {w.a, f.a, ""},
			"this host's gateway by the host":   {w.a, f.gatewayA, ""},
			"another host by this host":         {w.a, f.stranger, ""},
			"this host by a host, at a gateway": {w.stranger, f.gatewayA, ""},
		} {
			if !eventually(func() bool { return connects(t, c.from, c.to(guarded)) }) {
				t.Errorf("%s: %s is not reached", f.name, what)
			}
		}
	}
}

// testGuardBridges is about containers of a former network and of others'
// bridges.
func testGuardBridges(t *testing.T, w *world, s Subject) {
	const guarded, open2 = 2379, 2380
	for _, n := range []*netns.NS{w.a, w.stranger} {
		listenTCP(t, n, guarded)
		listenTCP(t, n, open2)
	}
	ways := map[string]place{}
	for i, bridge := range []string{"cni0", "docker0", "br-5eaf00d"} {
		from := w.outsider(t, bridge, i)
		gateways := []netip.Addr{netip.AddrFrom4([4]byte{172, 30, byte(i), 1}), netip.MustParseAddr("fd30:" + strconv.Itoa(i) + "::1")}
		for k, f := range both() {
			ways[f.name+" this host's underlay address from "+bridge] = place{from, f.a, ""}
			ways[f.name+" another host from "+bridge] = place{from, f.stranger, ""}
			ways[f.name+" its gateway from "+bridge] = place{from, gateways[k], ""}
		}
	}
	flt := open(t, w, s)
	r := wanted()
	for _, f := range both() {
		r.Guard = append(r.Guard, at(f.a, guarded), at(f.stranger, guarded))
	}
	flt.sync(r)
	for what, c := range ways {
		if !eventually(func() bool { return connects(t, c.from, c.to(guarded)) }) {
			t.Errorf("%s is not reached without bridges: the test proves nothing", what)
		}
	}
	r.Bridges = []string{"cni0", "docker0", "br-*"}
	flt.sync(r)
	for what, c := range ways {
		if connects(t, c.from, c.to(guarded)) {
			t.Errorf("%s is reached", what)
		}
		if !eventually(func() bool { return connects(t, c.from, c.to(open2)) }) {
			t.Errorf("%s: another port is not reached", what)
		}
	}
	for _, f := range both() {
		for what, c := range map[string]place{"by itself": {w.a, f.a, ""}, "by a host": {w.stranger, f.a, ""}} {
			if !eventually(func() bool { return connects(t, c.from, c.to(guarded)) }) {
				t.Errorf("%s: this host is not reached %s", f.name, what)
			}
		}
	}
}

// place is a service as seen from somewhere.
type place struct {
	from *netns.NS
	addr netip.Addr
	zone string
}

func (p place) to(port uint16) string { return at(p.addr.WithZone(p.zone), port).String() }

// fromContainers are the ways on which a container might reach a guarded
// service.
func fromContainers(t *testing.T, w *world) map[string]place {
	out := map[string]place{}
	for _, f := range both() {
		out[f.name+" this host's underlay address"] = place{w.a1, f.a, ""}
		out[f.name+" this host's gateway address"] = place{w.a1, f.gatewayA, ""}
		out[f.name+" another host"] = place{w.a1, f.stranger, ""}
		out[f.name+" this host's gateway address through the tunnel"] = place{w.b1, f.gatewayA, ""}
	}
	var zone string
	err := w.a1.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err == nil {
			zone = strconv.Itoa(eth0.Index) // names are cached beyond a namespace
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text := netnstest.Run(t, w.a, "ip", "-6", "-o", "addr", "show", "dev", "cni0", "scope", "link")
	if _, rest, ok := strings.Cut(text, "inet6 "); ok {
		p, err := netip.ParsePrefix(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		out["link-local address of this host's bridge"] = place{w.a1, p.Addr(), zone}
	}
	return out
}
