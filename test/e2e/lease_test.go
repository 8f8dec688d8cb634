package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

func TestRestartedHostKeepsItsSubnet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, dual)
	c.startAll()
	h := c.host(1)
	key, value := c.leaseOf(h.Addr())
	if !strings.Contains(key, "&") {
		t.Errorf("key of a dual-stack lease: %s", key)
	}
	var l struct {
		PublicIP, PublicIPv6, BackendType string
		BackendData, BackendV6Data        struct {
			VNI     int
			VtepMAC string
		}
	}
	if err := json.Unmarshal([]byte(value), &l); err != nil || l.PublicIP != h.Addr().String() || l.PublicIPv6 != h.Addrs[1].Addr().String() ||
		l.BackendType != "vxlan" || l.BackendData.VNI != 1 || l.BackendData.VtepMAC == "" || l.BackendV6Data.VtepMAC == "" {
		t.Errorf("lease %s: %v", value, err)
	}
	for _, loss := range []string{"", "rm /run/flannel/subnet.env", "ip link del flannel.1"} {
		d, err := h.Daemon()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if loss != "" {
			c.sh(h, loss)
		}
		c.start(h)
		c.waitOK(h, 0)
		if got, _ := c.leaseOf(h.Addr()); got != key {
			t.Errorf("after %q: lease %s, before %s", loss, got, key)
		}
	}
}

func TestPublicAddressChanges(t *testing.T) {
	t.Parallel()
	// Hosts that are reached without the tunnel have no entries to look for.
	c := newCluster(t, 2, strings.Replace(ipv4, `"vxlan"`, `"vxlan","DirectRouting":false`, 1))
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	c.reach(a, b.Addrs[0].Addr())
	subnet := c.subnet(h2)
	c.sh(h2, "ip addr add 192.168.77.222/24 dev eth0; ip addr del 192.168.77.12/24 dev eth0; ip addr add 192.168.77.222/24 dev eth0 2>/dev/null; ip route replace default via 192.168.77.1")
	within(t, 15*time.Second, "peers send to the new address", contains(h1, false, "dst 192.168.77.222", "bridge", "fdb"))
	within(t, 5*time.Second, "and not to the old one", contains(h1, true, "dst 192.168.77.12 ", "bridge", "fdb"))
	c.reach(a, b.Addrs[0].Addr())
	c.waitOK(h2, 1)
	if got := c.subnet(h2); got != subnet {
		t.Errorf("subnet %s, before %s", got, subnet)
	}
	if n := len(c.leases()); n != 2 {
		t.Errorf("%d leases, want 2", n)
	}
}

func TestSubnetHeldByAnotherEndsTheDaemon(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, ipv4)
	c.startAll()
	h := c.host(1)
	d, err := h.LastDaemon()
	if err != nil {
		t.Fatal(err)
	}
	_ = d.Kill(t.Context())
	d = c.start(h)
	c.waitOK(h, 0)
	key, _ := c.leaseOf(h.Addr())
	taken := `{"PublicIP":"192.168.77.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"},"Node":"other","Identity":"OTHER"}`
	c.put("subnets/"+key, taken)
	code, err := c.exit(d)
	if err != nil || code != 3 {
		t.Errorf("exit code %d, want 3, %v; log: %s", code, err, h.LogTail(3))
	}
	if log := h.LogTail(3); !strings.Contains(log, "192.168.77.99") {
		t.Errorf("the log does not name the other holder: %s", log)
	}
	if got := c.leases()[key]; got != taken {
		t.Errorf("the other's lease was touched: %s", got)
	}
	if err := contains(h, true, "flannel.1", "ip", "link")(); err != nil {
		t.Errorf("own side not withdrawn: %v", err)
	}
}

