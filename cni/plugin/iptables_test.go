package plugin

import (
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/iptables/cnichain"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// filters are the ways to masquerade; nil is nftables. On the kernel of the
// test iptables must be asked for: it has nf_tables.
func filters() map[string]func() (hostside.PacketFilter, error) {
	by := func(v4, v6 string) func() (hostside.PacketFilter, error) {
		return func() (hostside.PacketFilter, error) {
			return &cnichain.Chains{IPTables: v4, IP6Tables: v6}, nil
		}
	}
	return map[string]func() (hostside.PacketFilter, error){
		"nftables":        nil,
		"iptables-legacy": by("iptables-legacy", "ip6tables-legacy"),
		"iptables-nft":    by("iptables-nft", "ip6tables-nft"),
	}
}

func TestIPTablesDoWhatNFTablesDo(t *testing.T) {
	h := newHost(t)
	h.filter = filters()["iptables-legacy"]
	a, b := netnstest.New(t), netnstest.New(t)
	c := h.conf()
	ra, rb := h.add("a", a, c), h.add("b", b, c)
	check := request{command: "CHECK", id: "a", netns: a.Path(), conf: withPrev(c, ra)}
	h.ok(check)
	if r := h.repair(); len(r.Repaired) > 0 {
		t.Errorf("nothing was broken: %+v", r)
	}
	for name, x := range map[string]struct{ cmd, lacks string }{
		"flushed":           {"iptables-legacy -t nat -F; iptables-legacy -t nat -X", "the rules of iptables chains FLCNI-OUT"},
		"jump deleted":      {"ip6tables-legacy -t nat -F POSTROUTING", "the rules of iptables chains FLCNI-OUT"},
		"address deleted":   {"iptables-legacy-save -t nat | sed -n 's/^-A \\(FLCNI-OUT -s 10.1.2.2.*\\)/iptables-legacy -t nat -D \\1/p' | sh -e", "the masquerading of 10.1.2.2 in"},
		"network's flushed": {"iptables-legacy -t nat -F " + "FLCNI-" + cnitable.NetworkChain("podnet"), "the rules of iptables chains"},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.in(t)
			h.run("sh", "-c", x.cmd)
			h.fails(check, codeCheck, x.lacks)
			if r := h.repair(); len(r.Repaired) != 1 {
				t.Errorf("repaired %q", r.Repaired)
			}
			h.ok(check)
			h.ok(request{command: "CHECK", id: "b", netns: b.Path(), conf: withPrev(c, rb)})
		})
	}
	// The next ADD after a flush mends for all.
	h.run("sh", "-c", "iptables-legacy -t nat -F; iptables-legacy -t nat -X")
	n := netnstest.New(t)
	h.add("c", n, c)
	h.ok(check)
	valid := func(ids ...string) conf {
		list := []any{}
		for _, id := range ids {
			list = append(list, conf{"containerID": id, "ifname": "eth0"})
		}
		return c.with(conf{"cni.dev/valid-attachments": list})
	}
	h.ok(request{command: "GC", conf: valid("a")})
	h.ok(check)
	if rules := h.run("iptables-legacy-save", "-t", "nat"); strings.Contains(rules, "10.1.2.3/32") || !strings.Contains(rules, "10.1.2.2/32") {
		t.Errorf("after a GC:\n%s", rules)
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
	if rules := h.run("nft", "list", "ruleset"); strings.Contains(rules, cnitable.Name) {
		t.Errorf("nftables was used too:\n%s", rules)
	}
	if err := h.ns.Do(func() error { return iptables.CleanupCNI(t.Context()) }); err != nil {
		t.Error(err)
	}
	if rules := h.run("sh", "-c", "iptables-legacy-save; ip6tables-legacy-save"); strings.Contains(rules, "FLCNI") || strings.Contains(rules, "flanneld") {
		t.Errorf("left:\n%s", rules)
	}
}

func TestParallelADDsByIPTables(t *testing.T) {
	h := newHost(t)
	h.filter = filters()["iptables-legacy"]
	c := h.conf()
	var all sync.WaitGroup
	for i := range 8 {
		n := netnstest.New(t)
		all.Go(func() {
			if out, code := h.do(request{command: "ADD", id: fmtID(i), netns: n.Path(), conf: c}); code != 0 {
				t.Errorf("ADD: %s", out)
			}
		})
	}
	all.Wait()
	rules := h.run("iptables-legacy-save", "-t", "nat")
	if strings.Count(rules, "FLCNI-OUT -s") != 8 || strings.Count(rules, "-j FLCNI-OUT") != 1 || strings.Count(rules, "MASQUERADE") != 1 {
		t.Error(rules)
	}
	for i := range 8 {
		all.Go(func() {
			if out, code := h.do(request{command: "DEL", id: fmtID(i), conf: c}); code != 0 {
				t.Errorf("DEL: %s", out)
			}
		})
	}
	all.Wait()
	h.clean()
}

func TestWithoutAnyPacketFilterMasqueradingIsRefused(t *testing.T) {
	h := newHost(t)
	h.filter = func() (hostside.PacketFilter, error) {
		return &cnichain.Chains{IPTables: "no-such-iptables", IP6Tables: "no-such-ip6tables"}, nil
	}
	n := netnstest.New(t)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: h.conf()}, codeKernel, "ipMasq", "load nf_tables", "install iptables", "no-such-iptables")
	h.clean()
	h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: h.conf()})
	c := h.conf().with(conf{"ipMasq": false})
	r := h.add("b", n, c) // without the guard
	h.ok(request{command: "CHECK", id: "b", netns: n.Path(), conf: withPrev(c, r)})
	h.ok(request{command: "DEL", id: "b", conf: withPrev(c, r)})
	h.clean()
}

// noBridge is a kernel without nf_tables' bridge family: this one has it.
type noBridge struct {
	hostside.PacketFilter
	asked []cnitable.Attachment
}

func (f *noBridge) Add(a cnitable.Attachment, _ func() []cnitable.Attachment) error {
	f.asked = append(f.asked, a)
	if a.Guard {
		return cnitable.ErrUnsupported
	}
	return nil
}

func TestNoGuardInTheKernelIsSaidInTheRecord(t *testing.T) {
	for name, masquerade := range map[string]bool{"with ipMasq": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			pool, err := ipam.Open(t.TempDir(), "podnet")
			if err != nil {
				t.Fatal(err)
			}
			held, err := pool.Reserve(ipam.Record{
				ContainerID: "a", IfName: "eth0", HostLink: "fl0", MAC: "0a:58:0a:01:02:02", Guarded: true, Masquerade: masquerade,
				Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.2/24")},
			}, ipam.Request{})
			if err != nil {
				t.Fatal(err)
			}
			f := &noBridge{}
			a := attachment{call: &call{openFilter: func() (hostside.PacketFilter, error) { return f, nil }}, held: held}
			if err := a.permit(); err != nil {
				t.Fatal(err)
			}
			if last := f.asked[len(f.asked)-1]; last.Guard || last.Masquerade != masquerade {
				t.Errorf("asked for %+v", f.asked)
			}
			if err := held.Attached(); err != nil {
				t.Fatal(err)
			}
			held.Close()
			r, ok, err := pool.Peek(ipam.Key{ContainerID: "a", IfName: "eth0"})
			if err != nil || !ok || r.Guarded || !r.Attached || r.Masquerade != masquerade || r.HostLink != "fl0" {
				t.Errorf("record %+v, %v, %v", r, ok, err)
			}
		})
	}
}
