package ipip

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// host is a namespace with eth0 as its way to others.
type host struct {
	*netns.NS
	u   backend.Underlay
	own subnet.Lease
}

// newHost makes one, or skips the test where the kernel has no IPIP.
func newHost(t *testing.T) *host {
	t.Helper()
	netnstest.NeedRoot(t)
	h := &host{NS: netnstest.New(t), u: backend.Underlay{Link: "eth0", MTU: 1500}}
	for _, line := range []string{"ip link add eth0 up type veth peer name far0", "ip link set far0 up", "ip addr add 192.168.77.1/24 dev eth0", "ip addr add fd77::1/64 dev eth0 nodad"} {
		h.run(t, line)
	}
	h.u.Addrs = []netip.Addr{netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("fd77::1")}
	h.u.PublicIPs = h.u.Addrs
	h.own = subnet.Lease{Type: Type, PublicIPs: h.u.Addrs, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}}
	if _, err := h.open(t, config(`{"Type":"ipip"}`)); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("this kernel has no IPIP: %v", err)
	}
	if err := h.Do(func() error { return Driver{}.Cleanup(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) run(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	return netnstest.Run(t, h.NS, args[0], args[1:]...)
}

func (h *host) open(t *testing.T, c subnet.Config) (dev *Device, err error) {
	err = h.Do(func() error {
		d, err := Driver{}.Open(t.Context(), c, h.u, "id")
		if err == nil {
			dev = d.(*Device)
			t.Cleanup(func() { dev.Close() })
		}
		return err
	})
	return dev, err
}

func config(options string) subnet.Config {
	return subnet.Config{Backend: subnet.Backend{Type: Type, Raw: []byte(options)},
		Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 28}}}
}

func TestOverheadIsOneHeader(t *testing.T) {
	for name, c := range map[string]struct {
		networks []string
		options  string
		mtu      int
	}{
		"IPv4":            {[]string{"10.0.0.0/8"}, `{}`, 1480},
		"IPv6":            {[]string{"fd00::/32"}, `{}`, 1460},
		"both":            {[]string{"10.0.0.0/8", "fd00::/32"}, `{}`, 1460},
		"told":            {[]string{"10.0.0.0/8"}, `{"mtu":1400}`, 1380},
		"more than there": {[]string{"10.0.0.0/8"}, `{"MTU":9000}`, 1480},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			cfg := config(c.options)
			cfg.Ranges = nil
			for _, n := range c.networks {
				cfg.Ranges = append(cfg.Ranges, subnet.Range{Network: netip.MustParsePrefix(n), SubnetLen: 64})
			}
			cfg.Ranges[0].SubnetLen = 28
			dev, err := h.open(t, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := dev.Info().MTU; got != c.mtu {
				t.Errorf("MTU %d, want %d", got, c.mtu)
			}
		})
	}
}