func TestClonedHostGetsItsOwnSubnet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	h1, h2 := c.host(1), c.host(2)
	c.start(h1)
	c.waitOK(h1, 0)
	// Everything a disk image would carry over, identity included.
	c.copyState(h1, h2)
	c.start(h2)
	c.waitOK(h2, 1)
	c.waitOK(h1, 1)
	if s1, s2 := c.subnet(h1), c.subnet(h2); s1.Overlaps(s2) {
		t.Errorf("both hold %s", s1)
	}
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	c.reach(a, b.Addrs[0].Addr())
	c.reach(b, a.Addrs[0].Addr())
}

// copyState copies the daemon's files from one host to another.
func (c *cluster) copyState(from, to *lab.Host) {
	c.t.Helper()
	for _, f := range strings.Fields(c.sh(from, "find /run/flannel -type f ! -name '*.lock'")) {
		b, err := from.ReadFile(f)
		if err == nil {
			err = to.WriteFile(f, b)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

func TestSecondHostWithOnePublicAddressIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	h1, h2 := c.host(1), c.host(2)
	c.start(h1)
	c.waitOK(h1, 0)
	key, value := c.leaseOf(h1.Addr())
	d := c.start(h2, "--public-ip", h1.Addr().String())
	if code, err := c.exit(d); err != nil || code != 3 {
		t.Errorf("exit code %d, want 3, %v; log: %s", code, err, h2.LogTail(3))
	}
	if log := h2.LogTail(3); !strings.Contains(log, h1.Addr().String()) {
		t.Errorf("the log does not name the address: %s", log)
	}
	if gotKey, got := c.leaseOf(h1.Addr()); gotKey != key || got != value {
		t.Errorf("the first host's lease became %s %s", gotKey, got)
	}
	c.waitOK(h1, 0)
}

func TestTwoDozenHostsShareASmallNetwork(t *testing.T) {
	c := newCluster(t, 24, `{"Network":"10.1.0.0/19","SubnetLen":24,"SubnetMin":"10.1.1.0","SubnetMax":"10.1.24.0","Backend":{"Type":"vxlan"}}`) // one for each
	start := time.Now()
	var wg sync.WaitGroup
	for _, h := range c.lab.Hosts() {
		wg.Go(func() {
			if _, err := h.StartDaemon(t.Context(), "--etcd-endpoints", endpoint(), "--iface", lab.Interface); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, h := range c.lab.Hosts() {
		within(t, 60*time.Second, h.Name+" knows all", func() error {
			s, err := c.status(h)
			if err == nil && (s.Verdict != api.OK || len(s.Peers) != 23) {
				err = fmt.Errorf("verdict %s, %q, %d peers", s.Verdict, s.Reasons, len(s.Peers))
			}
			return err
		})
	}
	t.Logf("24 hosts are one network after %s", time.Since(start).Round(10*time.Millisecond))
	seen := map[netip.Prefix]string{}
	for _, h := range c.lab.Hosts() {
		s := c.subnet(h)
		if other := seen[s]; other != "" {
			t.Errorf("%s and %s hold %s", h.Name, other, s)
		}
		seen[s] = h.Name
	}
}

func TestFullNetworkIsAClearError(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, `{"Network":"10.1.0.0/22","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.1.0","Backend":{"Type":"vxlan"}}`)
	c.start(c.host(1))
	c.start(c.host(2))
	c.waitOK(c.host(1), 1)
	c.waitOK(c.host(2), 1)
	h3 := c.host(3)
	d := c.start(h3)
	if code, err := c.exit(d); err != nil || code != 1 || !strings.Contains(h3.LogTail(1), "no free subnet") {
		t.Errorf("exit code %d, want 1, %v; log: %s", code, err, h3.LogTail(3))
	}
	if n := len(c.leases()); n != 2 {
		t.Errorf("%d leases", n)
	}
	// Started again, it takes what has become free.
	d, err := c.host(2).Daemon()
	if err != nil {
		t.Fatal(err)
	}
	_ = d.Kill(t.Context())
	key, _ := c.leaseOf(c.host(2).Addr())
	c.etcdctl("del", prefix+"/subnets/"+key)
	c.start(h3)
	c.waitOK(h3, 1)
}
