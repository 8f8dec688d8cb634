package nft

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

func sampleServices() rules.Services {
	slots := func(names ...string) (out []netip.AddrPort) {
		for _, n := range names {
			out = append(out, netip.MustParseAddrPort(n))
		}
		return out
	}
	s := rules.Services{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00:53::/112")},
		Hosts:    []netip.Addr{netip.MustParseAddr("10.0.9.1")},
		Pods:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")},
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.1.19.0/24"), netip.MustParsePrefix("fd00:1:0:19::/64")},
		Local:    []netip.Addr{netip.MustParseAddr("10.1.19.2"), netip.MustParseAddr("fd00:1:0:19::2")},
		Frontends: []*rules.Frontend{
			{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: unix.IPPROTO_TCP, Port: 80, Slots: slots("10.1.19.2:8080")},
			{Addr: netip.MustParseAddr("10.0.0.2"), Protocol: unix.IPPROTO_TCP, Port: 80, Affinity: 3 * time.Hour, Slots: slots("10.1.19.2:8080", "10.1.7.3:8080")},
			{Addr: netip.MustParseAddr("10.0.0.3"), Protocol: unix.IPPROTO_SCTP, Port: 80},
			{Addr: netip.MustParseAddr("127.0.0.1"), Protocol: unix.IPPROTO_TCP, Port: 30080, Node: true, Slots: slots("10.1.19.2:8080")},
			{Addr: netip.MustParseAddr("192.168.77.1"), Protocol: unix.IPPROTO_TCP, Port: 30080, Node: true, Slots: slots("10.1.19.2:8080")},
			{Addr: netip.MustParseAddr("fd00:53::1"), Protocol: unix.IPPROTO_UDP, Port: 80, Balance: rules.Hash, Slots: slots("[fd00:1:0:19::2]:8080", "[fd00:1:0:7::3]:8080")},
			{Addr: netip.MustParseAddr("fd00:53::2"), Protocol: unix.IPPROTO_UDP, Port: 80, Balance: rules.RoundRobin, Slots: slots("[fd00:1:0:19::2]:8080", "[fd00:1:0:7::3]:8080")},
		},
	}
	slices.SortFunc(s.Frontends, (*rules.Frontend).Compare)
	return s
}

// TestServicesAsNftShowsThem keeps a picture of the table for readers, and sees
// to it that nft can show it at all: what it cannot, it aborts at, and so
// does firewalld, which reads JSON. Comments lose their digests.
func TestServicesAsNftShowsThem(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		b, err := NewBalancer(nil)
		if err != nil {
			return err
		}
		defer b.Close()
		return b.Sync(t.Context(), sampleServices())
	})
	if err != nil {
		t.Fatal(err)
	}
	// The order of a map's elements is the kernel's secret.
	got := netnstest.Run(t, ns, "sh", "-ec", `nft -j list ruleset >/dev/null
		nft -s list ruleset | sed 's/ #[0-9a-f]*"/"/' | sed -Ez 's/\n\t\telements = \{[^}]*\}//g; s/\n\tchain lb-([13-9]|1[0-9]) \{[^}]*\n\t\}\n//g'`)
	const golden = "testdata/services.golden"
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

func TestNamesOfChainsTellThemApart(t *testing.T) {
	p := place{netip.MustParseAddr("10.0.0.1"), unix.IPPROTO_TCP, 80}
	for want, sh := range map[string]shape{
		"lb-5":            {slots: 5},
		"hash-65535":      {slots: 65535, balance: rules.Hash},
		"aff-5-3h0m0s":    {slots: 5, affinity: 3 * time.Hour},
		"rr-":             {slots: 5, balance: rules.RoundRobin, place: p},
		"aff-":            {slots: 65535, affinity: 100 * time.Hour},
		"aff-5-1.5s":      {slots: 5, affinity: 1500 * time.Millisecond},
		"hash-5-3h0m0s":   {slots: 5, affinity: 3 * time.Hour, balance: rules.Hash},
		"hash-70000000":   {slots: 70000000, balance: rules.Hash},
		"lb-100000000000": {slots: 100000000000},
	} {
		got := sh.name()
		if want[len(want)-1] == '-' {
			if len(got) != longestName || got[:len(want)] != want {
				t.Errorf("%+v: %q, want %q and a digest", sh, got, want)
			}
		} else if got != want {
			t.Errorf("%+v: %q, want %q", sh, got, want)
		}
		for _, other := range []shape{
			{sh.balance, sh.slots + 1, sh.affinity, sh.place}, {sh.balance, sh.slots, sh.affinity + time.Millisecond, sh.place},
			{sh.balance, sh.slots, sh.affinity, place{p.addr, p.protocol, 81}}, {sh.balance, sh.slots, sh.affinity, place{p.addr, 17, 80}},
			{(sh.balance + 1) % 3, sh.slots, sh.affinity, sh.place},
		} {
			if other != sh && other.name() == got {
				t.Errorf("%+v and %+v are both %q", sh, other, got)
			}
		}
	}
}

func TestSlotsThatStayKeepTheirPlace(t *testing.T) {
	list := func(letters string) (out []netip.AddrPort) {
		for _, l := range letters {
			e := netip.AddrPort{}
			if l != '-' {
				e = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 1, byte(l)}), 80)
			}
			out = append(out, e)
		}
		return out
	}
	for name, c := range map[string]struct {
		have, want string
		balance    rules.Balance
		out        string
	}{
		"nothing was there":  {"", "abc", rules.Random, "abc"},
		"the same":           {"abc", "abc", rules.Random, "abc"},
		"another order":      {"abc", "cab", rules.Random, "abc"},
		"one is swapped":     {"abcde", "acdex", rules.Random, "axcde"},
		"one goes":           {"abcde", "acde", rules.Random, "aecd"},
		"the last goes":      {"abcde", "abcd", rules.Random, "abcd"},
		"one comes first":    {"abc", "xabc", rules.Random, "abcx"},
		"all are others":     {"abc", "xyz", rules.Random, "xyz"},
		"weights":            {"aab", "abb", rules.Random, "abb"},
		"weights go":         {"aaab", "ab", rules.Random, "ab"},
		"holes are filled":   {"a-c", "abc", rules.Random, "abc"},
		"behind the end":     {"xxab", "ab", rules.Random, "ab"},
		"a hash needs order": {"abc", "cab", rules.Hash, "cab"},
	} {
		f := &rules.Frontend{Balance: c.balance, Slots: list(c.want)}
		h := holding(f, 1, arrange(list(c.have), f))
		if !slices.Equal(h.slots, list(c.out)) {
			t.Errorf("%s: %s becomes %v, want %s", name, c.have, h.slots, c.out)
		}
	}
}
