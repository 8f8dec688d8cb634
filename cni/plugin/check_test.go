package plugin

import (
	"os"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestCHECKSeesWhatWasChanged(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	host := hostLink(c, "a", "eth0")
	in := func(args ...string) func() { return func() { netnstest.Run(t, n, args[0], args[1:]...) } }
	out := func(args ...string) func() { return func() { h.run(args[0], args[1:]...) } }
	for name, x := range map[string]struct {
		break_ func()
		words  string
	}{
		"address":           {in("ip", "addr", "del", "10.1.2.50/24", "dev", "eth0"), "lacks address 10.1.2.50/24"},
		"IPv6 address":      {in("ip", "addr", "del", "fd00:1:2::50/64", "dev", "eth0"), "lacks address fd00:1:2::50/64"},
		"default route":     {in("ip", "route", "del", "default"), "lacks the route to 0.0.0.0/0"},
		"IPv6 route":        {in("ip", "-6", "route", "del", "default"), "lacks the route to ::/0"},
		"interface down":    {in("ip", "link", "set", "eth0", "down"), "eth0 is down"},
		"MAC":               {in("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"), "has MAC 02:00:00:00:00:99"},
		"interface renamed": {func() { in("ip", "link", "set", "eth0", "down")(); in("ip", "link", "set", "eth0", "name", "eth9")() }, "eth0: no such link"},
		"link deleted":      {out("ip", "link", "del", host), "eth0: no such link"},
		"host end down":     {out("ip", "link", "set", host, "down"), "is down"},
		"off the bridge":    {out("ip", "link", "set", host, "nomaster"), "is not a port of bridge cni0"},
		"hairpin off":       {out("bridge", "link", "set", "dev", host, "hairpin", "off"), "hairpin mode false"},
		"bridge down":       {out("ip", "link", "set", "cni0", "down"), "cni0 is down"},
		"bridge deleted":    {out("ip", "link", "del", "cni0"), "cni0: no such link"},
		"gateway":           {out("ip", "addr", "del", "10.1.2.1/24", "dev", "cni0"), "lacks the gateway's address 10.1.2.1/24"},
		"masquerade":        {out("nft", "delete", "element", "inet", "flanneld-cni", "masq4", "{ 10.1.2.50 }"), "lacks the masquerading of 10.1.2.50"},
		"masquerade rules":  {out("nft", "flush", "table", "inet", "flanneld-cni"), "lacks the rules"},
		"guard":             {out("nft", "delete", "table", "bridge", "flanneld-cni"), "guard of port"},
		"everything":        {out("nft", "flush", "ruleset"), "nftables table flanneld-cni of container"},
		"reservation": {func() {
			if err := os.Remove(h.records()[0]); err != nil {
				t.Fatal(err)
			}
		}, "has no reservation"},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.in(t)
			wanted := c.with(conf{"runtimeConfig": conf{"ips": []any{"10.1.2.50", "fd00:1:2::50"}}})
			r := h.add("a", n, wanted)
			check := request{command: "CHECK", id: "a", netns: n.Path(), conf: withPrev(c, r)}
			h.ok(check)
			x.break_()
			h.fails(check, codeCheck, x.words)
			h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: withPrev(c, r)})
			_, _ = n.Run(t.Context(), "ip", "link", "del", "eth9")
			_, _ = h.ns.Run(t.Context(), "ip", "link", "del", "cni0")
		})
	}
}

func TestCHECKOfEarlierContainersSurvivesLaterOnes(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]conf{"gateway": h.conf(), "no gateway": h.conf().with(conf{"isGateway": false, "isDefaultGateway": false, "bridge": "cni1"})} {
		n := netnstest.New(t)
		r := h.add("first", n, c)
		var later []*netns.NS
		for i := range 4 {
			later = append(later, netnstest.New(t))
			h.add(fmtID(i), later[i], c)
		}
		h.ok(request{command: "DEL", id: fmtID(1), conf: c})
		if out, code := h.do(request{command: "CHECK", id: "first", netns: n.Path(), conf: withPrev(c, r)}); code != 0 {
			t.Errorf("%s: %s", name, out)
		}
		for _, id := range []string{"first", fmtID(0), fmtID(2), fmtID(3)} {
			h.ok(request{command: "DEL", id: id, conf: c})
		}
	}
}

