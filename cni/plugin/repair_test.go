package plugin

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// repair is what the daemon does when it noticed a change.
func (h *host) repair() hostside.Report {
	h.t.Helper()
	var r hostside.Report
	err := h.ns.Do(func() (err error) {
		r, err = hostside.Repair(hostside.Look{Dir: h.dir + "/attachments", Filter: true, Links: true, Open: h.filter})
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestWhatSomebodyTookAwayComesBack(t *testing.T) {
	h := newHost(t)
	a, b := netnstest.New(t), netnstest.New(t)
	c := h.conf()
	ra, rb := h.add("a", a, c), h.add("b", b, c)
	check := func() {
		t.Helper()
		h.ok(request{command: "CHECK", id: "a", netns: a.Path(), conf: withPrev(c, ra)})
		h.ok(request{command: "CHECK", id: "b", netns: b.Path(), conf: withPrev(c, rb)})
	}
	if r := h.repair(); len(r.Repaired) > 0 || r.Again || !slices.Equal(r.Bridges, []string{"cni0"}) {
		t.Fatalf("nothing was broken: %+v", r)
	}
	before := h.run("nft", "-s", "list", "ruleset")
	host := hostLink(c, "a", "eth0")
	for name, x := range map[string]struct{ cmd, says string }{
		"ruleset flushed":          {"nft flush ruleset", "2 containers"},
		"one element":              {"nft delete element inet flanneld-cni masq4 '{ 10.1.2.2 }'", "1 containers"},
		"one permission":           {"nft flush set bridge flanneld-cni guard6", "2 containers"},
		"guarded ports":            {"nft flush map bridge flanneld-cni ports", "2 containers"},
		"rules of a table":         {"nft flush table inet flanneld-cni", "containers"},
		"rules of the other":       {"nft flush table bridge flanneld-cni", "containers"},
		"one chain's rules":        {"nft flush chain bridge flanneld-cni nd", "containers"},
		"one table":                {"nft delete table bridge flanneld-cni", "2 containers"},
		"a rule too many":          {"nft insert rule bridge flanneld-cni guard accept", "containers"},
		"address of the bridge":    {"ip addr del 10.1.2.1/24 dev cni0", "bridge cni0"},
		"IPv6 address":             {"ip addr del fd00:1:2::1/64 dev cni0", "bridge cni0"},
		"bridge down":              {"ip link set cni0 down", "bridge cni0"},
		"port down":                {"ip link set " + host + " down", "port " + host},
		"port off the bridge":      {"ip link set " + host + " nomaster", "port " + host},
		"hairpin mode":             {"bridge link set dev " + host + " hairpin off", "port " + host},
		"port on another bridge":   {"ip link add other up type bridge && ip link set " + host + " master other && ip link del other", "port " + host},
		"bridge deleted":           {"ip link del cni0", "bridge cni0"},
		"bridge, then all at once": {"ip link del cni0; nft flush ruleset", "bridge cni0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.in(t)
			h.run("sh", "-c", x.cmd)
			r := h.repair()
			if all := strings.Join(r.Repaired, "\n"); !strings.Contains(all, x.says) || r.Again {
				t.Errorf("report %+v lacks %q", r, x.says)
			}
			if r := h.repair(); len(r.Repaired) > 0 {
				t.Errorf("not repaired at once: %v", r.Repaired)
			}
			check()
			if now := h.run("nft", "-s", "list", "ruleset"); sorted(now) != sorted(before) {
				t.Errorf("before:\n%s\nafter:\n%s", before, now)
			}
			for _, to := range []string{"10.1.2.3", "fd00:1:2::3", "10.1.2.1", "fd00:1:2::1"} {
				if err := h.ping(a, to); err != nil {
					t.Error(err)
				}
			}
		})
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.ok(request{command: "DEL", id: "b", conf: c})
	h.clean()
}

// sorted is a ruleset without the order of elements and of what was made when.
func sorted(rules string) string {
	words := strings.Fields(strings.ReplaceAll(rules, ",", " "))
	slices.Sort(words)
	return strings.Join(words, " ")
}

func TestIsolatedPortsStayIsolated(t *testing.T) {
	h := newHost(t)
	c := h.conf().with(conf{"portIsolation": true})
	h.add("a", netnstest.New(t), c)
	port := hostLink(c, "a", "eth0")
	for _, damage := range []string{"bridge link set dev " + port + " isolated off", "ip link set " + port + " nomaster"} {
		h.run("sh", "-c", damage)
		if r := h.repair(); len(r.Repaired) != 1 {
			t.Errorf("%s: %+v", damage, r)
		}
		if out := h.run("bridge", "-d", "link", "show", "dev", port); !strings.Contains(out, "isolated on") {
			t.Errorf("%s: %s", damage, out)
		}
	}
}

func TestWhatIsGoneIsNotBroughtBack(t *testing.T) {
	h := newHost(t)
	a := netnstest.New(t)
	c := h.conf()
	h.add("a", a, c)
	h.add("b", netnstest.New(t), c)
	h.ok(request{command: "DEL", id: "b", conf: c})
	h.run("ip", "link", "del", hostLink(c, "a", "eth0")) // as with the container's namespace
	h.run("nft", "flush", "ruleset")
	if r := h.repair(); len(r.Repaired) > 0 || r.Again {
		t.Errorf("repaired %+v", r)
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
}

func TestAttachmentThatAPluginWorksOnIsLeftToIt(t *testing.T) {
	h := newHost(t)
	c := h.conf()
	h.add("a", netnstest.New(t), c)
	pool, err := ipam.Open(h.dir+"/attachments", "podnet")
	if err != nil {
		t.Fatal(err)
	}
	held, err := pool.Find(ipam.Key{ContainerID: "a", IfName: "eth0"})
	if err != nil || held == nil {
		t.Fatal(held, err)
	}
	h.run("nft", "flush", "ruleset")
	if r := h.repair(); len(r.Repaired) > 0 || !r.Again {
		t.Errorf("while it is held: %+v", r)
	}
	held.Close()
	if r := h.repair(); len(r.Repaired) != 1 || r.Again {
		t.Errorf("afterwards: %+v", r)
	}
}

// TestRepairNeverBringsBackWhatIsBeingDeleted lets somebody flush all the time while
// containers come and go and the daemon repairs.
func TestRepairNeverBringsBackWhatIsBeingDeleted(t *testing.T) {
	h := newHost(t)
	c := h.conf()
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
	defer stop()
	var others sync.WaitGroup
	others.Go(func() {
		for ctx.Err() == nil {
			h.repair()
		}
	})
	others.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			table := []string{"inet", "bridge"}[i%2]
			_, _ = h.ns.Run(ctx, "nft", "flush", "table", table, "flanneld-cni")
			_, _ = h.ns.Run(ctx, "nft", "delete", "table", table, "flanneld-cni")
			time.Sleep(20 * time.Millisecond)
		}
	})
	var plugins sync.WaitGroup
	for i := range 2 {
		n := netnstest.New(t)
		plugins.Go(func() {
			for ctx.Err() == nil {
				h.add(fmtID(i), n, c)
				h.ok(request{command: "DEL", id: fmtID(i), conf: c})
			}
		})
	}
	plugins.Wait()
	others.Wait()
	h.repair()
	h.clean()
}

func TestSubnetThatDockerHasIsRefused(t *testing.T) {
	h := newHost(t)
	h.write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1390\nFLANNEL_IPMASQ=false\n", 0o644)
	h.run("ip", "link", "add", "flannel.1", "up", "type", "bridge") // stands for the tunnel
	h.run("ip", "addr", "add", "10.5.72.0/32", "dev", "flannel.1")
	c := h.conf().with(conf{"ipam": h.ipam(nil)})
	n := netnstest.New(t)
	status := func(plugin string) request { return request{plugin: plugin, command: "STATUS", conf: c} }
	h.ok(status(""))
	h.ok(status("flanneld-ipam"))
	for _, address := range []string{"10.5.72.1/24", "10.5.72.9/24", "10.5.0.1/16"} {
		h.run("ip", "link", "add", "docker0", "up", "type", "bridge")
		h.run("ip", "addr", "add", address, "dev", "docker0")
		inside := address != "10.5.0.1/16" // its subnet is not the leased one
		for _, q := range []request{
			{command: "ADD", id: "a", netns: n.Path(), conf: c},
			{plugin: "flanneld-ipam", command: "ADD", id: "a", netns: n.Path(), conf: c},
		} {
			if inside {
				h.fails(q, codeInUse, "docker0", "10.5.72.0/24", h.dir+"/subnet.env", "--bip")
				continue
			}
			h.ok(q)
			q.command = "DEL"
			h.ok(q)
		}
		if inside {
			h.fails(status(""), 50, "docker0")
			h.fails(status("flanneld-ipam"), 50, "docker0")
			h.clean()
			if _, err := h.ns.Run(t.Context(), "ip", "link", "show", "cni0"); err == nil {
				t.Error("the bridge was made")
			}
		}
		h.run("ip", "link", "del", "docker0")
		_, _ = h.ns.Run(t.Context(), "ip", "link", "del", "cni0")
	}
	// A subnet that the configuration names is the admin's business.
	h.run("ip", "link", "add", "docker0", "up", "type", "bridge")
	h.run("ip", "addr", "add", "10.1.2.77/24", "dev", "docker0")
	h.add("b", n, h.conf())
}

// TestDockerThatCameLaterIsReported: ADD does not ask any more once the bridge
// has its address, STATUS does.
func TestDockerThatCameLaterIsReported(t *testing.T) {
	h := newHost(t)
	h.write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1390\nFLANNEL_IPMASQ=false\n", 0o644)
	c := h.conf().with(conf{"ipam": h.ipam(nil)})
	h.add("a", netnstest.New(t), c)
	h.ok(request{command: "STATUS", conf: c})
	h.run("ip", "link", "add", "docker0", "up", "type", "bridge")
	h.run("ip", "addr", "add", "10.5.72.1/24", "dev", "docker0")
	h.fails(request{command: "STATUS", conf: c}, 50, "docker0")
	h.ok(request{command: "DEL", id: "a", conf: c})
}

// TestRepairOfManyIsFast is about the order of magnitude only.
func TestRepairOfManyIsFast(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 150 containers")
	}
	h := newHost(t)
	c := h.conf()
	n := netnstest.New(t)
	for i := range 150 {
		h.ok(request{command: "ADD", id: fmtID(i), ifName: "e" + fmtID(i)[10:], netns: n.Path(), conf: c.with(conf{"isDefaultGateway": false})})
	}
	start := time.Now()
	h.repair()
	idle := time.Since(start)
	h.run("nft", "flush", "ruleset")
	start = time.Now()
	r := h.repair()
	took := time.Since(start)
	t.Logf("150 attachments: compared in %s, repaired after a flush in %s", idle, took)
	if len(r.Repaired) != 1 || !strings.Contains(r.Repaired[0], "150 containers") || took > 3*time.Second {
		t.Errorf("%+v after %s", r, took)
	}
}
