package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

// TestHostsWithoutNftables are whole hosts under a kernel without nf_tables:
// iptables-legacy must do all that nftables does elsewhere.
func TestHostsWithoutNftables(t *testing.T) {
	need(t, "iptables-legacy", "ip6tables-legacy", "ipset", "nft")
	if exec.CommandContext(t.Context(), "nft", "list", "tables").Run() == nil {
		t.Skip("this kernel has nf_tables: go run ./test/vm -without nf_tables ./test/e2e -- -test.run Nftables")
	}
	c := newCluster(t, 2, dual)
	var daemons []*lab.Daemon
	for _, h := range c.lab.Hosts() {
		daemons = append(daemons, c.start(h, "--ip-masq"))
	}
	for _, h := range c.lab.Hosts() { // an emulated machine is slow
		within(t, time.Minute, h.Name+" is ok with iptables", func() error {
			s, err := c.status(h)
			if err == nil && (s.Verdict != api.OK || len(s.Peers) != 1 || s.Network.Filter != "iptables") {
				err = fmt.Errorf("status %+v", s)
			}
			return err
		})
	}
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	for _, to := range b.Addrs {
		c.reach(a, to.Addr())
	}
	c.reachesOutside(a) // masqueraded: the outside knows no way to pods

	// Of somebody who is no peer nothing arrives, of a peer it does.
	mac := c.run(c.host(1), "cat", "/sys/class/net/flannel.1/address")
	forge := func(from interface{ Do(func() error) error }) int {
		return c.count(a, func() {
			err := from.Do(func() error {
				return sendForged(c.host(1).Addr(), mac, b.Addrs[0].Addr().String(), a.Addrs[0].Addr().String())
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	if n := forge(c.lab.Switch()); n != 0 {
		t.Errorf("%d forged packets of a stranger arrived", n)
	}
	if n := forge(c.host(2)); n == 0 {
		t.Error("nothing of a peer arrived: the test proves nothing")
	}

	c.servicesOnHostsWithoutNftables(a, b)
	c.rulesComeBackOnHostsWithoutNftables(a)
	c.cleanedUpWithoutNftables(c.host(2), daemons[1])
}

// servicesOnHostsWithoutNftables: a service for containers of both hosts, and a
// port of one.
func (c *cluster) servicesOnHostsWithoutNftables(a, b *lab.Container) {
	c.t.Helper()
	s := &services{cluster: c, life: c.t}
	serveIn(c.t, a, "a", webPort)
	serveIn(c.t, b, "b", webPort)
	c.sh(c.host(1), "flanneld endpoint label a app=sample; flanneld service create frontend --port 8888 --selector app=sample --node-port 30080")
	c.sh(c.host(2), "flanneld endpoint label b app=sample")
	for _, ip := range s.described(c.host(2), "frontend").VirtualIPs {
		for _, from := range []place{b, c.host(1)} {
			answeredOver(c.t, "tcp", from, netip.AddrPortFrom(ip, webPort), "a", "b")
		}
	}
	answeredOver(c.t, "tcp", c.lab.Switch(), netip.AddrPortFrom(c.host(1).Addr(), nodePort), "a", "b")
}

// rulesComeBackOnHostsWithoutNftables: what somebody flushed is back.
func (c *cluster) rulesComeBackOnHostsWithoutNftables(a *lab.Container) {
	c.t.Helper()
	h := c.host(1)
	rules := func() string {
		return c.sh(h, `for i in iptables ip6tables; do for t in mangle nat; do $i-legacy -w -t $t -S | grep FLANNELD | sort; done; done; ipset save | sort`)
	}
	want := rules()
	if !strings.Contains(want, "MASQUERADE") || !strings.Contains(want, "flanneld-peers4") {
		c.t.Errorf("rules of %s:\n%s", h.Name, want)
	}
	c.sh(h, `for i in iptables ip6tables; do for t in mangle nat; do $i-legacy -w -t $t -F; done; done; ipset flush flanneld-peers4`)
	within(c.t, 30*time.Second, "the rules are back", func() error {
		if got := rules(); got != want {
			return fmt.Errorf("rules:\n%s\nbefore:\n%s", got, want)
		}
		return nil
	})
	c.reachesOutside(a)
}

// cleanedUpWithoutNftables: cleanup leaves no rule and no set.
func (c *cluster) cleanedUpWithoutNftables(h *lab.Host, d *lab.Daemon) {
	c.t.Helper()
	err := d.Stop(c.t.Context())
	if err == nil {
		_, err = c.exit(d)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(h, "flanneld", "cleanup")
	if left := c.sh(h, `for i in iptables ip6tables; do $i-legacy-save | grep -i flannel; done; ipset list -n | grep flannel; true`); left != "" {
		c.t.Errorf("left by cleanup:\n%s", left)
	}
}
