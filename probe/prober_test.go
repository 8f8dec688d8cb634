package probe

import (
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// both starts both hosts' probers.
func (w *world) both() {
	w.t.Helper()
	for i, h := range w.hosts {
		h.start()
		h.tell(w.state(i))
	}
}

func TestTunnelThatWorksIsToldSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.both()
	for _, h := range w.hosts {
		r := h.until(10*time.Second, "ok", all(OK))
		for _, p := range r.Paths {
			if p.MTU != mtu || p.RTT <= 0 || p.TCP != TCPWorks || p.Message != "" {
				t.Errorf("host%d: %+v", h.number, p)
			}
		}
	}
}

// A firewall in between is seen, told apart from a dead host, and its end too.
func TestFirewallBetweenHostsIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	netnstest.Run(t, w.router, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; add rule inet t f udp dport 8472 drop")
	w.both()
	r := w.hosts[0].until(30*time.Second, "unreachable", all(Unreachable))
	if want := "host2: VXLAN packets to 192.168.72.2:8472/udp do not arrive: a firewall?"; r.Paths[0].Message != want {
		t.Errorf("message %q, want %q", r.Paths[0].Message, want)
	}
	if want := "host2: VXLAN packets to [fd72::2]:8472/udp do not arrive: a firewall?"; r.Paths[1].Message != want {
		t.Errorf("message %q, want %q", r.Paths[1].Message, want)
	}
	netnstest.Run(t, w.router, "nft", "flush ruleset")
	w.hosts[0].until(20*time.Second, "ok", all(OK))
}

// A host firewall that lets pings in and TCP not is no broken hardware.
func TestFilteredResponderIsNoAlarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	netnstest.Run(t, w.hosts[1].ns, "nft", "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i tcp dport 8475 ct state new drop")
	w.both()
	filtered := func(r Result) bool {
		return all(OK)(r) && r.Paths[0].TCP == TCPFiltered && r.Paths[1].TCP == TCPFiltered
	}
	w.hosts[0].until(30*time.Second, "filtered", filtered)
	w.hosts[1].until(10*time.Second, "ok", all(OK))
}

func TestSilentUnderlayIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hosts[0].start()
	ip(t, w.router, "link set r2 down")
	w.hosts[0].tell(w.state(0))
	r := w.hosts[0].until(30*time.Second, "unreachable", all(Unreachable))
	if m := r.Paths[0].Message; !strings.Contains(m, "192.168.72.2 on the underlay either") {
		t.Error(m)
	}
}

func TestLargestPacketIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// 1462 bytes of IPv4 on the underlay are 1412 inside.
	netnstest.Run(t, w.router, "nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; add rule inet t f ip length > 1462 drop; add rule inet t f ip6 length > 1442 drop")
	w.both()
	r := w.hosts[0].until(40*time.Second, "small MTU", all(SmallMTU))
	if r.Paths[0].MTU != 1412 || r.Paths[1].MTU != 1412 {
		t.Errorf("%+v", r.Paths)
	}
	if want := "host2: packets over 1412 bytes are lost: set MTU 1412 "; !strings.HasPrefix(r.Paths[0].Message, want) {
		t.Errorf("message %q, want %q", r.Paths[0].Message, want)
	}
}
