package iptables_test

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

func TestServicesContract(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := iptables.Options{IPTables: "iptables-" + kind, IP6Tables: "ip6tables-" + kind}
			rulestest.RunServices(t, rulestest.ServicesSubject{
				Open:       func() (rules.Balancer, error) { return iptables.NewBalancer(t.Context(), o) },
				OpenFilter: func() (rules.Filter, error) { return iptables.New(t.Context(), o) },
				Flushes: map[string]string{
					"flush of all":         variant(kind, "for i in ipt ip6t; do for t in raw nat filter; do $i -w -t $t -F; $i -w -t $t -X; done; done"),
					"deletion of a jump":   variant(kind, "ip6t -w -t nat -D PREROUTING 1"),
					"flush of a chain":     variant(kind, "ipt -w -t nat -F FLANNELD-SVC-VIP"),
					"flush of refusals":    variant(kind, "ipt -w -t filter -F FLANNELD-SVC-FWD"),
					"flush of an endpoint": variant(kind, "ipt -w -t nat -F $(ipt-save -t nat | grep -o -m1 FLANNELD-SVC-F[0-9a-f]*)"),
					"a rule more":          variant(kind, "ipt -w -t nat -I FLANNELD-SVC-MASQ -j ACCEPT"),
					"a jump twice":         variant(kind, "ipt -w -t nat -A POSTROUTING -m comment --comment 'flanneld jump' -j FLANNELD-SVC-POST"),
					"a chain more":         variant(kind, "ipt -w -t nat -N FLANNELD-SVC-OLD; ipt -w -t nat -A OUTPUT -j FLANNELD-SVC-OLD"),
					"no guard of loopback": variant(kind, "ipt -w -t raw -F PREROUTING"),
				},
				IPTables: "iptables-" + kind,
				Dump:     variant(kind, dump) + "; nft -s list table inet firewalld 2>/dev/null || true",
				Runs:     func(b rules.Balancer) int64 { return b.(*iptables.Balancer).Runs() },
				Writes:   func(b rules.Balancer) int64 { return b.(*iptables.Balancer).Writes() },
			})
		})
	}
}

func TestCleanupTakesServicesAndLeavesForward(t *testing.T) {
	n := netnstest.NewNamed(t)
	for _, kind := range []string{"nft", "legacy"} {
		o := iptables.Options{IPTables: "iptables-" + kind, IP6Tables: "ip6tables-" + kind}
		show := func() string { return netnstest.Run(t, n, "sh", "-ec", variant(kind, dump)) }
		netnstest.Run(t, n, "sh", "-ec", variant(kind, "ipt -w -P FORWARD DROP"))
		empty := show()
		err := n.Do(func() error {
			fwd, err := iptables.OpenForward("")
			if err != nil {
				return err
			}
			defer fwd.Close()
			if err := fwd.Sync(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, nil); err != nil {
				return err
			}
			forward := show()
			b, err := iptables.NewBalancer(t.Context(), o)
			if err != nil {
				return err
			}
			defer b.Close()
			s := rules.Services{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Frontends: []*rules.Frontend{{
				Addr: netip.MustParseAddr("10.0.0.9"), Protocol: unix.IPPROTO_TCP, Port: 80, Slots: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.2:80")},
			}}}
			for range 2 {
				if err := b.Sync(t.Context(), s); err != nil {
					return err
				}
				if err := fwd.Sync(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, nil); err != nil {
					return err
				}
			}
			if all := show(); !strings.Contains(all, "FLANNELD-SVC-FWD") || !strings.Contains(all, "FLANNELD-FWD") || strings.Index(all, "-j FLANNELD-SVC-FWD") > strings.Index(all, "-j FLANNELD-FWD") {
				t.Errorf("%s: rules are\n%s", kind, all)
			}
			if err := iptables.Cleanup(t.Context()); err != nil {
				return err
			}
			if after := show(); after != forward {
				t.Errorf("%s: left\n%s\nwant\n%s", kind, after, forward)
			}
			return fwd.Remove(t.Context())
		})
		if err != nil {
			t.Fatal(err)
		}
		if after := show(); after != empty {
			t.Errorf("%s: left\n%s\nwant\n%s", kind, after, empty)
		}
	}
}
