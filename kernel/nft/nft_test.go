package nft_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

func TestContract(t *testing.T) {
	rulestest.Run(t, rulestest.Subject{
		Open: func() (rules.Filter, error) { return nft.New(nil) },
		Flushes: map[string]string{
			"flush ruleset":      "nft flush ruleset",
			"deletion":           "nft delete table inet flanneld",
			"flush of a chain":   "nft flush chain inet flanneld tunnel",
			"flush of a set":     "nft flush set inet flanneld peers4",
			"flush of names":     "nft flush set inet flanneld names4",
			"flush of DNS rules": "nft flush chain inet flanneld names",
			"ARP table deleted":  "nft delete table arp flanneld",
			"an element more":    "nft add element inet flanneld peers4 { 192.168.77.9 }",
			"a rule more":        "nft insert rule inet flanneld tunnel accept",
			"another policy":     "nft 'add chain inet flanneld input { policy drop; }'",
			"a dormant table":    "nft 'add table inet flanneld { flags dormant; }'",
			"a chain more":       "nft 'add chain inet flanneld x; add rule inet flanneld input jump x'",
			"a map we never had": "nft 'add map inet flanneld m { type ipv4_addr : verdict; }'",
		},
		Others: `nft -f - <<EOF
table inet mine {
	set s { type ipv4_addr; elements = { 10.9.9.9 }; }
	chain c { type filter hook input priority 0; policy accept; ip saddr @s drop comment "mine"; }
}
EOF
iptables-nft -A INPUT -s 10.9.9.8 -j DROP`,
		Dump: "nft -s list ruleset",
	})
}

// TestAddressesOnNoLinkAreNotAnsweredFor has a neighbour look for addresses on
// the underlay: what it finds there it would send to this host.
func TestAddressesOnNoLinkAreNotAnsweredFor(t *testing.T) {
	host, neighbour := netnstest.NewNamed(t), netnstest.NewNamed(t)
	name := neighbour.Path()[strings.LastIndex(neighbour.Path(), "/")+1:]
	netnstest.Run(t, host, "sh", "-ec", strings.ReplaceAll(`
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.default.accept_dad=0
		ip link add eth0 up type veth peer name eth0 netns NS
		ip addr add 192.168.77.1/24 dev eth0; ip addr add fd77::1/64 dev eth0 nodad
		ip addr add 10.0.0.1/32 dev lo
		ip route add local 10.0.0.10 dev lo table local; ip -6 route add local fd77::a dev lo table local
		ip -n NS link set eth0 up; ip -n NS addr add 192.168.77.9/24 dev eth0; ip -n NS addr add fd77::9/64 dev eth0 nodad
		ip -n NS route add 10.0.0.0/24 dev eth0`, "NS", name))
	finds := func(addr string) bool {
		_, _ = neighbour.Run(t.Context(), "ip", "neigh", "flush", "dev", "eth0")
		_, _ = neighbour.Run(t.Context(), "ping", "-c1", "-W1", addr)
		return strings.Contains(netnstest.Run(t, neighbour, "ip", "neigh", "show", addr), "lladdr")
	}
	if !finds("10.0.0.10") || finds("fd77::a") {
		t.Fatal("the kernel answers otherwise than it is thought to: the test proves nothing")
	}
	err := host.Do(func() error {
		f, err := nft.New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		off := []netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd77::a")}
		return f.Sync(t.Context(), rules.Rules{Names: off, OffLink: off})
	})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"10.0.0.10": false, "fd77::a": false, "10.0.0.1": true, "192.168.77.1": true, "fd77::1": true} {
		if got := finds(addr); got != want {
			t.Errorf("%s: found %v, want %v", addr, got, want)
		}
	}
}
