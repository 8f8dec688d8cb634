package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
)

func TestConfigurationChangesAtRunTime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	c.reach(a, b.Addrs[0].Addr())
	s1, s2 := c.subnet(h1), c.subnet(h2)
	c.put("config", `{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}`)
	for _, h := range c.lab.Hosts() {
		within(t, 15*time.Second, "the new device is there", contains(h, false, "flannel.7", "ip", "link"))
		within(t, 15*time.Second, "the old one is gone", contains(h, true, "flannel.1", "ip", "link"))
		c.waitOK(h, 1)
	}
	c.reach(a, b.Addrs[0].Addr())
	if c.subnet(h1) != s1 || c.subnet(h2) != s2 {
		t.Errorf("subnets %s and %s, before %s and %s", c.subnet(h1), c.subnet(h2), s1, s2)
	}
	c.put("config", dual)
	for _, h := range c.lab.Hosts() {
		within(t, 15*time.Second, "IPv6 is there too", contains(h, false, "FLANNEL_IPV6_SUBNET", "cat", "/run/flannel/subnet.env"))
		c.waitOK(h, 1)
	}
	c.reach(a, b.Addrs[0].Addr())
	a6, b6 := c.attach(h1, "a6"), c.attach(h2, "b6")
	for i := range a6.Addrs {
		c.reach(a6, b6.Addrs[i].Addr())
	}
	if n := len(c.leases()); n != 2 {
		t.Errorf("%d leases: %v", n, c.leases())
	}
}

func TestUnpluggedHostComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, dual)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	s1, s2 := c.subnet(h1), c.subnet(h2)
	if err := h2.Unplug(); err != nil {
		t.Fatal(err)
	}
	// A dead host is told apart from a lease: its routes stay.
	within(t, 20*time.Second, "host1 sees that host2 is not live", func() error {
		s, err := c.status(h1)
		if err == nil && (len(s.Peers) != 1 || s.Peers[0].Live == nil || *s.Peers[0].Live) {
			err = fmt.Errorf("peers %+v", s.Peers)
		}
		return err
	})
	if err := contains(h1, false, s2.String(), "ip", "route")(); err != nil {
		t.Error(err)
	}
	if err := h2.Plug(); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.lab.Hosts() {
		within(t, 20*time.Second, "both are live", func() error {
			s, err := c.status(h)
			if err == nil && (s.Verdict != api.OK || len(s.Peers) != 1 || s.Peers[0].Live == nil || !*s.Peers[0].Live) {
				err = fmt.Errorf("verdict %s %q, peers %+v", s.Verdict, s.Reasons, s.Peers)
			}
			return err
		})
	}
	for _, addr := range b.Addrs {
		c.reach(a, addr.Addr())
	}
	if c.subnet(h1) != s1 || c.subnet(h2) != s2 {
		t.Errorf("subnets changed to %s and %s", c.subnet(h1), c.subnet(h2))
	}
}
