package iptables_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// router forwards between a pod, somebody else's container and the world.
type router struct {
	r, pod, other, world *netns.NS
}

func newRouter(t *testing.T) router {
	t.Helper()
	w := router{netnstest.NewNamed(t), netnstest.NewNamed(t), netnstest.NewNamed(t), netnstest.NewNamed(t)}
	netnstest.Run(t, w.r, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0",
		"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	for i, n := range []*netns.NS{w.pod, w.other, w.world} {
		link := "v" + string(rune('0'+i))
		v4 := []string{"10.1.1.", "172.17.0.", "192.168.77."}[i]
		v6 := []string{"fd00:1:0:1::", "fd17::", "fd77::"}[i]
		name := n.Path()[strings.LastIndex(n.Path(), "/")+1:]
		script := strings.NewReplacer("LINK", link, "NS", name, "V4", v4, "V6", v6).Replace(`
			ip link add LINK up type veth peer name eth0 netns NS
			ip addr add V41/24 dev LINK; ip addr add V61/64 dev LINK nodad
			ip -n NS link set eth0 up; ip -n NS addr add V42/24 dev eth0; ip -n NS addr add V62/64 dev eth0 nodad
			ip -n NS route add default via V41; ip -n NS -6 route add default via V61`)
		netnstest.Run(t, w.r, "sh", "-ec", script)
	}
	var l net.Listener
	err := w.world.Do(func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return w
}

// reaches tells whether n reaches the world, by both families alike.
func (w router) reaches(t *testing.T, n *netns.NS) bool {
	t.Helper()
	var results [2]bool
	for range 3 { // a connection that must come about may take a while on a busy machine
		if results = w.connects(t, n); results[0] && results[1] {
			return true
		}
	}
	if results[0] != results[1] {
		t.Errorf("IPv4 %v, IPv6 %v", results[0], results[1])
	}
	return false
}

func (w router) connects(t *testing.T, n *netns.NS) (results [2]bool) {
	t.Helper()
	for i, to := range []string{"192.168.77.2:80", "[fd77::2]:80"} {
		err := n.Do(func() error {
			d := net.Dialer{Timeout: 200 * time.Millisecond}
			c, err := d.DialContext(t.Context(), "tcp", to)
			if results[i] = err == nil; err == nil {
				c.Close()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return results
}

func (w router) sh(t *testing.T, script string) string {
	t.Helper()
	return netnstest.Run(t, w.r, "sh", "-ec", script)
}

func podNetworks() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}
}

func podNames() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd00:1:0:1::1")}
}

// forward runs f in the router.
func (w router) forward(t *testing.T, state string) (*iptables.Forward, func()) {
	t.Helper()
	var f *iptables.Forward
	do := func(what func() error) {
		t.Helper()
		if err := w.r.Do(what); err != nil {
			t.Fatal(err)
		}
	}
	do(func() (err error) {
		f, err = iptables.OpenForward(state)
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f, func() {
		t.Helper()
		do(func() error { return f.Sync(t.Context(), podNetworks(), podNames()) })
	}
}

func kinds() []string { return []string{"nft", "legacy"} }

func TestPodsPassAForwardChainThatDropsAndOthersDoNot(t *testing.T) {
	firewalls := map[string]string{
		"policy": "$i -P FORWARD DROP",
		// What Docker 20.10 makes, in its order.
		"docker": `$i -P FORWARD DROP; $i -N DOCKER; $i -N DOCKER-USER; $i -N DOCKER-ISOLATION-STAGE-1
			$i -A DOCKER-USER -j RETURN; $i -A DOCKER-ISOLATION-STAGE-1 -j RETURN
			$i -A FORWARD -j DOCKER-USER; $i -A FORWARD -j DOCKER-ISOLATION-STAGE-1
			$i -A FORWARD -o docker0 -j DOCKER`,
		"reject at the end": "$i -A FORWARD -i nothere -j ACCEPT; $i -A FORWARD -j REJECT",
	}
	for _, kind := range kinds() {
		for name, script := range firewalls {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				w := newRouter(t)
				script := variant(kind, "for i in ipt ip6t; do "+script+"; done")
				w.sh(t, script)
				before := w.sh(t, variant(kind, dump))
				if w.reaches(t, w.pod) {
					t.Fatal("the firewall does not drop: the test proves nothing")
				}
				f, sync := w.forward(t, "")
				sync()
				if !w.reaches(t, w.pod) {
					t.Error("pods do not pass")
				}
				if w.reaches(t, w.other) {
					t.Error("others pass")
				}
				text := w.sh(t, variant(kind, "ipt -S FORWARD"))
				if n := strings.Count(text, "FLANNELD-FWD"); n != 1 {
					t.Errorf("%d jumps, want one:\n%s", n, text)
				}
				if u, ours := strings.Index(text, "DOCKER-USER"), strings.Index(text, "FLANNELD-FWD"); u > ours {
					t.Errorf("we come before the administrator's chain:\n%s", text)
				}
				if err := w.r.Do(func() error { return f.Remove(t.Context()) }); err != nil {
					t.Fatal(err)
				}
				if after := w.sh(t, variant(kind, dump)); after != before {
					t.Errorf("after removal:\n%s\nwant:\n%s", after, before)
				}
			})
		}
	}
}

func TestForwardAddsNothingAndRunsNothingWhereNothingDrops(t *testing.T) {
	for name, script := range map[string]string{
		"nothing at all":    "true",
		"rules of somebody": "iptables-nft -A FORWARD -s 10.9.9.9 -j DROP; iptables-legacy -A FORWARD -s 10.9.9.9 -j DROP",
	} {
		t.Run(name, func(t *testing.T) {
			w := newRouter(t)
			w.sh(t, script)
			all := variant("nft", dump) + ";" + variant("legacy", dump)
			before := w.sh(t, all)
			f, sync := w.forward(t, "")
			sync()
			ran := f.Runs()
			if name == "nothing at all" && ran != 0 {
				t.Errorf("%d programs run, want none", ran)
			}
			sync()
			sync()
			if n := f.Runs() - ran; n != 0 {
				t.Errorf("%d programs run by an idle sync, want none", n)
			}
			if after := w.sh(t, all); after != before {
				t.Errorf("rules:\n%s\nwant:\n%s", after, before)
			}
			if tables := w.sh(t, "cat /proc/net/ip_tables_names"); name == "nothing at all" && tables != "" {
				t.Errorf("tables %q were made", tables)
			}
		})
	}
}

func TestForwardIsRepairedAfterDockerRestarts(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newRouter(t)
			w.sh(t, variant(kind, "for i in ipt ip6t; do $i -P FORWARD DROP; done"))
			f, sync := w.forward(t, "")
			sync()
			sync()
			ran := f.Runs()
			sync()
			if n := f.Runs() - ran; n != 0 {
				t.Errorf("%d programs run by an idle sync, want none", n)
			}
			w.sh(t, variant(kind, `for i in ipt ip6t; do
				$i -N DOCKER-FORWARD; $i -A DOCKER-FORWARD -j DROP; $i -N DOCKER-USER
				$i -I FORWARD -j DOCKER-FORWARD; $i -I FORWARD -j DOCKER-USER; done`))
			if w.reaches(t, w.pod) {
				t.Fatal("Docker's chain does not drop: the test proves nothing")
			}
			sync()
			if !w.reaches(t, w.pod) {
				t.Error("pods do not pass")
			}
			w.sh(t, variant(kind, "for i in ipt ip6t; do $i -F FORWARD; done"))
			sync()
			if !w.reaches(t, w.pod) {
				t.Error("pods do not pass after a flush")
			}
			w.sh(t, variant(kind, "for i in ipt ip6t; do $i -P FORWARD ACCEPT; $i -F FORWARD; done"))
			sync()
			if text := w.sh(t, variant(kind, "ipt -S")); strings.Contains(text, "FLANNELD") {
				t.Errorf("not needed any more, but there:\n%s", text)
			}
		})
	}
}

