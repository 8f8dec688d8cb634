package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func plain(p Plain) func(Result) bool { return func(r Result) bool { return r.Plain() == p } }

func TestPlainPacketsAreProbedOnTheSameLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.hosts[0], w.hosts[1]
	ip(t, a.ns, "link add eth1 type veth peer name eth1 netns "+b.ns.Path())
	for _, h := range w.hosts {
		ip(t, h.ns, "link set eth1 up")
		ip(t, h.ns, fmt.Sprintf("addr add 192.168.79.%d/24 dev eth1", h.number))
		ip(t, h.ns, fmt.Sprintf("addr add fd79::%d/64 dev eth1 nodad", h.number))
		h.start()
	}
	b.tell(w.state(1))
	routed := w.state(0)
	routed.Plain, routed.Peers[0].Plain = true, true
	a.tell(routed)
	a.until(10*time.Second, "elsewhere", plain(PlainElsewhere))

	// The same hosts, known by their addresses on the common link.
	for _, to := range []string{"192.168.79.2", "fd79::2"} {
		netnstest.Run(t, a.ns, "ping", "-n", "-q", "-c", "1", "-W", "2", to)
	}
	near := w.state(0)
	near.Plain, near.Peers[0].Plain = true, true
	near.Underlay.Link, near.Underlay.Index = "eth1", indexOf(t, a, "eth1")
	near.Peers[0].Public = []netip.Addr{netip.MustParseAddr("192.168.79.2"), netip.MustParseAddr("fd79::2")}
	a.tell(near)
	a.until(10*time.Second, "plain passes", plain(PlainPasses))

	// What passes pings and drops TCP is no way for pods.
	for i, rule := range []string{"ip saddr 10.1.0.0/16 drop", "meta l4proto tcp drop"} {
		netnstest.Run(t, b.ns, "nft", "flush ruleset; add table inet t; add chain inet t p { type filter hook prerouting priority 0; }; add rule inet t p iifname eth1 "+rule)
		near.Epoch++
		near.Peers[0].Key += "x" // another peer: nothing is known of it
		a.forget()
		a.tell(near)
		if i == 0 { // of IPv4
			a.until(20*time.Second, "plain fails", plain(PlainFails))
			continue
		}
		a.until(30*time.Second, "plain fails for TCP", func(r Result) bool {
			return r.Paths[0].Plain == PlainFails && r.Paths[1].Plain == PlainFails
		})
	}
}

// A peer's address may be the anycast address of its containers' bridge too.
// What comes without the tunnel is then answered from another one.
func TestAnswerFromAnotherAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ip(t, w.hosts[0].ns, "link add eth1 type veth peer name eth1 netns "+w.hosts[1].ns.Path())
	for i, h := range w.hosts {
		dev := h.devices()[1]
		ip(t, h.ns, fmt.Sprintf("addr del %s dev %s", h.own(1), dev))
		ip(t, h.ns, "link add cni0 type bridge")
		ip(t, h.ns, "link add port type veth peer name pod")
		ip(t, h.ns, "link set port master cni0")
		for _, dev := range []string{"cni0", "port", "pod", "eth1"} {
			ip(t, h.ns, "link set "+dev+" up")
		}
		ip(t, h.ns, fmt.Sprintf("addr add fd00:1:%d::1/64 dev cni0 nodad", h.number))
		ip(t, h.ns, fmt.Sprintf("addr add %s dev %s nodad", h.own(1), dev))
		ip(t, h.ns, fmt.Sprintf("addr add fd79::%d/64 dev eth1 nodad", h.number))
		o := w.hosts[1-i]
		ip(t, h.ns, fmt.Sprintf("route replace %s/64 via fd79::%d dev eth1", o.own(1), o.number))
	}
	w.both()
	for _, h := range w.hosts {
		h.until(20*time.Second, "ok", all(OK))
	}
}

func indexOf(t *testing.T, h *host, dev string) int {
	t.Helper()
	k, err := link.OpenAt(h.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	l, err := k.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return l.Index
}

func TestWay(t *testing.T) {
	for name, c := range map[string]struct {
		own  bool
		peer Peer
		p    Plain
		want backend.Way
	}{
		"both offer it and it passes":       {true, Peer{Plain: true}, PlainPasses, backend.WayPlain},
		"not probed yet":                    {true, Peer{Plain: true}, PlainUnknown, backend.WayUnknown},
		"does not pass":                     {true, Peer{Plain: true}, PlainFails, backend.WayTunnel},
		"on another link":                   {true, Peer{Plain: true}, PlainElsewhere, backend.WayTunnel},
		"the configuration forbids it":      {false, Peer{Plain: true}, PlainPasses, backend.WayTunnel},
		"flannel, or it is forbidden there": {true, Peer{}, PlainPasses, backend.WayTunnel},
		"away for a moment, passed":         {true, Peer{Down: true}, PlainPasses, backend.WayPlain},
		"away since before we started":      {true, Peer{Down: true}, PlainUnknown, backend.WayUnknown},
	} {
		if got := Way(c.own, &c.peer, c.p); got != c.want {
			t.Errorf("%s: way %d, want %d", name, got, c.want)
		}
	}
}

func TestPlainOfAllFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		paths []Plain
		want  Plain
	}{
		"none":                    {nil, PlainUnknown},
		"both pass":               {[]Plain{PlainPasses, PlainPasses}, PlainPasses},
		"one fails":               {[]Plain{PlainPasses, PlainFails}, PlainFails},
		"one is not known":        {[]Plain{PlainUnknown, PlainPasses}, PlainUnknown},
		"one is not on this link": {[]Plain{PlainPasses, PlainElsewhere}, PlainPasses},
		"neither is":              {[]Plain{PlainElsewhere, PlainElsewhere}, PlainElsewhere},
	} {
		var r Result
		for _, p := range c.paths {
			r.Paths = append(r.Paths, Path{Plain: p})
		}
		if got := r.Plain(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
