package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/lab"
)

// tunnelOnly is dual without direct routing.
const tunnelOnly = `{"EnableIPv6":true,"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","IPv6Network":"fd00:10:1::/48","Backend":{"Type":"vxlan","DirectRouting":false}}`

// probed waits until every probe of the host's peers is as wanted.
func (c *cluster) probed(h *lab.Host, limit time.Duration, what string, ok func(api.Probe) bool) {
	c.t.Helper()
	within(c.t, limit, h.Name+": probes "+what, func() error {
		s, err := c.status(h)
		if err != nil {
			return err
		}
		n := 0
		for _, p := range s.Peers {
			for _, w := range p.Probes {
				if n++; !ok(w) {
					return fmt.Errorf("%+v", w)
				}
			}
		}
		if n == 0 {
			return fmt.Errorf("no probes: %+v", s.Peers)
		}
		return nil
	})
}

func verdict(v string) func(api.Probe) bool {
	return func(p api.Probe) bool { return p.Verdict == v }
}

func TestStatusTellsWhetherTheTunnelWorks(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, tunnelOnly)
	c.startAll("--healthz-port", "8080")
	h, peer := c.host(1), c.host(2)
	c.probed(h, 20*time.Second, "are well", func(p api.Probe) bool {
		return p.Verdict == "ok" && p.RTT > 0 && p.MTU == 1430 && p.TCP == "works" && p.Message == ""
	})
	healthz := func() string { return c.run(h, "curl", "-s", "-f", "http://127.0.0.1:8080/healthz?verbose") }
	if out := healthz(); !strings.HasPrefix(out, "ok\n") || !strings.Contains(out, "1430 bytes pass, TCP works") {
		t.Errorf("healthz?verbose: %q", out)
	}

	c.sh(peer, "nft 'add table inet wall; add chain inet wall in { type filter hook prerouting priority -400; }; add rule inet wall in udp dport 8472 drop'")
	const says = "host2: VXLAN packets to 192.168.77.12:8472/udp do not arrive: a firewall?"
	c.probed(h, 120*time.Second, "see the firewall", verdict("unreachable"))
	s, err := c.status(h)
	if err != nil {
		t.Fatal(err)
	}
	if s.Verdict != api.Degraded || !slices.Contains(s.Reasons, says) {
		t.Errorf("verdict %s, reasons %q", s.Verdict, s.Reasons)
	}
	if out := healthz(); !strings.Contains(out, says) {
		t.Errorf("healthz?verbose: %q", out)
	}
	if log := h.LogTail(5); !strings.Contains(log, says) {
		t.Errorf("log: %s", log)
	}
	c.sh(peer, "nft delete table inet wall")
	c.probed(h, 40*time.Second, "are well again", verdict("ok"))
	c.waitOK(h, 1)
}

// A host that is gone is no trouble with a tunnel.
func TestDeadHostIsNoTunnelTrouble(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h, peer := c.host(1), c.host(2)
	c.probed(h, 20*time.Second, "are well", verdict("ok"))
	d, err := peer.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := peer.Unplug(); err != nil {
		t.Fatal(err)
	}
	c.probed(h, 90*time.Second, "say that it is down", verdict("down"))
	if s, err := c.status(h); err != nil || s.Verdict != api.OK {
		t.Errorf("verdict %s, reasons %q: %v", s.Verdict, s.Reasons, err)
	}
}

// plainRoutes shows by what interfaces peers are reached.
var plainRoutes = []string{"sh", "-c", "ip route show proto 0x66; ip -6 route show proto 0x66"}

// Hosts of one link do without encapsulation as long as that works.
func TestPlainPacketsAreUsedWhileTheyPass(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, dual)
	c.startAll()
	h, peer := c.host(1), c.host(2)
	// A look that fails, on a busy machine, is held against the way for a minute.
	within(t, 100*time.Second, "plain routes", contains(h, true, "flannel", plainRoutes...))
	within(t, 100*time.Second, "plain routes back", contains(peer, true, "flannel", plainRoutes...))
	a, b := c.attach(h, "a"), c.attach(peer, "b")
	for _, ip := range b.Addrs {
		c.reach(a, ip.Addr())
	}
	c.sh(peer, "nft 'add table inet wall; add chain inet wall in { type filter hook prerouting priority -400; }; "+
		"add rule inet wall in iifname eth0 ip saddr 10.1.0.0/16 drop; add rule inet wall in iifname eth0 ip6 saddr fd00:10:1::/48 drop'")
	took := within(t, 40*time.Second, "the tunnel is used", contains(h, false, "flannel", plainRoutes...))
	t.Logf("through the tunnel after %v", took.Round(time.Millisecond))
	for _, ip := range b.Addrs {
		c.reach(a, ip.Addr())
	}
}

func TestFixOffloadIsDoneAndUndone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, ipv4)
	h := c.host(1)
	offload := func(want bool) func() error {
		return func() error {
			return h.Do(func() error {
				l, err := link.Open()
				if err != nil {
					return err
				}
				defer l.Close()
				if on, err := l.TxChecksums("flannel.1"); err != nil || on != want {
					return fmt.Errorf("checksum offload is %v, want %v: %w", on, want, err)
				}
				return nil
			})
		}
	}
	d := c.start(h, "--fix-offload")
	within(t, 10*time.Second, "offload is off", offload(false))
	c.run(h, "ip", "link", "del", "flannel.1")
	within(t, 15*time.Second, "offload of the new device is off", offload(false))
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.start(h)
	within(t, 10*time.Second, "offload is on again", offload(true))
}