func TestFlannelsDeviceIsAdopted(t *testing.T) {
	h := newHost(t)
	h.run(t, "ip link add flannel.ipip mtu 1480 type ipip local 192.168.77.1")
	before := h.run(t, "ip -o link show flannel.ipip")
	dev, err := h.open(t, config(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(t.Context(), &h.own, nil); err != nil {
		t.Fatal(err)
	}
	if after := h.run(t, "ip -o link show flannel.ipip"); strings.Fields(after)[0] != strings.Fields(before)[0] {
		t.Errorf("replaced:\n%s%s", before, after)
	}
}

func TestSecondNetworkOnOneHostIsToldThatIPIPHasNoNumber(t *testing.T) {
	h := newHost(t)
	h.run(t, "ip link add other type ipip local 192.168.77.1")
	_, err := h.open(t, config(`{}`))
	if err == nil || !strings.Contains(err.Error(), "ip link del other") || !strings.Contains(err.Error(), "vxlan") {
		t.Errorf("got %v", err)
	}
	h.run(t, "ip link show other")
	if err := h.Do(func() error { return Driver{}.Cleanup(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	h.run(t, "ip link show other")
}

func TestSecondIPv6NetworkOnOneHostIsToldSo(t *testing.T) {
	h := newHost(t)
	cfg := config(`{}`)
	cfg.Ranges[0] = subnet.Range{Network: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64}
	h.run(t, "ip link add other type ip6tnl external")
	if _, err := h.open(t, cfg); err == nil || !strings.Contains(err.Error(), "ip link del other") {
		t.Errorf("got %v", err)
	}
	h.run(t, "ip link show other")
}

func TestDevicesOfStrangersAreNotInTheWay(t *testing.T) {
	h := newHost(t)
	h.run(t, "ip link add far type ipip local 192.168.77.1 remote 192.168.77.9")
	h.run(t, "ip link set tunl0 up") // the kernel's own, for any address
	if _, err := h.open(t, config(`{}`)); err != nil {
		t.Fatal(err)
	}
	h.run(t, "ip link show far")
}

func TestOtherInterfaceOfTheNameIsNotTaken(t *testing.T) {
	netnstest.NeedRoot(t)
	h := &host{NS: netnstest.New(t)}
	h.run(t, "ip link add flannel.ipip type veth peer name eth0")
	h.u = backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}}
	if _, err := h.open(t, config(`{}`)); err == nil || !strings.Contains(err.Error(), "ip link del flannel.ipip") {
		t.Errorf("got %v", err)
	}
	h.run(t, "ip link show flannel.ipip")
}

func TestKernelWithoutIPIPIsTold(t *testing.T) {
	netnstest.NeedRoot(t)
	h := &host{NS: netnstest.New(t)}
	h.run(t, "ip link add far0 type veth peer name eth0")
	h.u = backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}}
	_, err := h.open(t, config(`{}`))
	if err == nil {
		return // it has
	}
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "CONFIG_NET_IPIP") {
		t.Errorf("got %v", err)
	}
}

func TestClassicTunnelIsAPeer(t *testing.T) {
	h := newHost(t)
	far := netnstest.New(t)
	h.run(t, "ip link set far0 netns "+far.Path())
	for _, line := range []string{
		"ip link set far0 up", "ip addr add 192.168.77.9/24 dev far0", "ip addr add fd77::9/64 dev far0 nodad",
		"ip link add old4 up type ipip local 192.168.77.9 remote 192.168.77.1 ttl 64",
		"ip link add old6 up type ip6tnl mode ip6ip6 local fd77::9 remote fd77::1 encaplimit none",
		"ip addr add 10.0.0.32/32 dev old4", "ip route add 10.0.0.0/28 dev old4",
		"ip addr add fd00:0:0:9::/128 dev old6 nodad", "ip route add fd00::/64 dev old6",
	} {
		args := strings.Fields(line)
		netnstest.Run(t, far, args[0], args[1:]...)
	}
	cfg := config(`{"DirectRouting":false}`)
	cfg.Ranges = append(cfg.Ranges, subnet.Range{Network: netip.MustParsePrefix("fd00::/32"), SubnetLen: 64})
	h.own.Subnets = append(h.own.Subnets, netip.MustParsePrefix("fd00::/64"))
	dev, err := h.open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	peer := backend.Peer{Lease: &subnet.Lease{Type: Type, Key: "old",
		Subnets:   []netip.Prefix{netip.MustParsePrefix("10.0.0.32/28"), netip.MustParsePrefix("fd00:0:0:9::/64")},
		PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.9"), netip.MustParseAddr("fd77::9")}}}
	if err := dev.Sync(t.Context(), &h.own, []backend.Peer{peer}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"ping -n -c 2 -W 2 -I 10.0.0.0 10.0.0.32", "ping -n -c 2 -W 2 -I fd00:: fd00:0:0:9::"} {
		h.run(t, line)
	}
	for _, line := range []string{"ping -n -c 2 -W 2 -I 10.0.0.32 10.0.0.0", "ping -n -c 2 -W 2 -I fd00:0:0:9:: fd00::"} {
		args := strings.Fields(line)
		netnstest.Run(t, far, args[0], args[1:]...)
	}
}
