package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func TestHostsJoinAndContainersReachEachOther(t *testing.T) {
	for name, config := range map[string]string{"IPv4": ipv4, "IPv6": ipv6, "dual stack": dual} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, config)
			c.startAll("--ip-masq")
			var containers []*lab.Container
			for _, h := range c.lab.Hosts() {
				containers = append(containers, c.attach(h, "a"))
			}
			containers = append(containers, c.attach(c.host(1), "b"))
			for _, from := range containers {
				for _, to := range containers {
					for _, a := range to.Addrs {
						c.reach(from, a.Addr())
					}
				}
			}
			c.fullSizePackets(containers[0], containers[1])
			c.reachesOutside(containers[0])
			c.underlaySeesItself()
		})
	}
}

// fullSizePackets sends packets of exactly the MTU with fragmentation
// forbidden, and sees that the underlay did not fragment them either.
func (c *cluster) fullSizePackets(from, to *lab.Container) {
	c.t.Helper()
	env := c.env(c.host(1))
	mtu, err := strconv.Atoi(env["FLANNEL_MTU"])
	if err != nil {
		c.t.Fatalf("subnet.env: %v", env)
	}
	for _, a := range to.Addrs {
		header, overhead := 28, 50
		if a.Addr().Is6() {
			header = 48
		}
		if len(to.Addrs) == 2 || a.Addr().Is6() {
			overhead = 70 // the outer header is IPv6
		}
		if mtu != 1500-overhead {
			c.t.Errorf("MTU %d, want %d", mtu, 1500-overhead)
		}
		ping := func(size int) error {
			out, err := from.Command(c.t.Context(), "ping", "-c", "3", "-i", "0.05", "-W", "2", "-M", "do", "-s", strconv.Itoa(size), a.Addr().String()).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ping %s with %d bytes: %w\n%s", a, size, err, out)
			}
			return nil
		}
		if err := ping(mtu - header); err != nil {
			c.t.Error(err)
		}
		if err := ping(mtu - header + 1); err == nil {
			c.t.Errorf("a packet larger than the MTU %d went through to %s", mtu, a)
		}
	}
	for _, h := range c.lab.Hosts() {
		out := c.sh(h, `awk '/^Ip:/ && ++n==2 {print $20}' /proc/net/snmp; awk '$1=="Ip6FragCreates" {print $2}' /proc/net/snmp6`)
		if strings.Fields(out)[0] != "0" || strings.Fields(out)[1] != "0" {
			c.t.Errorf("%s fragmented packets (IPv4, IPv6): %s", h.Name, out)
		}
	}
}

// reachesOutside: masqueraded, a container reaches what is no part of the
// network and knows no way back to it.
func (c *cluster) reachesOutside(from *lab.Container) {
	c.t.Helper()
	for i, a := range from.Addrs {
		outside := lab.SwitchAddrs()[i].Addr()
		if a.Addr().Is6() {
			outside = lab.SwitchAddrs()[1].Addr()
		}
		c.reach(from, outside)
	}
}

// underlaySeesItself: hosts still reach each other directly, and the daemon
// took no address of theirs.
func (c *cluster) underlaySeesItself() {
	c.t.Helper()
	for _, h := range c.lab.Hosts() {
		for _, a := range c.host(3).Addrs {
			c.reach(h, a.Addr())
		}
	}
}

// env reads a host's subnet.env.
func (c *cluster) env(h *lab.Host) map[string]string {
	c.t.Helper()
	b, err := h.ReadFile("/run/flannel/subnet.env")
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		out[k] = v
	}
	return out
}

// subnet is the host's IPv4 subnet.
func (c *cluster) subnet(h *lab.Host) netip.Prefix {
	c.t.Helper()
	p, err := netip.ParsePrefix(c.env(h)["FLANNEL_SUBNET"])
	if err != nil {
		c.t.Fatal(err)
	}
	return p.Masked()
}

func TestDaemonWaitsForConfiguration(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "")
	h := c.host(1)
	d := c.start(h)
	within(t, 15*time.Second, "the daemon says what it waits for", func() error {
		if log := h.LogTail(5); !strings.Contains(log, prefix+"/config") {
			return fmt.Errorf("log: %s", log)
		}
		return nil
	})
	c.put("config", ipv4)
	c.waitOK(h, 0)
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if code, err := c.exit(d); code != 0 || err != nil {
		t.Errorf("stopped daemon: exit code %d, %v", code, err)
	}
}

func TestWrongConfigurationEndsTheDaemon(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "")
	h := c.host(1)
	for name, config := range map[string]string{
		"not JSON":             `{`,
		"misspelt":             `{"Network":"10.1.0.0/16","Bakend":{"Type":"vxlan"}}`,
		"no network":           `{}`,
		"everything":           `{"Network":"0.0.0.0/0"}`,
		"contains the hosts":   `{"Network":"192.168.0.0/16","Backend":{"Type":"vxlan"}}`,
		"no room for a subnet": `{"Network":"10.1.0.0/24","SubnetLen":20,"Backend":{"Type":"vxlan"}}`,
		"unknown backend":      `{"Network":"10.1.0.0/16","Backend":{"Type":"pigeon"}}`,
		"wrong VNI":            `{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":99999999}}`,
	} {
		c.put("config", config)
		d := c.start(h)
		code, err := c.exit(d)
		if err != nil || code != 2 {
			t.Errorf("%s: exit code %d, want 2, %v; it said %s", name, code, err, h.LogTail(2))
		}
		_ = d.Kill(t.Context())
	}
	if links := c.sh(h, "ip -o link | wc -l"); links != "2" {
		t.Errorf("%s links on the host, want lo and eth0", links)
	}
}

func TestTunnelPacketsAreNotTracked(t *testing.T) {
	t.Parallel()
	need(t, "conntrack")
	c := newCluster(t, 2, tunnelOnly)
	c.startAll("--ip-masq")
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	for _, addr := range b.Addrs {
		c.reach(a, addr.Addr())
	}
	for i, family := range []string{"ipv4", "ipv6"} {
		within(t, 5*time.Second, "what is inside is tracked", contains(c.host(2), false, "src="+a.Addrs[i].Addr().String(), "conntrack", "-L", "-f", family))
		if err := contains(c.host(2), true, "dport=8472", "conntrack", "-L", "-f", family, "-p", "udp")(); err != nil {
			t.Error(err)
		}
	}
}
