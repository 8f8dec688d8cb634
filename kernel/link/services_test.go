package link_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

func prefixes(words string) (out []netip.Prefix) {
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func TestNetworksOfServicesAreWholeState(t *testing.T) {
	h := newHost(t)
	h.ip(t, "addr add 10.1.1.1/24 dev eth0")
	h.ip(t, "addr add fd00:1::1/64 dev eth0 nodad")
	h.ip(t, "route add 10.9.0.0/16 dev eth0 proto 0x66 metric 1717986918") // an earlier daemon's
	h.ip(t, "route add 10.8.0.0/16 dev lo metric 1717986918")              // other people's
	h.ip(t, "-6 route add fd00:7::/64 dev lo proto 0x66")
	h.ip(t, "route add unreachable 10.6.0.0/16 proto 0x66")
	h.ip(t, "link add eth1 up type veth peer name far1")
	links := h.links(t, "eth0")
	all := func() string { return h.ip(t, "route show") + h.ip(t, "-6 route show") }
	sync := func(networks, sources string, writes int, lines ...string) {
		t.Helper()
		before := h.h.Writes()
		n, err := h.h.SyncServices(prefixes(networks), links, localAddrs(sources))
		if err != nil || n != writes && writes >= 0 || int(h.h.Writes()-before) != n {
			t.Errorf("%s from %s: %d writes, %v; want %d", networks, sources, n, err, writes)
		}
		table := all()
		for _, want := range lines {
			if !strings.Contains(table, want) {
				t.Errorf("%s from %s: no %q in\n%s", networks, sources, want, table)
			}
		}
		if n := strings.Count(table, "metric 1717986918 ") - strings.Count(table, "10.8.0.0/16"); n != len(lines) {
			t.Errorf("%s: %d routes in\n%s", networks, n, table)
		}
	}
	const both = "10.0.0.0/16 fd00:53::/112"
	sync(both, "", 3, "10.0.0.0/16 dev eth0 proto 102 scope link metric 1717986918 \n", "fd00:53::/112 dev eth0 proto 102 metric 1717986918 ")
	sync(both, "", 0, "10.0.0.0/16 dev eth0", "fd00:53::/112 dev eth0")
	// A source counts as soon as it is this host's.
	sync(both, "10.1.1.2 fd00:1::2", 0, "10.0.0.0/16 dev eth0", "fd00:53::/112 dev eth0")
	from := []string{"10.0.0.0/16 dev eth0 proto 102 scope link src 10.1.1.1 metric 1717986918", "fd00:53::/112 dev eth0 proto 102 src fd00:1::1 metric 1717986918"}
	sync(both, "10.1.1.2 fd00:1::2 10.1.1.1 fd00:1::1", 2, from...)
	sync(both, "10.1.1.1 fd00:1::1", 0, from...)
	// The kernel takes IPv4's route away with the address, of IPv6's the source,
	// Linux 6.1 not even that.
	h.ip(t, "addr del 10.1.1.1/24 dev eth0")
	h.ip(t, "addr del fd00:1::1/64 dev eth0")
	sync(both, "10.1.1.1 fd00:1::1", -1, "10.0.0.0/16 dev eth0", "fd00:53::/112 dev eth0")
	h.ip(t, "route flush proto 0x66 dev eth0")
	h.ip(t, "-6 route flush proto 0x66 dev eth0")
	sync(both, "", 2, "10.0.0.0/16 dev eth0", "fd00:53::/112 dev eth0")
	sync("10.3.0.0/16", "", 3, "10.3.0.0/16 dev eth0")
	// One that is down takes none.
	links = h.links(t, "eth1", "eth0")
	sync("10.3.0.0/16", "", 0, "10.3.0.0/16 dev eth0")
	h.ip(t, "link set eth1 down")
	h.ip(t, "route flush proto 0x66 dev eth0")
	if n, err := h.h.SyncServices(prefixes("10.3.0.0/16"), links, nil); n != 1 || err != nil {
		t.Errorf("where the first link is down: %d writes, %v", n, err)
	}
	sync("10.3.0.0/16", "", 0, "10.3.0.0/16 dev eth0")
	h.ip(t, "link set eth1 up")
	links = h.links(t, "eth1")
	sync("10.3.0.0/16", "", 2, "10.3.0.0/16 dev eth1")
	links = h.links(t, "eth0")
	sync("10.3.0.0/16", "", 2, "10.3.0.0/16 dev eth0")

	routes, err := h.h.Routes(link.RouteFilter{Protocol: link.Protocol})
	if text := fmt.Sprint(routes); err != nil || strings.Contains(text, "10.3.0.0") || !strings.Contains(text, "10.6.0.0") {
		t.Errorf("who syncs other routes of ours sees %s, %v", text, err)
	}
	for _, bad := range []string{"0.0.0.0/0", "10.0.0.1/16", "127.0.0.0/8", "ff00::/8", "::ffff:10.0.0.0/112"} {
		if n, err := h.h.SyncServices(prefixes(bad), links, nil); err == nil || n != 0 {
			t.Errorf("%s: %d writes, %v", bad, n, err)
		}
	}
	if n, err := h.h.SyncServices(prefixes("10.3.0.0/16 10.8.0.0/16"), links, nil); n != 1 || err == nil || !strings.Contains(err.Error(), "10.8.0.0/16") {
		t.Errorf("another's route in the way: %d writes, %v", n, err)
	}
	sync("", "", 1)
	for _, want := range []string{"10.8.0.0/16 dev lo", "10.6.0.0/16 proto 102", "fd00:7::/64 dev lo proto 102"} {
		if !strings.Contains(all(), want) {
			t.Errorf("%q is gone:\n%s", want, all())
		}
	}
}

// links are the indices of interfaces.
func (h host) links(t *testing.T, names ...string) (all []int) {
	t.Helper()
	for _, name := range names {
		l, err := h.h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l.Index)
	}
	return all
}

