package vxlan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// alone is a host without others.
type alone struct {
	ns  *netns.NS
	u   backend.Underlay
	cfg subnet.Config
	own subnet.Lease
}

func newAlone(t *testing.T, options string) *alone {
	ns := netnstest.New(t)
	a := &alone{ns: ns, u: underlayOf(t, ns, "192.168.77.2/24", "fd77::2/64"), cfg: configOf(options, "10.1.0.0/16", "fd00:1::/48")}
	a.cfg.Ranges[1].SubnetLen = 64
	a.own = subnet.Lease{
		Key: "own", Type: Type, PublicIPs: a.u.PublicIPs,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:1:0:2::/64")},
	}
	return a
}

func (a *alone) run(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	return netnstest.Run(t, a.ns, args[0], args[1:]...)
}

func (a *alone) open(ctx context.Context) (dev backend.Device, err error) {
	err = a.ns.Do(func() (err error) {
		dev, err = Driver{}.Open(ctx, a.cfg, a.u, "identity")
		return err
	})
	return dev, err
}

func (a *alone) mustOpen(t *testing.T) backend.Device {
	t.Helper()
	dev, err := a.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// leaseOf is the lease of host n.
func leaseOf(n int) subnet.Lease {
	data := func(family int) json.RawMessage {
		return fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"46:00:00:00:%02x:%02x"}`, family, n)
	}
	return subnet.Lease{
		Key: fmt.Sprintf("lease-%03d", n), Type: Type, Revision: int64(n),
		Subnets:   []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:1:0:%x::/64", n))},
		PublicIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.77.%d", n)), netip.MustParseAddr(fmt.Sprintf("fd77::%x", n))},
		Data:      subnet.BackendData{V4: data(4), V6: data(6)},
	}
}

func TestDeviceThatFitsIsAdoptedWithItsMAC(t *testing.T) {
	a := newAlone(t, "")
	a.run(t, "ip link add flannel.1 address 46:01:02:03:04:05 mtu 1400 type vxlan id 1 local 192.168.77.2 dev eth0 dstport 8472 nolearning")
	before := a.run(t, "ip -o link show flannel.1")
	dev := a.mustOpen(t)
	after := a.run(t, "ip -o link show flannel.1")
	if strings.Fields(before)[0] != strings.Fields(after)[0] {
		t.Errorf("was made anew: %s to %s", before, after)
	}
	if !strings.Contains(after, "mtu 1450") || !strings.Contains(after, ",UP") {
		t.Errorf("not adjusted: %s", after)
	}
	if got := string(dev.Info().Data.V4); got != `{"VNI":1,"VtepMAC":"46:01:02:03:04:05"}` {
		t.Errorf("data %s", got)
	}
}

func TestDeviceThatDoesNotFitIsReplaced(t *testing.T) {
	for name, spec := range map[string]string{
		"VNI":      "type vxlan id 2 local 192.168.77.2 dev eth0 dstport 8472 nolearning",
		"local":    "type vxlan id 1 local 192.168.77.3 dev eth0 dstport 8472 nolearning",
		"link":     "type vxlan id 1 local 192.168.77.2 dev far0 dstport 8472 nolearning",
		"port":     "type vxlan id 1 local 192.168.77.2 dev eth0 dstport 4789 nolearning",
		"GBP":      "type vxlan id 1 local 192.168.77.2 dev eth0 dstport 8472 nolearning gbp",
		"learning": "type vxlan id 1 local 192.168.77.2 dev eth0 dstport 8472",
		"group":    "type vxlan id 1 local 192.168.77.2 dev eth0 dstport 8472 nolearning group 239.1.1.1",
		"kind":     "type bridge",
	} {
		t.Run(name, func(t *testing.T) {
			a := newAlone(t, "")
			a.run(t, "ip link add flannel.1 "+spec)
			a.mustOpen(t)
			got := a.run(t, "ip -d -o link show flannel.1")
			if !strings.Contains(got, "vxlan id 1 local 192.168.77.2 dev eth0 srcport 0 0 dstport 8472 nolearning") || strings.Contains(got, "gbp") {
				t.Errorf("device is %s", got)
			}
		})
	}
}

func TestWhoHoldsVNIAndPort(t *testing.T) {
	const spec = " type vxlan id 1 local 192.168.77.2 dev eth0 dstport 8472 nolearning"
	t.Run("a leftover of ours goes", func(t *testing.T) {
		a := newAlone(t, "")
		a.run(t, "ip link add flannel.77"+spec)
		a.mustOpen(t)
		if all := a.run(t, "ip -o link"); strings.Contains(all, "flannel.77") {
			t.Error(all)
		}
	})
	t.Run("somebody else's is named", func(t *testing.T) {
		a := newAlone(t, "")
		a.run(t, "ip link add theirs"+spec)
		_, err := a.open(t.Context())
		if err == nil || !strings.Contains(err.Error(), "theirs") {
			t.Errorf("got %v", err)
		}
		a.run(t, "ip link show theirs")
	})
}

func TestDeviceIsQuiet(t *testing.T) {
	a := newAlone(t, "")
	a.run(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv6.conf.default.accept_ra=2")
	dev := a.mustOpen(t)
	if err := dev.Sync(t.Context(), &a.own, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"flannel.1", "flannel-v6.1"} {
		for key, want := range map[string]string{"ipv4/conf/%s/rp_filter": "2", "ipv4/conf/%s/arp_ignore": "8", "ipv6/conf/%s/accept_ra": "0", "ipv6/conf/%s/addr_gen_mode": "1"} {
			if got := strings.TrimSpace(a.run(t, "sysctl -n net/"+fmt.Sprintf(key, name))); got != want {
				t.Errorf("%s of %s is %s, want %s", key, name, got, want)
			}
		}
		if got := a.run(t, "ip -6 -o addr show scope link dev "+name); got != "" {
			t.Errorf("link-local address %s", got)
		}
	}
}

func TestAddressFollowsTheLease(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	if got := a.run(t, "ip -o addr show dev flannel.1"); got != "" {
		t.Errorf("an address before the lease: %s", got)
	}
	peers := []subnet.Lease{leaseOf(9)}
	for _, n := range []int{2, 3} {
		own := a.own
		own.Subnets = leaseOf(n).Subnets
		if err := dev.Sync(t.Context(), &own, backendtest.Peers(peers...)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(a.run(t, "ip -4 -br addr show dev flannel.1"))[2:]; len(got) != 1 || got[0] != fmt.Sprintf("10.1.%d.0/32", n) {
			t.Errorf("addresses %v", got)
		}
		if got := strings.Fields(a.run(t, "ip -6 -br addr show dev flannel-v6.1"))[2:]; len(got) != 1 || got[0] != fmt.Sprintf("fd00:1:0:%d::/128", n) {
			t.Errorf("addresses %v", got)
		}
		a.run(t, "ip route get 10.1.9.5")
		if got := a.run(t, "ip route show 10.1.9.0/24"); !strings.Contains(got, "via 10.1.9.0 dev flannel.1 proto 102 metric 10 onlink") {
			t.Errorf("route %q", got)
		}
	}
}

// wayOf fails the test unless the peer of leaseOf(10) is reached that way in
// both families, and by nothing else.
func (a *alone) wayOf(t *testing.T, direct bool) {
	t.Helper()
	routes := a.run(t, "ip route show 10.1.10.0/24") + a.run(t, "ip -6 route show fd00:1:0:a::/64")
	rest := a.run(t, "bridge fdb show dev flannel.1") + a.run(t, "bridge fdb show dev flannel-v6.1") + a.run(t, "ip neigh show nud permanent")
	if strings.Count(routes, "\n") != 2 || strings.Count(routes, "proto 102 metric 11") != 2 {
		t.Errorf("routes %s", routes)
	}
	if direct && (strings.Count(routes, "dev eth0") != 2 || strings.Contains(rest, "46:00:00")) {
		t.Errorf("not direct: %s%s", routes, rest)
	}
	if !direct && (strings.Count(routes, "onlink") != 2 || strings.Count(rest, "46:00:00") != 4) {
		t.Errorf("not by the tunnel: %s%s", routes, rest)
	}
}

func TestTheWayToAPeerIsAsTold(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	near := leaseOf(10)
	sync := func(way backend.Way, direct bool) {
		t.Helper()
		if err := dev.Sync(t.Context(), &a.own, []backend.Peer{{Lease: &near, Way: way}}); err != nil {
			t.Fatal(err)
		}
		a.wayOf(t, direct)
	}
	sync(backend.WayUnknown, false)
	sync(backend.WayPlain, true)
	sync(backend.WayUnknown, true)
	dev.Forget()
	sync(backend.WayUnknown, true)
	dev.Close()
	dev = a.mustOpen(t)
	sync(backend.WayUnknown, true) // a restart changes nothing
	before := dev.(*Device).Writes()
	sync(backend.WayPlain, true)
	if n := dev.(*Device).Writes() - before; n != 0 {
		t.Errorf("%d writes to learn that all is right", n)
	}
	sync(backend.WayTunnel, false)
	sync(backend.WayUnknown, false)
	a.run(t, "ip route add 192.168.77.10/32 via 192.168.77.1")
	a.run(t, "ip -6 route add fd77::a/128 via fd77::1")
	dev.Forget()
	sync(backend.WayPlain, false) // it is on another link
}

func TestDirectRoutingBypassesTheTunnelOnOneLink(t *testing.T) {
	a := newAlone(t, `{"DirectRouting":true}`)
	a.run(t, "ip route add default via 192.168.77.1")
	a.run(t, "ip -6 route add default via fd77::1")
	dev := a.mustOpen(t)
	far := leaseOf(10)
	far.PublicIPs = []netip.Addr{netip.MustParseAddr("172.16.0.10"), netip.MustParseAddr("fd78::10")}
	near := leaseOf(10)
	for range 2 { // there and back
		for _, peer := range []subnet.Lease{far, near} {
			if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peer)); err != nil {
				t.Fatal(err)
			}
			a.wayOf(t, peer.PublicIPs[0] == near.PublicIPs[0])
		}
	}
	// The way to the peer changes while its lease does not.
	for _, fams := range []string{"-4", "-6"} {
		target := map[string]string{"-4": "192.168.77.10/32 via 192.168.77.1", "-6": "fd77::a/128 via fd77::1"}[fams]
		a.run(t, "ip "+fams+" route add "+target)
	}
	dev.Forget()
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(near)); err != nil {
		t.Fatal(err)
	}
	a.wayOf(t, false)
	a.run(t, "ip route del 192.168.77.10/32")
	a.run(t, "ip -6 route del fd77::a/128")
	// A restart without the option takes leftovers of the bypass away.
	dev.Forget()
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(near)); err != nil {
		t.Fatal(err)
	}
	a.wayOf(t, true)
	dev.Close()
	a.cfg.Backend.Raw = json.RawMessage(`{"DirectRouting":false}`)
	dev = a.mustOpen(t)
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(near)); err != nil {
		t.Fatal(err)
	}
	a.wayOf(t, false)
}

func TestOthersRoutesAreLeftAlone(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	if err := dev.Sync(t.Context(), &a.own, nil); err != nil {
		t.Fatal(err)
	}
	theirs := []string{"172.20.0.0/16 dev flannel.1", "10.1.50.0/24 via 192.168.77.9 dev eth0", "10.9.0.0/16 via 192.168.77.9 dev eth0 proto 102"}
	for _, r := range theirs {
		a.run(t, "ip route add "+r)
	}
	for range 2 {
		dev.Forget()
		if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(leaseOf(60))); err != nil {
			t.Fatal(err)
		}
		dev.Close()
		dev = a.mustOpen(t)
	}
	if err := dev.Sync(t.Context(), &a.own, nil); err != nil {
		t.Fatal(err)
	}
	all := a.run(t, "ip route")
	for _, r := range theirs {
		if !strings.Contains(all, strings.Fields(r)[0]) {
			t.Errorf("%s is gone:\n%s", r, all)
		}
	}
}

func TestAPeerThatTheKernelRefusesIsTriedAgain(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	peers := []subnet.Lease{leaseOf(10), leaseOf(11)}
	a.run(t, "ip addr add 10.1.11.0/32 dev far0") // a gateway that is this host itself
	for range 2 {
		err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...))
		pe, ok := errors.AsType[*backend.PeerError](err)
		if !ok || pe.Peer.Key != peers[1].Key {
			t.Fatalf("got %v", err)
		}
		a.run(t, "ip route get 10.1.10.1")
	}
	a.run(t, "ip addr del 10.1.11.0/32 dev far0")
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
		t.Fatal(err)
	}
	if got := a.run(t, "ip route show dev flannel.1"); strings.Count(got, "onlink") != 2 {
		t.Errorf("routes %s", got)
	}
}

func TestUnderlayMadeAnew(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	peers := []subnet.Lease{leaseOf(10)}
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
		t.Fatal(err)
	}
	a.run(t, "ip link del eth0")
	dev.Forget()
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("got %v", err)
	}
	underlayOf(t, a.ns, "192.168.77.2/24", "fd77::2/64")
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
		t.Fatal(err)
	}
	if got := a.run(t, "ip route show dev flannel.1"); strings.Count(got, "onlink") != 1 {
		t.Errorf("routes %s", got)
	}
}

func TestOneFamilysTroubleDoesNotStopTheOther(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	peers := []subnet.Lease{leaseOf(10)}
	a.run(t, "ip link del flannel-v6.1")
	a.run(t, "ip link add theirs type vxlan id 1 local fd77::2 dev eth0 dstport 8472 nolearning")
	dev.Forget()
	for range 2 {
		err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...))
		if err == nil || !strings.Contains(err.Error(), "theirs") {
			t.Errorf("got %v", err)
		}
		a.run(t, "ip route get 10.1.10.1")
	}
	a.run(t, "ip link del theirs")
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
		t.Fatal(err)
	}
	if got := a.run(t, "ip -6 route show dev flannel-v6.1"); strings.Count(got, "onlink") != 1 {
		t.Errorf("routes %s", got)
	}
}

func TestIPv6IsOnWhereTheHostsDefaultIsOff(t *testing.T) {
	a := newAlone(t, "")
	a.run(t, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
	dev := a.mustOpen(t)
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(leaseOf(10))); err != nil {
		t.Fatal(err)
	}
}