func TestCHECKWithoutPrevResultSaysSo(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	h.add("a", n, h.conf())
	h.fails(request{command: "CHECK", id: "a", netns: n.Path(), conf: h.conf()}, 7, "prevResult is missing")
}

func TestSTATUSTellsWhetherAnADDCanWork(t *testing.T) {
	h := newHost(t)
	env := h.conf().with(conf{"ipam": h.ipam(nil)})
	status := func(c conf) request { return request{command: "STATUS", conf: c} }
	h.fails(status(env), 50, "subnet.env is missing")
	h.write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/30\nFLANNEL_MTU=1390\n", 0o644)
	h.ok(status(env))
	h.add("a", netnstest.New(t), env)
	h.fails(status(env), 50, "all 1 addresses are taken", "widen the range")
	if err := os.Remove(h.dir + "/subnet.env"); err != nil {
		t.Fatal(err)
	}
	h.fails(status(env), 51, "subnet.env is missing")
	h.ok(request{command: "DEL", id: "a", conf: env})
	h.write("subnet.env", "FLANNEL_MTU=1390\n", 0o644)
	h.fails(status(env), 50, "names no FLANNEL_SUBNET")
	h.write("subnet.env", "FLANNEL_SUBNET=nonsense\n", 0o644)
	h.fails(status(env), 50, "subnet.env")
	h.ok(status(h.conf()))
	h.fails(status(h.conf().with(conf{"cniVersion": "1.0.0"})), 1, "STATUS needs cniVersion 1.1.0")
}

func TestGCRemovesExactlyWhatIsNotListed(t *testing.T) {
	h := newHost(t)
	c := h.conf()
	other := c.with(conf{"name": "other", "bridge": "cni0", "ipam": h.ipam(conf{"ranges": []any{[]any{conf{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.100"}}}})})
	spaces := map[string]*netns.NS{}
	var kept conf
	for _, id := range []string{"keep", "drop", "lost", "gone"} {
		spaces[id] = netnstest.New(t)
		if r := h.add(id, spaces[id], c); id == "keep" {
			kept = withPrev(c, r)
		}
	}
	foreign := netnstest.New(t)
	rf := h.add("foreign", foreign, other)
	for _, path := range h.records() { // the record of "lost" is lost, "gone" lost its link
		if strings.Contains(path, ",lost,") {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.run("ip", "link", "del", hostLink(c, "gone", "eth0"))
	gc := request{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": []any{conf{"containerID": "keep", "ifname": "eth0"}}})}
	for range 2 {
		h.ok(gc)
	}
	h.ok(request{command: "CHECK", id: "keep", netns: spaces["keep"].Path(), conf: kept})
	h.ok(request{command: "CHECK", id: "foreign", netns: foreign.Path(), conf: withPrev(other, rf)})
	if len(h.records()) != 2 {
		t.Errorf("records %v", h.records())
	}
	rules := h.run("nft", "list", "ruleset")
	for id, want := range map[string]bool{"keep": true, "drop": false, "lost": false, "gone": false} {
		if got := strings.Contains(rules, hostLink(c, id, "eth0")); got != want {
			t.Errorf("%s in the packet filter: %t", id, got)
		}
		if got := strings.Contains(h.run("ip", "link"), hostLink(c, id, "eth0")); got != want {
			t.Errorf("link of %s: %t", id, got)
		}
	}
	for _, a := range []string{"10.1.2.3", "10.1.2.4", "10.1.2.5"} {
		if strings.Contains(h.run("nft", "list", "map", "inet", "flanneld-cni", "masq4"), a) {
			t.Errorf("%s is still masqueraded", a)
		}
	}
	h.ok(request{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": nil})})
	h.ok(request{command: "GC", conf: other.with(conf{"cni.dev/attachments": []any{}})})
	h.clean()
}

func TestGCWithoutAListIsRefused(t *testing.T) {
	h := newHost(t)
	h.add("a", netnstest.New(t), h.conf())
	h.fails(request{command: "GC", conf: h.conf()}, 7, "valid-attachments", "everything would be removed")
	h.fails(request{command: "GC", conf: h.conf().with(conf{"cni.dev/valid-attachments": "x"})}, 6, "valid-attachments")
	if len(h.records()) != 1 {
		t.Error("the attachment is gone")
	}
}
