package nft

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

var update = flag.Bool("update", false, "write golden files")

func sample() rules.Rules {
	return rules.Rules{
		Networks:   []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")},
		Subnets:    []netip.Prefix{netip.MustParsePrefix("10.1.19.0/24"), netip.MustParsePrefix("fd00:1:0:19::/64")},
		Masquerade: true,
		Tunnel: rules.Tunnel{Link: "flannel.1", MoreLinks: []string{"flannel-v6.1"}, Underlay: "eth0", Protocol: 17, Ports: []uint16{8472},
			Local: []netip.Addr{netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.168.77.1")},
			Peers: []netip.Addr{netip.MustParseAddr("fd77::2"), netip.MustParseAddr("192.168.77.2"), netip.MustParseAddr("::ffff:192.168.77.2")}},
		Bridges: []string{"cni0", "br-*"}, Checked: []string{"cni0"},
		Names:   []netip.Addr{netip.MustParseAddr("10.1.19.1"), netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd00:1:0:19::1")},
		OffLink: []netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd00:53::a")},
		Guard:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2379"), netip.MustParseAddrPort("[fd77::9]:2379"), netip.MustParseAddrPort("127.0.0.1:2379")},
	}
}

// TestRulesAsNftShowsThem keeps a picture of the table for readers; comments
// lose their digests.
func TestRulesAsNftShowsThem(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		f, err := New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync(t.Context(), sample())
	})
	if err != nil {
		t.Fatal(err)
	}
	got := netnstest.Run(t, ns, "sh", "-c", `nft -s list ruleset | sed 's/ #[0-9a-f]*"/"/'`)
	const golden = "testdata/table.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("table:\n%s\nwant (go test -update if meant):\n%s", got, want)
	}
}

func TestPlanAsksForNothingThatIsNotNeeded(t *testing.T) {
	none := func(netip.Addr) bool { return false }
	cases := map[string]struct {
		change func(*rules.Rules)
		chains []string
	}{
		"all":           {func(*rules.Rules) {}, []string{"prerouting", "inner", "plain", "output", "input", "tunnel", "forward", "topeers", "names", "named", "guard", "guarded", "postrouting"}},
		"nothing":       {func(r *rules.Rules) { *r = rules.Rules{} }, nil},
		"no names":      {func(r *rules.Rules) { r.Names = nil }, []string{"prerouting", "inner", "plain", "output", "input", "tunnel", "forward", "topeers", "guard", "guarded", "postrouting"}},
		"no guard":      {func(r *rules.Rules) { r.Guard = nil }, []string{"prerouting", "inner", "plain", "output", "input", "tunnel", "forward", "topeers", "names", "named", "postrouting"}},
		"no tunnel":     {func(r *rules.Rules) { r.Tunnel = rules.Tunnel{}; r.Guard, r.Names = nil, nil }, []string{"prerouting", "plain", "postrouting"}},
		"names alone":   {func(r *rules.Rules) { *r = rules.Rules{Names: r.Names} }, []string{"prerouting", "output", "names", "named"}},
		"no masquerade": {func(r *rules.Rules) { r.Masquerade = false; r.Guard = nil }, []string{"prerouting", "inner", "plain", "output", "input", "tunnel", "forward", "topeers", "names", "named"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := sample()
			c.change(&r)
			plan, err := planOf(r, none)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ch := range plan.chains {
				got = append(got, ch.name)
			}
			if !slices.Equal(got, c.chains) {
				t.Errorf("chains %q, want %q", got, c.chains)
			}
		})
	}
}

func TestGuardOnAnAddressOfThisHostHoldsOnAll(t *testing.T) {
	own := netip.MustParseAddr("192.168.77.1")
	for guard, want := range map[string]bool{
		"192.168.77.1:2379": true, "127.0.0.1:2379": true, "0.0.0.0:2379": true, "[::]:2379": true, "[::1]:2379": true,
		"192.168.77.9:2379": false, "[fd77::9]:2379": false,
	} {
		r := rules.Rules{Guard: []netip.AddrPort{netip.MustParseAddrPort(guard)}}
		plan, err := planOf(r, func(a netip.Addr) bool { return a == own })
		if err != nil {
			t.Fatal(err)
		}
		here, _ := find(plan.sets, guardHere)
		if got := len(here.keys) == 1; got != want {
			t.Errorf("%s: guarded on every address %v, want %v", guard, got, want)
		}
	}
}

func FuzzDiff(f *testing.F) {
	f.Add("a b c", "b d")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, a, b string) {
		sorted := func(s string) []string {
			keys := strings.Fields(s)
			slices.Sort(keys)
			return slices.Compact(keys)
		}
		have, want := sorted(a), sorted(b)
		added, gone := diff(slices.Clone(have), slices.Clone(want), strings.Compare)
		got := slices.DeleteFunc(append(slices.Clone(have), added...), func(k string) bool { return slices.Contains(gone, k) })
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q + %q - %q = %q, want %q", have, added, gone, got, want)
		}
	})
}

