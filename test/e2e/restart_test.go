package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func TestKilledAndRestartedDaemonLosesNothing(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{"through the tunnel": tunnelOnly, "plain": dual} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			killedAndRestarted(t, config)
		})
	}
}

func killedAndRestarted(t *testing.T, config string) {
	t.Helper()
	c := newCluster(t, 2, config)
	c.startAll("--ip-masq")
	h1, h2 := c.host(1), c.host(2)
	if config != tunnelOnly {
		for _, h := range []*lab.Host{h1, h2} {
			within(t, 20*time.Second, h.Name+" does without the tunnel", contains(h, true, "flannel", plainRoutes...))
		}
	}
	kernel := func() string { return c.kernel(h1) + "\n" + c.run(h1, plainRoutes...) }
	before := kernel()
	f := startTraffic(t, c.attach(h1, "a"), c.attach(h2, "b"))
	for range 2 {
		for n := 1; n <= 2; n++ {
			h := c.host(n)
			d, err := h.Daemon()
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			c.start(h, "--ip-masq")
			c.waitOK(h, 1)
		}
	}
	// The polite way too.
	d, err := h1.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	c.start(h1, "--ip-masq")
	c.waitOK(h1, 1)
	f.stop()
	if after := kernel(); after != before {
		t.Errorf("kernel before:\n%s\nafter:\n%s", before, after)
	}
}

// kernel is what the daemon keeps in the kernel, as text without what
// changes by itself.
func (c *cluster) kernel(h *lab.Host) string {
	c.t.Helper()
	return c.sh(h, `for d in $(ls /sys/class/net | grep flannel); do
			ip -d -o link show dev $d | sed 's/ qlen.*vxlan/ vxlan/; s/^[0-9]*: //'
			ip -o addr show dev $d | sed 's/^[0-9]*: //' | grep -v fe80 | sort
			ip route show dev $d; ip -6 route show dev $d | grep -v -e fe80 -e ff00
			bridge fdb show dev $d | sort
			ip neigh show dev $d nud permanent | sort; ip -6 neigh show dev $d nud permanent | sort
		done`)
}

func TestEntriesOfPeersThatLeftMeanwhileGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, ipv4)
	c.startAll()
	h1, h3 := c.host(1), c.host(3)
	gone := c.subnet(h3)
	key, _ := c.leaseOf(h3.Addr())
	for _, n := range []int{1, 3} {
		d, err := c.host(n).Daemon()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.etcdctl("del", prefix+"/subnets/"+key)
	if err := contains(h1, false, gone.String(), "ip", "route")(); err != nil {
		t.Fatal(err)
	}
	c.start(h1)
	c.waitOK(h1, 1)
	for _, argv := range [][]string{{"ip", "route"}, {"ip", "neigh"}} {
		if err := contains(h1, true, gone.Addr().String(), argv...)(); err != nil {
			t.Error(err)
		}
	}
	if err := contains(h1, true, h3.Addr().String(), "bridge", "fdb")(); err != nil {
		t.Error(err)
	}
}

func TestDeletedKernelObjectsComeBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, tunnelOnly)
	c.startAll("--ip-masq")
	h1, h2 := c.host(1), c.host(2)
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	for _, addr := range b.Addrs {
		c.reach(a, addr.Addr())
	}
	state := func() string { return c.kernel(h1) + "\n" + c.rules(h1) }
	before := state()
	for _, script := range []string{
		"ip route flush dev flannel.1",
		"ip -6 route del $(ip -6 route show dev flannel-v6.1 | grep via | cut -d' ' -f1)",
		"ip neigh flush dev flannel.1 nud permanent",
		"ip -6 neigh flush dev flannel-v6.1 nud permanent",
		`bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1; done`,
		`bridge fdb show dev flannel-v6.1 | while read mac rest; do bridge fdb del $mac dev flannel-v6.1; done`,
		"ip addr flush dev flannel.1 scope global",
		"ip -6 addr flush dev flannel-v6.1 scope global",
		"ip link set flannel.1 down",
		"ip link set flannel-v6.1 down",
		"ip link set flannel.1 mtu 1300",
		"ip link set flannel.1 address 02:00:00:00:00:01",
		"ip link del flannel.1",
		"ip link del flannel-v6.1",
		"nft flush ruleset",
		"sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
	} {
		c.sh(h1, script)
		took := within(t, 10*time.Second, script, func() error {
			if now := state(); now != before {
				return fmt.Errorf("before:\n%s\nnow:\n%s", before, now)
			}
			return nil
		})
		t.Logf("%s: repaired after %s", script, took.Round(10*time.Millisecond))
		for _, addr := range b.Addrs {
			c.reach(a, addr.Addr())
		}
	}
}

// Docker and others drop what they do not know.
func TestForwardingLivesBesideADefaultDrop(t *testing.T) {
	t.Parallel()
	need(t, "iptables", "ip6tables")
	c := newCluster(t, 2, dual)
	c.startAll()
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	for _, script := range []string{
		"iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
		"iptables -F; ip6tables -F",
		"nft flush ruleset; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
	} {
		for _, h := range c.lab.Hosts() {
			c.sh(h, script)
		}
		took := within(t, 10*time.Second, script, func() error {
			for _, addr := range b.Addrs {
				p, err := lab.NewPinger(a, addr.Addr())
				if err != nil {
					return err
				}
				_, err = p.Ping(64, 100*time.Millisecond)
				p.Close()
				if err != nil {
					return err
				}
			}
			return nil
		})
		t.Logf("%s: traffic again after %s", script, took.Round(10*time.Millisecond))
	}
}

// rules is the daemon's packet filter and settings, without counters.
func (c *cluster) rules(h *lab.Host) string {
	c.t.Helper()
	table := c.sh(h, "nft -s list table inet flanneld || true") // it may have been flushed
	// Chains stand in the order in which they were made, which means nothing.
	blocks := strings.Split(strings.TrimPrefix(table, "table inet flanneld {\n"), "\n\n")
	for i := range blocks {
		blocks[i] = strings.Trim(blocks[i], "}\n\t ")
	}
	slices.Sort(blocks)
	blocks = append(blocks, c.sh(h, "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding"))
	return strings.Join(blocks, "\n\n")
}