func TestARouteToServicesThatSomebodyTookAwayIsTold(t *testing.T) {
	w := newWatched(t)
	sync := func(writes int) {
		t.Helper()
		if n, err := w.own.SyncServices(prefixes("10.0.0.0/16 fd00:53::/112"), w.links(t, "eth0"), nil); err != nil || n != writes {
			t.Errorf("%d writes, %v", n, err)
		}
	}
	sync(2)
	w.quiet(t, "our own doing")
	for _, route := range []string{"route del 10.0.0.0/16", "-6 route del fd00:53::/112"} {
		w.ip(t, route)
		w.told(t, route, link.Change{Devices: true})
		sync(1)
	}
	w.quiet(t, "the repair")
}

// servicesScene is a host with a container and no default route, whose packet
// filter sends port 53 of 10.0.0.10 and fd00:53::a to the container.
func servicesScene(t *testing.T) (host, pod *netns.NS) {
	host, pod = netnstest.NewNamed(t), netnstest.NewNamed(t)
	name := pod.Path()[strings.LastIndex(pod.Path(), "/")+1:]
	netnstest.Run(t, host, "sh", "-ec", strings.ReplaceAll(`
		sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add eth0 up type veth peer name far0; ip link set far0 up
		ip addr add 192.168.7.1/24 dev eth0; ip addr add fd00:77::1/64 dev eth0 nodad
		ip link add cni0 up type bridge
		ip addr add 10.1.1.1/24 dev cni0; ip addr add fd00:1::1/64 dev cni0 nodad
		ip link add p1 up master cni0 type veth peer name eth0 netns NS
		ip -n NS link set eth0 up; ip -n NS addr add 10.1.1.2/24 dev eth0; ip -n NS addr add fd00:1::2/64 dev eth0 nodad
		ip -n NS route add default via 10.1.1.1; ip -n NS -6 route add default via fd00:1::1
		nft -f - <<-END
			table inet t {
				chain out {
					type nat hook output priority -100
					ip daddr 10.0.0.10 th dport 53 dnat ip to 10.1.1.2
					ip6 daddr fd00:53::a th dport 53 dnat ip6 to fd00:1::2
				}
			}
			END`, "NS", name))
	return host, pod
}

func TestAHostReachesServicesWithoutADefaultRoute(t *testing.T) {
	ns, pod := servicesScene(t)
	h, err := link.OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	virtual, own, there := localAddrs("10.0.0.10 fd00:53::a"), localAddrs("10.1.1.1 fd00:1::1"), localAddrs("10.1.1.2 fd00:1::2")
	for i, a := range virtual {
		echoAt(t, pod, there[i])
		if got := seenAt(t, ns, "tcp", a); !strings.Contains(got, "unreachable") {
			t.Errorf("%s is reached without a route: %q", a, got)
		}
	}
	if _, err := h.SyncServices(prefixes("10.0.0.0/16 fd00:53::/112"), host{ns, h}.links(t, "eth0"), own); err != nil {
		t.Fatal(err)
	}
	for i, a := range virtual {
		for _, network := range []string{"udp", "tcp"} {
			if got := seenAt(t, ns, network, a); got != own[i].String() {
				t.Errorf("%s %s: the host is seen as %q, want %s", network, a, got, own[i])
			}
		}
	}
}

// TestWhatIsNotTranslatedIsRefusedAsTheFilterSays: by containers and the host
// itself, over UDP, whose refusals the kernel sends as ICMP.
func TestWhatIsNotTranslatedIsRefusedAsTheFilterSays(t *testing.T) {
	ns, pod := servicesScene(t)
	netnstest.Run(t, ns, "nft", "add chain inet t f { type filter hook forward priority 0; }; add chain inet t o { type filter hook output priority 0; }; "+
		"add rule inet t f ip daddr 10.0.0.0/16 reject; add rule inet t f ip6 daddr fd00:53::/112 reject; "+
		"add rule inet t o ip daddr 10.0.0.0/16 reject; add rule inet t o ip6 daddr fd00:53::/112 reject")
	h, err := link.OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.SyncServices(prefixes("10.0.0.0/16 fd00:53::/112"), host{ns, h}.links(t, "eth0"), localAddrs("10.1.1.1 fd00:1::1")); err != nil {
		t.Fatal(err)
	}
	for _, a := range localAddrs("10.0.0.10 fd00:53::a") {
		for name, from := range map[string]*netns.NS{"a container": pod, "the host": ns} {
			if err := refusal(t, from, a); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s from %s: %v", a, name, err)
			}
		}
	}
}

// refusal is what one who sends a UDP packet to port 54 gets to hear.
func refusal(t *testing.T, n *netns.NS, a netip.Addr) (heard error) {
	t.Helper()
	err := n.Do(func() error {
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		var d net.Dialer
		c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(a, 54).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = c.Write([]byte("?")) // the host's own filter refuses here (EPERM), and says so once more
		_, heard = c.Read(make([]byte, 8))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return heard
}
