package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func TestEmbeddedEtcdServesTheClusterButNoContainer(t *testing.T) {
	t.Parallel()
	c := newLab(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.lab.StartCluster(ctx, "10.1.0.0/16", "--ip-masq"); err != nil {
		t.Fatal(err)
	}
	h1, h2 := c.host(1), c.host(2)
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 2)
	}
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	c.reach(a, b.Addrs[0].Addr())
	server := h1.Addr().String() + ":2379"
	dial := func(in interface{ Do(func() error) error }, to string) error {
		return in.Do(func() error {
			conn, err := net.DialTimeout("tcp", to, time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	if err := dial(h2, server); err != nil {
		t.Errorf("a host does not reach etcd: %v", err)
	}
	gateway := c.subnet(h1).Addr().Next().String() + ":2379"
	for _, in := range []*lab.Container{a, b} {
		for _, to := range []string{server, gateway} {
			if err := dial(in, to); err == nil {
				t.Errorf("container %s reaches etcd at %s", in.Name, to)
			}
		}
	}
	// The first host restarts: its etcd and all leases are there again.
	f := startTraffic(t, a, b)
	before := c.subnet(h1)
	d, err := h1.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.StartDaemon(t.Context(), d.Args...); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 2)
	}
	if after := c.subnet(h1); after != before {
		t.Errorf("subnet %s, before %s", after, before)
	}
	f.stop()
}

func TestCleanupLeavesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, dual)
	h1 := c.host(1)
	// What others have must stay.
	c.sh(h1, `nft 'add table inet others; add chain inet others c { type filter hook forward priority 0; }; add rule inet others c counter'
		iptables -A FORWARD -s 203.0.113.0/24 -j DROP; iptables -t nat -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE
		ip route add 203.0.113.0/24 via 192.168.77.1; ip rule add from 203.0.113.0/24 lookup 99`)
	state := func() string {
		return c.sh(h1, `(ip -o link | sed 's/ qlen.*//; s/state [A-Z]* //'; ip -o addr | sed 's/ *valid_lft.*//'; ip route; ip -6 route) | grep -v fe80
			ip rule; ip -6 rule; bridge fdb | grep flannel || true; nft -s list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'; iptables-save | grep -v '^[#:]' | sed 's/^\[[0-9:]*\] //'
			find /etc/cni /opt/cni /run /var/lib/flanneld -type f 2>/dev/null | grep -v -e '^/run/xtables.lock$' | sort`)
	}
	before := state()
	c.start(h1, "--ip-masq", "--cni-install")
	c.start(c.host(2))
	c.waitOK(h1, 1)
	within(t, 10*time.Second, "the CNI configuration is there", contains(h1, false, "10-flannel.conflist", "ls", "/etc/cni/net.d"))
	a := c.attach(h1, "a")
	b := c.attach(c.host(2), "b")
	c.reach(a, b.Addrs[0].Addr())
	if out, err := h1.Command(t.Context(), "flanneld", "cleanup").CombinedOutput(); err == nil {
		t.Errorf("cleanup beside a running daemon: %s", out)
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	d, err := h1.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.run(h1, "flanneld", "cleanup")
		if after := state(); after != before {
			t.Errorf("left behind (+) or taken away (-):\n%s", difference(before, after))
		}
	}
}

// difference lists lines that only one text has.
func difference(a, b string) string {
	var out []string
	has := func(s, line string) bool { return strings.Contains("\n"+s+"\n", "\n"+line+"\n") }
	for _, line := range strings.Split(a, "\n") {
		if !has(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range strings.Split(b, "\n") {
		if !has(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}

func TestSecondDaemonOnAHostIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, ipv4)
	c.startAll()
	out, err := c.host(1).Command(t.Context(), "flanneld", "--etcd-endpoints", endpoint()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another flanneld") {
		t.Errorf("%v: %s", err, out)
	}
	c.waitOK(c.host(1), 0)
}

// TestWrongConfigurationOfTheFirstHostCanBeCorrected: only through the etcd
// inside the daemon.
func TestWrongConfigurationOfTheFirstHostCanBeCorrected(t *testing.T) {
	t.Parallel()
	need(t, "etcdctl")
	c := newLab(t, 1)
	h := c.host(1)
	bare := bareStart(t)
	code, err := c.exit(bare(h, "--embed-etcd", "--network", "192.168.0.0/16"))
	if err != nil || code != 2 || !strings.Contains(h.LogTail(2), "192.168.77.11") {
		t.Fatalf("a network that this host is in: exit code %d, %v; %s", code, err, h.LogTail(2))
	}
	// It was not written, so the flag can be corrected.
	d := bare(h, "--embed-etcd", "--network", "10.1.0.0/16")
	c.waitOK(h, 0)
	put := func(value string) {
		c.run(h, "env", "ETCDCTL_API=3", "etcdctl", "--endpoints", "http://127.0.0.1:2379", "put", "/coreos.com/network/config", value)
	}
	put(`{"Network":"no"}`)
	within(t, 10*time.Second, "the wrong value reported", func() error {
		return statusSays(c, h, "the former one stays")
	})
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	bare(h, "--embed-etcd", "--network", "10.1.0.0/16")
	within(t, 10*time.Second, "the wrong value reported after a restart", func() error {
		return statusSays(c, h, "a configuration that can be used")
	})
	put(`{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`)
	c.waitOK(h, 0)
}

// TestListeningEverywhereIsGuardedEverywhere: no container of any host reaches
// an embedded etcd that listens on all addresses.
func TestListeningEverywhereIsGuardedEverywhere(t *testing.T) {
	t.Parallel()
	c := newLab(t, 2)
	h1, h2 := c.host(1), c.host(2)
	bare := bareStart(t)
	bare(h1, "--embed-etcd", "--embed-etcd-listen", "0.0.0.0", "--network", "10.1.0.0/16", "--ip-masq")
	bare(h2, "--etcd-endpoints", "http://"+h1.Addr().String()+":2379", "--ip-masq")
	c.waitOK(h1, 1)
	c.waitOK(h2, 1)
	for _, h := range []*lab.Host{h1, h2} {
		in := c.attach(h, "a")
		err := in.Do(func() error {
			conn, err := net.DialTimeout("tcp", h1.Addr().String()+":2379", time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("a container on %s reaches etcd", h.Name)
		}
	}
}

// statusSays looks for a reason in a host's status.
func statusSays(c *cluster, h *lab.Host, text string) error {
	s, err := c.status(h)
	if err != nil {
		return err
	}
	if all := strings.Join(s.Reasons, "\n"); !strings.Contains(all, text) {
		return fmt.Errorf("%s: %s", s.Verdict, all)
	}
	return nil
}

// bareStart starts daemons with no flags but those given.
func bareStart(t *testing.T) func(h *lab.Host, flags ...string) *lab.Daemon {
	return func(h *lab.Host, flags ...string) *lab.Daemon {
		t.Helper()
		d, err := h.StartDaemon(t.Context(), flags...)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}
