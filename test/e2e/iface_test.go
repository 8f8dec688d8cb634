package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/lab"
)

// secondNetwork gives every host an interface eth1 with the address
// 192.168.88.N on a switch of its own.
func (c *cluster) secondNetwork() {
	c.t.Helper()
	c.run(c.lab.Switch(), "ip", "link", "add", "second", "up", "type", "bridge")
	for i, h := range c.lab.Hosts() {
		var ns *netns.NS
		if err := h.Do(func() (err error) { ns, err = netns.Current(); return err }); err != nil {
			c.t.Fatal(err)
		}
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD())
		c.run(c.lab.Switch(), "ip", "link", "add", fmt.Sprintf("second%d", i+1), "master", "second", "up", "type", "veth", "peer", "name", "eth1", "netns", path)
		if err := ns.Close(); err != nil {
			c.t.Fatal(err)
		}
		c.run(h, "ip", "addr", "add", fmt.Sprintf("192.168.88.%d/24", i+1), "dev", "eth1")
		c.run(h, "ip", "link", "set", "eth1", "up")
	}
}

// startBare starts a daemon that is not told its interface.
func (c *cluster) startBare(h *lab.Host, flags ...string) *lab.Daemon {
	c.t.Helper()
	d, err := h.StartDaemon(c.t.Context(), append([]string{"--etcd-endpoints", endpoint()}, flags...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

func TestInterfaceIsFoundByRegexAndByWhatItReaches(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, ipv4)
	c.secondNetwork()
	flags := [][]string{
		{"--iface-regex", "^nothing$", "--iface-regex", `^192\.168\.88\.`},
		{"--iface-regex", "eth1"},
		{"--iface-can-reach", "192.168.88.1"},
	}
	for i, h := range c.lab.Hosts() {
		c.startBare(h, flags[i]...)
	}
	for i, h := range c.lab.Hosts() {
		c.waitOK(h, 2)
		own := netip.AddrFrom4([4]byte{192, 168, 88, byte(i + 1)})
		if key, _ := c.leaseOf(own); key == "" {
			t.Errorf("%s with %q has no lease for %s: %v", h.Name, flags[i], own, c.leases())
		}
		if out := c.run(h, "ip", "-d", "link", "show", "flannel.1"); !strings.Contains(out, "local "+own.String()+" dev eth1") {
			t.Errorf("%s with %q: %s", h.Name, flags[i], out)
		}
	}
	// The first network carries etcd alone: without it containers still reach
	// each other.
	a, b, d := c.attach(c.host(1), "a"), c.attach(c.host(2), "b"), c.attach(c.host(3), "d")
	if err := c.host(2).Unplug(); err != nil {
		t.Fatal(err)
	}
	c.reach(a, b.Addrs[0].Addr())
	c.reach(b, d.Addrs[0].Addr())
}

func TestInterfaceThatIsNotThereIsWaitedForSayingSo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.run(c.host(2), "ip", "route", "del", "default")
	h1, h2 := c.host(1), c.host(2)
	c.startBare(h1, "--iface-regex", "^eth[1-9]$")
	c.startBare(h2, "--iface-can-reach", "192.168.88.9")
	for h, want := range map[*lab.Host]string{h1: "--iface-regex=^eth[1-9]$", h2: "--iface-can-reach=192.168.88.9"} {
		within(t, 15*time.Second, h.Name+" says what it waits for", func() error {
			if log := h.LogTail(3); !strings.Contains(log, want) {
				return fmt.Errorf("log: %s", log)
			}
			return nil
		})
	}
	if n := len(c.leases()); n != 0 {
		t.Errorf("%d leases without an interface", n)
	}
	c.secondNetwork()
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 1)
	}
	c.reach(c.attach(h1, "a"), c.attach(h2, "b").Addrs[0].Addr())
}

func TestSecondHostOfOneNameIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	h1, h2 := c.host(1), c.host(2)
	c.start(h1, "--node-name", "twin")
	c.waitOK(h1, 0)
	code, err := c.exit(c.start(h2, "--node-name", "twin"))
	if log := h2.LogTail(3); err != nil || code != 3 || !strings.Contains(log, "the name") || !strings.Contains(log, "--node-name") || !strings.Contains(log, h1.Addr().String()) {
		t.Errorf("exit code %d, %v, and says\n%s", code, err, log)
	}
	// It has a subnet of its own by then, and gets it again by another name.
	c.waitOK(h1, 1)
	first, _ := c.leaseOf(h1.Addr())
	second, _ := c.leaseOf(h2.Addr())
	c.start(h2, "--node-name", "other")
	c.waitOK(h2, 1)
	for h, want := range map[*lab.Host]string{h1: first, h2: second} {
		if key, _ := c.leaseOf(h.Addr()); key != want || want == "" {
			t.Errorf("%s has %q, had %q", h.Name, key, want)
		}
	}
}

func TestSecondHostOfOneHostnameGoesByAnother(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	for _, h := range c.lab.Hosts() {
		c.run(h, "hostname", "twin")
	}
	h1, h2 := c.host(1), c.host(2)
	c.start(h1)
	c.waitOK(h1, 0)
	c.start(h2)
	within(t, 20*time.Second, "the second host has a peer and tells of the name", func() error {
		s, err := c.status(h2)
		if err == nil && (len(s.Peers) != 1 || s.Verdict == api.OK || !strings.Contains(strings.Join(s.Reasons, " "), "--node-name")) {
			err = fmt.Errorf("verdict %s, reasons %q, peers %+v", s.Verdict, s.Reasons, s.Peers)
		}
		return err
	})
	c.reach(c.attach(h1, "a"), c.attach(h2, "b").Addrs[0].Addr())
}