func TestWatchNoticesChangesOfAChainAlone(t *testing.T) {
	ns := netnstest.New(t)
	var w *Watch
	err := ns.Do(func() (err error) {
		w, err = OpenWatch()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	digest := func() uint64 {
		d, err := w.Digest(IPv4, "filter", "FORWARD")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := digest(); d != 0 {
		t.Errorf("digest %d of a chain that is not there", d)
	}
	seen := map[uint64]string{0: "nothing"}
	for _, step := range []string{
		"iptables-nft -P FORWARD ACCEPT", "iptables-nft -P FORWARD DROP", "iptables-nft -A FORWARD -j ACCEPT",
		"iptables-nft -R FORWARD 1 -j DROP", "iptables-nft -F FORWARD; iptables-nft -A FORWARD -j DROP",
	} {
		netnstest.Run(t, ns, "sh", "-ec", step)
		d := digest()
		if before, ok := seen[d]; ok {
			t.Errorf("after %q: same digest as after %q", step, before)
		}
		seen[d] = step
		netnstest.Run(t, ns, "sh", "-ec", "iptables-nft -A INPUT -j ACCEPT")
		if digest() != d {
			t.Errorf("after %q: a change of another chain changed the digest", step)
		}
	}
	chains, err := w.Chains()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(chains, func(c Chain) bool { return c.String() == "ip filter FORWARD" && c.Drops }) {
		t.Errorf("chains %v lack the one that drops", chains)
	}
}

// TestFewChangedPeersGiveTheSamePlan compares the short way with the long one.
func TestFewChangedPeersGiveTheSamePlan(t *testing.T) {
	addrs := func(names string) (out []netip.Addr) {
		for _, n := range strings.Fields(names) {
			out = append(out, netip.MustParseAddr(n))
		}
		return out
	}
	many := ""
	for i := range 2 * fewPeers {
		many += " 10.7.0." + strconv.Itoa(i)
	}
	for name, c := range map[string]struct {
		last, now string
		few       bool
	}{
		"none":                          {"", "", true},
		"first":                         {"", "10.0.0.1 fd00::1", true},
		"joins in between":              {"10.0.0.1 10.0.0.9", "10.0.0.1 10.0.0.5 10.0.0.9", true},
		"leaves":                        {"10.0.0.1 fd00::1 10.0.0.9", "10.0.0.1 10.0.0.9", true},
		"moves":                         {"10.0.0.1 10.0.0.5 10.0.0.9", "10.0.0.1 10.0.0.77 10.0.0.9", true},
		"one of two of one address":     {"10.0.0.1 10.0.0.5 10.0.0.1 fd00::1", "10.0.0.1 10.0.0.5 fd00::1", true},
		"the other, written as IPv6":    {"::ffff:10.0.0.1 10.0.0.5 10.0.0.1", "::ffff:10.0.0.1 10.0.0.5", true},
		"a second of one address":       {"10.0.0.1", "10.0.0.1 ::ffff:10.0.0.1", true},
		"a zone comes to an address":    {"10.0.0.1 fe80::1", "10.0.0.1 fe80::1%1", true},
		"order alone":                   {"10.0.0.1 10.0.0.2", "10.0.0.2 10.0.0.1", true},
		"the last":                      {"fd00::1", "", true},
		"too many for the short way":    {"10.0.0.1", many, false},
		"too many leave for it at once": {many, "10.0.0.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			planWith := func(names string) table {
				r := sample()
				r.Tunnel.Peers = addrs(names)
				p, err := planOf(r, func(netip.Addr) bool { return false })
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			before, want := planWith(c.last), planWith(c.now)
			got, few := before.withPeers(addrs(c.last), addrs(c.now))
			if few != c.few {
				t.Fatalf("few: %v", few)
			}
			same := func(a, b table) bool {
				return slices.EqualFunc(a.sets, b.sets, func(x, y set) bool { return x.name == y.name && slices.Equal(x.keys, y.keys) })
			}
			if few && !same(got, want) {
				t.Errorf("sets %v, want %v", got.sets, want.sets)
			}
			if !same(before, planWith(c.last)) {
				t.Error("the former plan was changed")
			}
		})
	}
}

// TestAKernelWithoutARPTablesHasTheRest has the filter believe in such a kernel.
func TestAKernelWithoutARPTablesHasTheRest(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		f, err := New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		f.noARP = true
		for range 2 {
			if err := f.Sync(t.Context(), sample()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(netnstest.Run(t, ns, "nft", "list", "tables")); got != "table inet flanneld" {
		t.Errorf("tables %q", got)
	}
	for err, want := range map[error]bool{fmt.Errorf("commit: %w", unix.ENOENT): true, unix.EOPNOTSUPP: true, unix.EAFNOSUPPORT: true, unix.EPERM: false, unix.EBUSY: false} {
		if got := lacksFamily(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
