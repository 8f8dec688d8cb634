package hostgw

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// host is a namespace with eth0 as its way to others.
type host struct {
	*netns.NS
	dev *Device
	own subnet.Lease
}

func newHost(t *testing.T, cfg subnet.Config, addrs ...string) *host {
	t.Helper()
	h := &host{NS: netnstest.New(t), own: subnet.Lease{Type: Type}}
	h.run(t, "ip link add eth0 up type veth peer name far0")
	h.run(t, "ip link set far0 up")
	u := backend.Underlay{Link: "eth0", MTU: 1500}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		h.run(t, "ip addr add "+a+" dev eth0 nodad")
		u.Addrs = append(u.Addrs, p.Addr())
	}
	u.PublicIPs = u.Addrs
	for _, r := range cfg.Ranges {
		h.own.Subnets = append(h.own.Subnets, netip.PrefixFrom(r.Network.Addr(), r.SubnetLen))
	}
	h.own.PublicIPs = u.PublicIPs
	err := h.Do(func() error {
		dev, err := Driver{}.Open(t.Context(), cfg, u, "id")
		if err == nil {
			h.dev = dev.(*Device)
			t.Cleanup(func() { dev.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) run(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	return netnstest.Run(t, h.NS, args[0], args[1:]...)
}

func configOf(networks ...string) subnet.Config {
	c := subnet.Config{Backend: subnet.Backend{Type: Type}}
	for _, n := range networks {
		p := netip.MustParsePrefix(n)
		bits := 24
		if p.Addr().Is6() {
			bits = 64
		}
		c.Ranges = append(c.Ranges, subnet.Range{Network: p, SubnetLen: bits})
	}
	return c
}

func TestPeerOnAnotherLinkIsReportedAndGetsNoRoute(t *testing.T) {
	netnstest.NeedRoot(t)
	h := newHost(t, configOf("10.1.0.0/16"), "192.168.77.1/24")
	h.run(t, "ip route add default via 192.168.77.254")
	far := backend.Peer{Lease: &subnet.Lease{Key: "far", Type: Type,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.5.0/24")}, PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.88.5")}}}
	near := backend.Peer{Lease: &subnet.Lease{Key: "near", Type: Type,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.6.0/24")}, PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.6")}}}
	for range 2 {
		err := h.dev.Sync(t.Context(), &h.own, []backend.Peer{far, near})
		pe, ok := errors.AsType[*backend.PeerError](err)
		if !ok || pe.Peer != far.Lease || len(pe.Served) != 0 {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{"192.168.88.5", "eth0", "via 192.168.77.254", "one link", "vxlan"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not name %s", err, want)
			}
		}
		routes := h.run(t, "ip route")
		if strings.Contains(routes, "10.1.5.0/24") || !strings.Contains(routes, "10.1.6.0/24 via 192.168.77.6 dev eth0") {
			t.Errorf("routes:\n%s", routes)
		}
		h.dev.Forget()
	}
	// It moves to this link.
	moved := *far.Lease
	moved.PublicIPs, moved.Revision = []netip.Addr{netip.MustParseAddr("192.168.77.5")}, 9
	if err := h.dev.Sync(t.Context(), &h.own, []backend.Peer{{Lease: &moved}, near}); err != nil {
		t.Fatal(err)
	}
	if routes := h.run(t, "ip route"); !strings.Contains(routes, "10.1.5.0/24 via 192.168.77.5 dev eth0") {
		t.Errorf("routes:\n%s", routes)
	}
	// And away again: the route must not stay.
	if err := h.dev.Sync(t.Context(), &h.own, []backend.Peer{far, near}); err == nil {
		t.Error("not reported again")
	}
	if routes := h.run(t, "ip route"); strings.Contains(routes, "10.1.5.0/24") {
		t.Errorf("routes:\n%s", routes)
	}
}

