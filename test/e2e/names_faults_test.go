package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func (n *names) dropped(t *testing.T) {
	need(t, "iptables", "ip6tables")
	h := n.host(2)
	n.sh(h, `for t in iptables ip6tables; do
		$t -A INPUT -i lo -j ACCEPT; $t -A INPUT -i eth0 -j ACCEPT; $t -A INPUT -p ipv6-icmp -j ACCEPT; $t -P INPUT DROP; done`)
	c := n.client[1]
	for _, server := range []netip.Addr{n.server, n.server6, gateway(c)} {
		took := within(t, 10*time.Second, "answers at "+server.String(), has(c, server, "web1.default.cluster.local", addrs(n.web[0])...))
		t.Logf("answered at %s %s after the filter was set up", server, took.Round(10*time.Millisecond))
	}
	if got := n.dig(c, n.server, []string{"web1.default.cluster.local. A"}, "+tcp"); len(got) != 1 {
		t.Errorf("over TCP: %v", got)
	}
	n.sh(h, "for t in iptables ip6tables; do $t -P INPUT ACCEPT; $t -D INPUT -i lo -j ACCEPT; $t -D INPUT -i eth0 -j ACCEPT; $t -D INPUT -p ipv6-icmp -j ACCEPT; done")
}

func (n *names) followed(t *testing.T) {
	six := lab.SwitchAddrs()[1].Addr()
	other := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")}
	startUpstream(t, n.lab.Switch(), six, other...)
	if err := has(n.client[0], n.server, "first.example.org", n.outside...)(); err != nil {
		t.Error(err)
	}
	l := startLookups(t, n.client[0], n.server, "www.example.org", 10*time.Millisecond)
	n.sh(n.host(1), "echo nameserver "+six.String()+" >/etc/resolv.conf.new; mv /etc/resolv.conf.new /etc/resolv.conf")
	var name string
	took := within(t, 10*time.Second, "the new upstream is asked", func() error {
		name = "n" + strings.ReplaceAll(time.Now().Format("150405.000000"), ".", "-") + ".example.org" // not cached
		return has(n.client[0], n.server, name, other...)()
	})
	t.Logf("asked %s after resolv.conf was replaced", took.Round(time.Millisecond))
	if err := has(n.client[0], n.server, "third.example.org", other...)(); err != nil {
		t.Error(err)
	}
	l.stop(t)
}

func (n *names) restart(t *testing.T) {
	// host3 dies for a while.
	dies, err := n.host(3).Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := dies.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	died := time.Now()

	n.sh(n.host(2), "flanneld dns add kept 192.0.2.99")
	kept := netip.MustParseAddr("192.0.2.99")
	within(t, 5*time.Second, "the added name is known", has(n.client[1], n.server, "kept.default.cluster.local", kept))
	l := startLookups(t, n.client[1], n.server, "web1.default.cluster.local", 20*time.Millisecond)
	own := startLookups(t, n.client[1], gateway(n.client[1]), "web2.default.cluster.local", 20*time.Millisecond)
	for range 2 {
		d, err := n.host(2).Daemon()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		n.start(n.host(2), "--ip-masq")
		within(t, 10*time.Second, "host2 answers again", has(n.client[1], n.server, "kept.default.cluster.local", kept))
	}
	l.stop(t)
	own.stop(t)
	if out := n.sh(n.host(2), "flanneld dns list"); !strings.Contains(out, "kept") {
		t.Errorf("not listed:\n%s", out)
	}
	n.sh(n.host(2), "flanneld dns remove kept")
	within(t, 5*time.Second, "the added name is gone", has(n.client[1], n.server, "kept.default.cluster.local"))

	const most = 20 * time.Second
	for i, c := range n.client[:2] {
		within(t, most-time.Since(died), "names of the dead host are gone", func() error {
			return empty(c, n.server, "web3.default.cluster.local")
		})
		t.Logf("names of host3 are gone on host%d %s after it died", i+1, time.Since(died).Round(10*time.Millisecond))
		if err := has(c, n.server, "www.default.cluster.local", addrs(n.web[:2]...)...)(); err != nil {
			t.Error(err)
		}
	}
	n.start(n.host(3), "--ip-masq")
	for _, c := range n.client {
		took := within(t, 10*time.Second, "names of the host are back", has(c, n.server, "web3.default.cluster.local", addrs(n.web[2])...))
		t.Logf("back on %s after %s", c.Name, took.Round(10*time.Millisecond))
	}
}

func (n *names) withoutEtcd(t *testing.T) {
	n.stopEtcd()
	fresh := n.attach(n.host(1), "fresh")
	took := within(t, 5*time.Second, "a new container is answered on its own host", has(n.client[0], n.server, "fresh.default.cluster.local", addrs(fresh)...))
	t.Logf("without etcd a new container is answered on its own host after %s", took.Round(time.Millisecond))
	// Longer than a host's record lives: nobody counts as dead.
	for end := time.Now().Add(9 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for i, c := range n.client {
			if err := has(c, n.server, "www.default.cluster.local", addrs(n.web...)...)(); err != nil {
				t.Fatalf("host%d, without etcd: %v", i+1, err)
			}
		}
	}
	d, err := n.host(1).Daemon()
	if err != nil {
		t.Fatal(err)
	}
	n.startEtcd()
	for i, c := range n.client {
		within(t, 20*time.Second, "the new container is known everywhere", has(c, n.server, "fresh.default.cluster.local", addrs(fresh)...))
		if err := has(c, n.server, "www.default.cluster.local", addrs(n.web...)...)(); err != nil {
			t.Errorf("host%d, after etcd came back: %v", i+1, err)
		}
	}
	if !d.Alive() {
		t.Error("the daemon ended")
	}
	if err := fresh.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	for _, c := range n.client {
		within(t, 5*time.Second, "the container's name is gone", has(c, n.server, "fresh.default.cluster.local"))
	}
}
