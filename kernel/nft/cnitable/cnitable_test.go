package cnitable

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func open(t testing.TB, n *netns.NS) *Table {
	t.Helper()
	var c *Table
	if err := n.Do(func() (err error) { c, err = Open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func attachment(link string, last byte) Attachment {
	return Attachment{
		Network: "podnet", Link: link, MAC: net.HardwareAddr{0x0a, 0x58, 10, 1, 2, last},
		Addresses:  []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 2, last}), netip.AddrFrom16([16]byte{0xfd, 15: last})},
		Masquerade: true, Guard: true,
		Inside: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")},
	}
}

func missing(t *testing.T, c *Table, a Attachment) string {
	t.Helper()
	what, err := c.Missing(a)
	if err != nil {
		t.Fatal(err)
	}
	return what
}

func TestAddIsIdempotentAndRemoveTakesOnlyItsOwn(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a, b := attachment("fl0", 3), attachment("fl1", 4)
	if missing(t, c, a) == "" {
		t.Error("present before it was added")
	}
	for range 2 {
		for _, x := range []Attachment{a, b} {
			if err := c.Add(x, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	rules := netnstest.Run(t, n, "nft", "list", "ruleset")
	if strings.Count(rules, "masquerade fully-random") != 1 || strings.Count(rules, "vmap @ports") != 1 {
		t.Errorf("rules are not there exactly once:\n%s", rules)
	}
	for range 2 {
		if err := c.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	if missing(t, c, a) == "" {
		t.Error("still present")
	}
	if what := missing(t, c, b); what != "" {
		t.Errorf("the other lost %s", what)
	}
	if err := n.Do(RemoveAll); err != nil {
		t.Fatal(err)
	}
	if rules := netnstest.Run(t, n, "nft", "list", "ruleset"); rules != "" {
		t.Errorf("left behind:\n%s", rules)
	}
	if err := n.Do(RemoveAll); err != nil {
		t.Error(err)
	}
}

func TestFlushedRulesComeBackWithTheOthers(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a, b := attachment("fl0", 3), attachment("fl1", 4)
	if err := c.Add(a, nil); err != nil {
		t.Fatal(err)
	}
	netnstest.Run(t, n, "nft", "flush", "ruleset")
	if err := c.Add(b, func() []Attachment { return []Attachment{a, b} }); err != nil {
		t.Fatal(err)
	}
	for _, x := range []Attachment{a, b} {
		if what := missing(t, c, x); what != "" {
			t.Errorf("%s misses %s", x.Link, what)
		}
	}
}

func TestFlushedTablesGetTheirRulesBack(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a := attachment("fl0", 3)
	if err := c.Add(a, nil); err != nil {
		t.Fatal(err)
	}
	netnstest.Run(t, n, "nft", "flush", "table", "inet", Name)
	netnstest.Run(t, n, "nft", "flush", "table", "bridge", Name)
	if err := c.Add(attachment("fl1", 4), nil); err != nil {
		t.Fatal(err)
	}
	if what := missing(t, c, a); what != "" {
		t.Errorf("missing %s", what)
	}
}

func TestAddressMovesToAnotherNetwork(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a := attachment("fl0", 3)
	if err := c.Add(a, nil); err != nil {
		t.Fatal(err)
	}
	b := attachment("fl0", 3)
	b.Network = "other"
	if err := c.Add(b, nil); err != nil {
		t.Fatal(err)
	}
	if out := netnstest.Run(t, n, "nft", "list", "map", "inet", Name, "masq4"); !strings.Contains(out, NetworkChain("other")) {
		t.Error(out)
	}
}

func TestPruneRemovesWhatIsNotKept(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a, b, foreign := attachment("fl0", 3), attachment("fl1", 4), attachment("fl2", 5)
	foreign.Network = "other"
	for _, x := range []Attachment{a, b, foreign} {
		if err := c.Add(x, nil); err != nil {
			t.Fatal(err)
		}
	}
	keep := func() (map[string]bool, map[netip.Addr]bool, error) {
		return map[string]bool{"fl0": true}, map[netip.Addr]bool{a.Addresses[0]: true, a.Addresses[1]: true}, nil
	}
	if err := c.Prune("podnet", keep); err != nil {
		t.Fatal(err)
	}
	if missing(t, c, a) != "" || missing(t, c, foreign) != "" {
		t.Error("too much is gone")
	}
	out := netnstest.Run(t, n, "nft", "list", "ruleset")
	if strings.Contains(out, "fl1") || strings.Contains(out, "10.1.2.4") {
		t.Errorf("not pruned:\n%s", out)
	}
}

func TestMissingNamesAFlushedChain(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a := attachment("fl0", 3)
	for chain, family := range map[string]string{masqueradeChain: "inet", NetworkChain("podnet"): "inet", portsChain: "bridge", guardChain: "bridge", ndChain: "bridge"} {
		if err := n.Do(RemoveAll); err != nil {
			t.Fatal(err)
		}
		if err := c.Add(a, nil); err != nil {
			t.Fatal(err)
		}
		netnstest.Run(t, n, "nft", "flush", "chain", family, Name, chain)
		if what := missing(t, c, a); !strings.Contains(what, chain) {
			t.Errorf("chain %s flushed: missing %q", chain, what)
		}
	}
}

func TestRulesReadAsMeant(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	if err := c.Add(attachment("fl0", 3), nil); err != nil {
		t.Fatal(err)
	}
	out := netnstest.Run(t, n, "nft", "list", "ruleset")
	t.Log(out)
	for _, want := range []string{
		"ip saddr vmap @masq4", "ip6 saddr vmap @masq6", "ip daddr 10.1.0.0/16 return", "ip daddr 224.0.0.0/4 return",
		"ip6 daddr ff00::/8 return", "masquerade fully-random", "iifname . ether saddr . ip saddr @guard4 accept",
		"iifname vmap @ports", "icmpv6 type nd-router-advert drop", `comment "podnet"`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
}

func BenchmarkAddRemove(b *testing.B) {
	c := open(b, netnstest.New(b))
	a := attachment("fl0", 3)
	if err := c.Add(attachment("fl9", 9), nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := c.Add(a, nil); err != nil {
			b.Fatal(err)
		}
		if err := c.Remove(a); err != nil {
			b.Fatal(err)
		}
	}
}

func TestRepairPutsBackOnlyWhatLacks(t *testing.T) {
	n := netnstest.New(t)
	c := open(t, n)
	a, b := attachment("fl0", 3), attachment("fl1", 4)
	present := func() *Present {
		t.Helper()
		p, err := c.Present()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := present()
	for _, x := range []Attachment{a, b} {
		if !p.Lacks(x) {
			t.Errorf("%s is there before it was added", x.Link)
		}
		if err := c.Repair(x, p); err != nil {
			t.Fatal(err)
		}
	}
	if p = present(); p.Lacks(a) || p.Lacks(b) {
		t.Error("still lacking")
	}
	if other := (Attachment{Network: "other", Link: "fl9"}); p.Lacks(other) {
		t.Error("what needs nothing lacks something")
	}
	netnstest.Run(t, n, "nft", "delete", "element", "inet", Name, "masq6", "{ fd00::4 }")
	if p = present(); p.Lacks(a) || !p.Lacks(b) {
		t.Error("one element of the other is gone")
	}
	handles := netnstest.Run(t, n, "nft", "-a", "list", "chain", "inet", Name, masqueradeChain)
	if err := c.Repair(b, p); err != nil {
		t.Fatal(err)
	}
	if now := netnstest.Run(t, n, "nft", "-a", "list", "chain", "inet", Name, masqueradeChain); now != handles {
		t.Errorf("rules were written anew:\n%s\nbefore:\n%s", now, handles)
	}
	if what := missing(t, c, b); what != "" {
		t.Errorf("missing %s", what)
	}
}