func TestHostBehindAddressTranslationIsRefused(t *testing.T) {
	u := backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}, PublicIPs: []netip.Addr{netip.MustParseAddr("198.51.100.5")}}
	_, err := Driver{}.Open(t.Context(), configOf("10.1.0.0/16"), u, "id")
	if err == nil || !strings.Contains(err.Error(), "198.51.100.5") || !strings.Contains(err.Error(), "10.0.0.5") {
		t.Errorf("got %v", err)
	}
}

func TestStrangersInterfaceOfTheNameIsNotTaken(t *testing.T) {
	netnstest.NeedRoot(t)
	h := &host{NS: netnstest.New(t)}
	h.run(t, "ip link add eth0 up type veth peer name flannel.host-gw")
	h.run(t, "ip addr add 192.168.77.1/24 dev eth0")
	a := []netip.Addr{netip.MustParseAddr("192.168.77.1")}
	err := h.Do(func() error {
		_, err := Driver{}.Open(t.Context(), configOf("10.1.0.0/16"), backend.Underlay{Link: "eth0", MTU: 1500, Addrs: a, PublicIPs: a}, "id")
		return errors.Join(err, Driver{}.Cleanup(t.Context()))
	})
	if err == nil || !strings.Contains(err.Error(), "ip link del flannel.host-gw") {
		t.Errorf("got %v", err)
	}
	h.run(t, "ip link show flannel.host-gw")
}

func TestFamilyThatTheNetworkHasNoMoreLeavesNoAddress(t *testing.T) {
	netnstest.NeedRoot(t)
	h := newHost(t, configOf("10.1.0.0/16", "fd00:1::/48"), "192.168.77.1/24", "fd77::1/64")
	if err := h.dev.Sync(t.Context(), &h.own, nil); err != nil {
		t.Fatal(err)
	}
	if out := h.run(t, "ip -o addr show dev flannel.host-gw"); strings.Count(out, "\n") != 2 {
		t.Errorf("got\n%s", out)
	}
	a := []netip.Addr{netip.MustParseAddr("fd77::1")}
	err := h.Do(func() error {
		dev, err := Driver{}.Open(t.Context(), configOf("fd00:1::/48"), backend.Underlay{Link: "eth0", MTU: 1500, Addrs: a, PublicIPs: a}, "id")
		if err != nil {
			return err
		}
		defer dev.Close()
		return dev.Sync(t.Context(), &subnet.Lease{Subnets: h.own.Subnets[1:]}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := h.run(t, "ip -o addr show dev flannel.host-gw"); strings.Contains(out, "10.1.0.0") || !strings.Contains(out, "fd00:1::") {
		t.Errorf("got\n%s", out)
	}
}

func TestHostAnswersAtItsSubnetsOwnAddress(t *testing.T) {
	netnstest.NeedRoot(t)
	cfg := configOf("10.1.0.0/16", "fd00:1::/48")
	h := newHost(t, cfg, "192.168.77.1/24", "fd77::1/64")
	if err := h.dev.Sync(t.Context(), &h.own, nil); err != nil {
		t.Fatal(err)
	}
	h.run(t, "ip link set lo up")
	far := netnstest.New(t)
	h.run(t, "ip link set far0 netns "+far.Path())
	for _, line := range []string{
		"ip link set far0 up", "ip addr add 192.168.77.9/24 dev far0", "ip addr add fd77::9/64 dev far0 nodad",
		"ip route add 10.1.0.0/24 via 192.168.77.1", "ip -6 route add fd00:1::/64 via fd77::1",
	} {
		args := strings.Fields(line)
		netnstest.Run(t, far, args[0], args[1:]...)
	}
	// The containers' bridge comes later, and has the subnet-router anycast
	// address of IPv6.
	for _, line := range []string{"ip link add cni0 up type bridge", "ip addr add 10.1.0.1/24 dev cni0", "ip addr add fd00:1::1/64 dev cni0 nodad"} {
		h.run(t, line)
	}
	for _, a := range []string{"10.1.0.0", "fd00:1::"} {
		if out := netnstest.Run(t, far, "ping", "-n", "-c", "1", "-W", "2", a); !strings.Contains(out, "bytes from "+a+":") {
			t.Errorf("somebody else answers for %s:\n%s", a, out)
		}
	}
}
