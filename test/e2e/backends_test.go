package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// backends are the drivers that every kernel can have, with something that is
// on a host that uses them and on no other, and what they take from the MTU.
// The rest need the VM.
func backends() []struct {
	kind, trace string
	overhead    int
} {
	return []struct {
		kind, trace string
		overhead    int
	}{
		{"vxlan", "flannel.1:", 50},
		{"host-gw", "192.168.77.", 0},
		{"udp", "flannel0:", 28},
		{"wireguard", "flannel-wg:", 80},
	}
}

func configOf(kind, more string) string {
	return fmt.Sprintf(`{"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","Backend":{"Type":%q%s}}`, kind, more)
}

func TestEveryBackendCarriesContainers(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.kind, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, configOf(b.kind, ""))
			c.startAll("--ip-masq")
			var all []*lab.Container
			for _, h := range c.lab.Hosts() {
				all = append(all, c.attach(h, "a"))
				if got, want := c.env(h)["FLANNEL_MTU"], fmt.Sprint(1500-b.overhead); got != want {
					t.Errorf("MTU %s, want %s", got, want)
				}
			}
			for _, from := range all {
				for _, to := range all {
					c.reach(from, to.Addrs[0].Addr())
				}
			}
			c.reachesOutside(all[0])
			h := c.host(1)
			before := c.subnet(h)
			f := startTraffic(t, all[0], all[1])
			c.end(h, (*lab.Daemon).Kill)
			time.Sleep(300 * time.Millisecond)
			c.start(h, "--ip-masq")
			c.waitOK(h, 2)
			f.stop()
			if c.subnet(h) != before {
				t.Errorf("subnet %s, before %s", c.subnet(h), before)
			}
		})
	}
}

// TestBackendIsChangedHostByHost goes through the drivers on a cluster that
// runs; each leaves nothing behind.
func TestBackendIsChangedHostByHost(t *testing.T) {
	t.Parallel()
	all := backends()
	c := newCluster(t, 2, configOf(all[0].kind, ""))
	c.startAll()
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	subnets := fmt.Sprint(c.subnet(c.host(1)), c.subnet(c.host(2)))
	for i := range all {
		former, next := all[i], all[(i+1)%len(all)]
		c.put("config", configOf(next.kind, ""))
		for _, h := range c.lab.Hosts() {
			within(t, 20*time.Second, next.kind+" is there", contains(h, false, next.trace, "sh", "-c", "ip link; ip route show proto 0x66"))
			if former.trace != next.trace && !strings.HasPrefix(former.trace, "192") {
				within(t, 20*time.Second, former.kind+" is gone", contains(h, true, former.trace, "ip", "link"))
			}
			c.waitOK(h, 1)
		}
		c.reach(a, b.Addrs[0].Addr())
		c.reach(b, a.Addrs[0].Addr())
	}
	if now := fmt.Sprint(c.subnet(c.host(1)), c.subnet(c.host(2))); now != subnets {
		t.Errorf("subnets %s, before %s", now, subnets)
	}
	for _, h := range c.lab.Hosts() {
		c.end(h, (*lab.Daemon).Stop)
		c.run(h, "flanneld", "cleanup")
		left := c.sh(h, "ip -o link; ip route; ip -o addr; ls /run/flannel 2>/dev/null; true")
		for _, b := range all {
			if strings.Contains(b.trace, ":") && strings.Contains(left, b.trace) {
				t.Errorf("%s: %s has left something:\n%s", h.Name, b.kind, left)
			}
		}
		if strings.Contains(left, "proto 102") || strings.Contains(left, "10.1.") {
			t.Errorf("%s: left behind:\n%s", h.Name, left)
		}
	}
}

func TestUnderlaysMTUIsFollowed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	c.reach(a, b.Addrs[0].Addr())
	for _, h := range c.lab.Hosts() {
		c.run(h, "ip", "link", "set", lab.Interface, "mtu", "1400")
		within(t, 10*time.Second, "subnet.env tells the new MTU", contains(h, false, "FLANNEL_MTU=1350", "cat", "/run/flannel/subnet.env"))
		within(t, 10*time.Second, "the device has it", contains(h, false, "mtu 1350", "ip", "link", "show", "flannel.1"))
		c.waitOK(h, 1)
	}
	later := c.attach(c.host(1), "later")
	if out, err := later.Command(t.Context(), "ip", "link", "show", "eth0").CombinedOutput(); err != nil || !strings.Contains(string(out), "mtu 1350") {
		t.Errorf("the next container: %v %s", err, out)
	}
	c.reach(later, b.Addrs[0].Addr())
}

// end ends the daemon of a host.
func (c *cluster) end(h *lab.Host, how func(*lab.Daemon, context.Context) error) {
	c.t.Helper()
	d, err := h.Daemon()
	if err == nil {
		err = how(d, c.t.Context())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}