func TestAdministratorsDropComesFirst(t *testing.T) {
	w := newRouter(t)
	w.sh(t, "for i in iptables-nft ip6tables-nft; do $i -P FORWARD DROP; done")
	_, sync := w.forward(t, "")
	sync()
	w.sh(t, "iptables-nft -I FORWARD -s 10.1.1.2 -j DROP; ip6tables-nft -I FORWARD -s fd00:1:0:1::2 -j DROP")
	sync()
	if w.reaches(t, w.pod) {
		t.Error("a drop that the administrator put first was overruled")
	}
}

func TestForeignChainThatDropsIsReported(t *testing.T) {
	w := newRouter(t)
	f, sync := w.forward(t, "")
	sync()
	if p := f.Problems(); len(p) > 0 {
		t.Errorf("problems %q, want none", p)
	}
	w.sh(t, "nft 'add table inet filter; add chain inet filter forward { type filter hook forward priority 0; policy drop; }'")
	sync()
	if p := f.Problems(); len(p) != 1 || !strings.Contains(p[0], "inet filter forward") || !strings.Contains(p[0], "ip saddr 10.1.0.0/16 accept") {
		t.Errorf("problems %q, want one that names chain and remedy", p)
	}
}

func TestSwitchingFiltersLeavesNothingOfTheOther(t *testing.T) {
	n := netnstest.NewNamed(t)
	r := rules.Rules{
		Networks: podNetworks(), Subnets: podNetworks(), Masquerade: true,
		Tunnel: rules.Tunnel{Link: "flannel.1", Underlay: "eth0", Protocol: 17, Ports: []uint16{8472}, Peers: []netip.Addr{netip.MustParseAddr("192.168.77.2")}},
		Guard:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2379")},
	}
	all := variant("nft", dump) + ";" + variant("legacy", dump) + "; nft list tables | grep inet || true"
	show := func() string { return netnstest.Run(t, n, "sh", "-c", all) }
	empty := show()
	useNFT := func(ctx context.Context) error {
		f, err := nft.New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(ctx, r); err != nil {
			return err
		}
		return iptables.Cleanup(ctx)
	}
	err := n.Do(func() error {
		ctx := t.Context()
		if err := useNFT(ctx); err != nil {
			return err
		}
		onlyNFT := show()
		for _, kind := range kinds() {
			f, err := iptables.New(ctx, iptables.Options{IPTables: "iptables-" + kind, IP6Tables: "ip6tables-" + kind})
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Sync(ctx, r); err != nil {
				return err
			}
			if err := nft.Cleanup(ctx); err != nil {
				return err
			}
			if s := show(); strings.Contains(s, "inet flanneld") || !strings.Contains(s, "FLANNELD-POST") {
				t.Errorf("after switching to iptables-%s:\n%s", kind, s)
			}
			if err := useNFT(ctx); err != nil {
				return err
			}
			if s := show(); s != onlyNFT {
				t.Errorf("after switching back:\n%s\nwant:\n%s", s, onlyNFT)
			}
		}
		if err := nft.Cleanup(ctx); err != nil {
			return err
		}
		if s := show(); s != empty {
			t.Errorf("after clean-up:\n%s", s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
