package plugin

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestContainersReachEachOtherAndTheHost(t *testing.T) {
	h := newHost(t)
	a, b := netnstest.New(t), netnstest.New(t)
	c := h.conf()
	ra, rb := h.add("a", a, c), h.add("b", b, c)
	for _, r := range rb.IPs {
		if err := h.ping(a, r.Address.IP.String()); err != nil {
			t.Errorf("container to container: %v", err)
		}
		if err := h.ping(h.ns, r.Address.IP.String()); err != nil {
			t.Errorf("host to container: %v", err)
		}
		if err := h.ping(b, r.Gateway.String()); err != nil {
			t.Errorf("container to gateway: %v", err)
		}
	}
	if len(ra.Interfaces) != 3 || ra.Interfaces[0].Name != "cni0" || ra.Interfaces[2].Sandbox != a.Path() {
		t.Errorf("interfaces %+v", ra.Interfaces)
	}
	h.ok(request{command: "CHECK", id: "a", netns: a.Path(), conf: withPrev(c, ra)})
	h.ok(request{command: "DEL", id: "a", netns: a.Path(), conf: withPrev(c, ra)})
	h.ok(request{command: "CHECK", id: "b", netns: b.Path(), conf: withPrev(c, rb)})
	h.ok(request{command: "DEL", id: "b", conf: c})
	if links := netnstest.Run(t, a, "ip", "-br", "link"); strings.Contains(links, "eth0") {
		t.Errorf("eth0 left: %s", links)
	}
	h.clean()
}

func TestResultTellsWhatTheKernelHas(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	r := h.add("a", n, h.conf())
	for where, i := range map[string]int{"cni0": 0, "": 1} {
		if where == "" {
			where = r.Interfaces[1].Name
		}
		if out := h.run("ip", "link", "show", where); !strings.Contains(out, r.Interfaces[i].Mac) {
			t.Errorf("%s: result says %s\n%s", where, r.Interfaces[i].Mac, out)
		}
	}
	out := netnstest.Run(t, n, "ip", "addr", "show", "eth0")
	for _, want := range []string{r.Interfaces[2].Mac, "mtu 1450", "10.1.2.2/24 brd 10.1.2.255", "fd00:1:2::2/64"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out := netnstest.Run(t, n, "ip", "addr", "show", "eth0", "scope", "global"); strings.Contains(out, "tentative") {
		t.Errorf("an address is not usable yet:\n%s", out)
	}
	routes := netnstest.Run(t, n, "ip", "route") + netnstest.Run(t, n, "ip", "-6", "route")
	for _, want := range []string{"default via 10.1.2.1 dev eth0", "default via fd00:1:2::1 dev eth0"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no %q in\n%s", want, routes)
		}
	}
	for key, want := range map[string]string{"ipv6/conf/eth0/accept_ra": "0", "ipv4/conf/eth0/arp_notify": "1"} {
		if got := netnstest.Run(t, n, "cat", "/proc/sys/net/"+key); strings.TrimSpace(got) != want {
			t.Errorf("%s is %s", key, got)
		}
	}
	for key, want := range map[string]string{"ipv6/conf/cni0/accept_ra": "0", "ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		if got := h.run("cat", "/proc/sys/net/"+key); strings.TrimSpace(got) != want {
			t.Errorf("%s is %s", key, got)
		}
	}
}

func TestForwardingKeepsTheUnderlaysRouterAdvertisements(t *testing.T) {
	h := newHost(t)
	h.run("ip", "link", "add", "underlay0", "type", "veth", "peer", "name", "x")
	h.add("a", netnstest.New(t), h.conf())
	if got := h.run("cat", "/proc/sys/net/ipv6/conf/underlay0/accept_ra"); strings.TrimSpace(got) != "2" {
		t.Errorf("accept_ra is %s", got)
	}
}

func TestIPv6WorksWhereItIsOffByDefault(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	for _, ns := range []string{"all", "default"} {
		h.run("sysctl", "-qw", "net.ipv6.conf."+ns+".disable_ipv6=1")
		netnstest.Run(t, n, "sysctl", "-qw", "net.ipv6.conf."+ns+".disable_ipv6=1")
	}
	h.add("a", n, h.conf())
	if err := h.ping(n, "fd00:1:2::1"); err != nil {
		t.Error(err)
	}
}

func TestSubnetEnvGivesSubnetAndMTU(t *testing.T) {
	h := newHost(t)
	c := h.conf().with(conf{"ipam": h.ipam(nil)})
	delete(c, "mtu")
	n := netnstest.New(t)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, 11, "subnet.env is missing", "start flanneld")
	h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: c})
	h.write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1390\nFLANNEL_IPMASQ=false\n", 0o644)
	r := h.add("a", n, c)
	if r.IPs[0].Address.String() != "10.5.72.2/24" || r.IPs[0].Gateway.String() != "10.5.72.1" {
		t.Errorf("got %+v", r.IPs[0])
	}
	if out := netnstest.Run(t, n, "ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1390") {
		t.Error(out)
	}
	if rules := h.run("nft", "list", "ruleset"); !strings.Contains(rules, "ip daddr 10.5.0.0/16 return") {
		t.Errorf("traffic inside the network is masqueraded:\n%s", rules)
	}
	if err := os.Remove(h.dir + "/subnet.env"); err != nil {
		t.Fatal(err)
	}
	h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: c})
	h.clean()
}

func TestHostNamespaceIsRefusedBeforeAnythingIsDone(t *testing.T) {
	h := newHost(t)
	before := h.run("ip", "-d", "addr")
	f := h.fails(request{command: "ADD", id: "a", netns: h.ns.Path(), conf: h.conf()}, 8, "own network namespace")
	if f.CNIVersion != "1.1.0" {
		t.Errorf("version %q", f.CNIVersion)
	}
	if after := h.run("ip", "-d", "addr"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	h.ok(request{command: "DEL", id: "a", netns: h.ns.Path(), conf: h.conf()})
	h.clean()
}

func TestDELIsRepeatableAndNeedsNothing(t *testing.T) {
	h := newHost(t)
	c := h.conf()
	for name, del := range map[string]request{
		"never added":       {},
		"empty netns":       {id: "a"},
		"netns gone":        {id: "a", netns: "/run/netns/fltest-gone"},
		"netns is no netns": {id: "a", netns: "/etc/passwd"},
		"broken ranges":     {id: "a", conf: c.with(conf{"ipam": h.ipam(conf{"ranges": []any{[]any{conf{"subnet": "nonsense"}}}})})},
	} {
		n := netnstest.New(t)
		if del.id != "" {
			h.add("a", n, c)
		}
		del.command, del.id = "DEL", "a"
		if del.conf == nil {
			del.conf = c
		}
		for range 2 {
			if out, code := h.do(del); code != 0 || out != "" {
				t.Errorf("%s: %d %s", name, code, out)
			}
		}
		if links := netnstest.Run(t, n, "ip", "-br", "link"); strings.Contains(links, "eth0") {
			t.Errorf("%s: eth0 left", name)
		}
		h.clean()
	}
}

func TestDELCleansUpWhenTheRecordIsLost(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	r := h.add("a", n, c)
	if err := os.RemoveAll(h.dir + "/attachments"); err != nil {
		t.Fatal(err)
	}
	h.ok(request{command: "DEL", id: "a", conf: withPrev(c, r)})
	h.clean()
}

func TestTwoInterfacesOfOneContainerDoNotBreakEachOther(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	delete(c, "isDefaultGateway")
	r0 := h.add("a", n, c)
	r1 := result(t, h.ok(request{command: "ADD", id: "a", ifName: "net1", netns: n.Path(), conf: c}))
	h.ok(request{command: "DEL", id: "a", ifName: "net1", netns: n.Path(), conf: withPrev(c, r1)})
	h.ok(request{command: "CHECK", id: "a", netns: n.Path(), conf: withPrev(c, r0)})
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
}

func TestSecondADDIsRefusedAndChangesNothing(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	r := h.add("a", n, c)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, codeExists, "attached", "DEL it first")
	h.fails(request{command: "ADD", id: "b", netns: n.Path(), conf: c}, codeExists, "interface eth0", "left as it is")
	h.ok(request{command: "CHECK", id: "a", netns: n.Path(), conf: withPrev(c, r)})
	if len(h.records()) != 1 {
		t.Errorf("records %v", h.records())
	}
}

func TestNewNamespaceForAKnownContainerIsAttachedAgain(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	h.add("a", n, c)
	h.run("ip", "link", "del", hostLink(c, "a", "eth0")) // as if the old namespace had gone
	r := h.add("a", netnstest.New(t), c)
	if len(r.IPs) != 2 || len(h.records()) != 1 {
		t.Errorf("%+v %v", r.IPs, h.records())
	}
}

func TestFailedADDLeavesNothing(t *testing.T) {
	for name, break_ := range map[string]func(h *host, c conf) (conf, uint){
		"unreachable gateway": func(h *host, c conf) (conf, uint) {
			c["ipam"].(conf)["routes"] = []any{conf{"dst": "10.9.0.0/16", "gw": "192.168.77.1"}}
			return c, codeKernel
		},
		"bridge is no bridge": func(h *host, c conf) (conf, uint) {
			h.run("ip", "link", "add", "cni0", "type", "vxlan", "id", "7", "dstport", "4789")
			return c, codeKernel
		},
		"bridge of another network": func(h *host, c conf) (conf, uint) {
			h.run("ip", "link", "add", "cni0", "type", "bridge")
			h.run("ip", "addr", "add", "10.9.9.1/24", "dev", "cni0")
			return c, codeBridge
		},
		"impossible MTU": func(h *host, c conf) (conf, uint) {
			h.run("ip", "link", "add", "cni0", "type", "bridge")
			return c.with(conf{"mtu": 65536}), 7
		},
		"no address free": func(h *host, c conf) (conf, uint) {
			return h.small("10.1.2.1", "10.1.2.1"), codeFull
		},
		"wanted address is the gateway": func(h *host, c conf) (conf, uint) {
			return c.with(conf{"runtimeConfig": conf{"ips": []any{"10.1.2.1"}}}), codeTaken
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			n := netnstest.New(t)
			c, code := break_(h, h.conf())
			h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, code)
			if links := netnstest.Run(t, n, "ip", "-br", "link"); strings.Contains(links, "eth0") {
				t.Errorf("left in the container: %s", links)
			}
			h.clean()
		})
	}
}

func TestRequestedMACAndAddressWinByTheirSource(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]struct {
		conf     conf
		args     string
		ip, mac_ string
	}{
		"CNI_ARGS":                 {args: "IgnoreUnknown=1;IP=10.1.2.77;MAC=02:00:00:00:00:77;K8S_POD_NAME=x", ip: "10.1.2.77", mac_: "02:00:00:00:00:77"},
		"args":                     {conf: conf{"args": conf{"cni": conf{"ips": []any{"10.1.2.78"}, "mac": "02:00:00:00:00:78"}}}, ip: "10.1.2.78", mac_: "02:00:00:00:00:78"},
		"runtimeConfig in Go case": {conf: conf{"runtimeConfig": conf{"IPs": []any{"10.1.2.79/24"}, "Mac": "02:00:00:00:00:79"}}, args: "MAC=02:00:00:00:00:99", ip: "10.1.2.79", mac_: "02:00:00:00:00:79"},
		"nobody":                   {ip: "10.1.2.80", mac_: "0a:58:0a:01:02:50"},
	} {
		t.Run(name, func(t *testing.T) {
			h, n := h.in(t), netnstest.New(t)
			if name == "nobody" {
				c.args = "IP=10.1.2.80"
			}
			r := result(t, h.ok(request{command: "ADD", id: "c", netns: n.Path(), conf: h.conf().with(c.conf), args: c.args}))
			if !r.IPs[0].Address.IP.Equal(net.ParseIP(c.ip)) || r.Interfaces[2].Mac != c.mac_ {
				t.Errorf("got %s %s", r.IPs[0].Address.IP, r.Interfaces[2].Mac)
			}
			if err := h.ping(h.ns, c.ip); err != nil {
				t.Error(err)
			}
			h.ok(request{command: "DEL", id: "c", conf: h.conf()})
		})
	}
}

func TestReusedAddressIsReachedAtOnce(t *testing.T) {
	h := newHost(t)
	other := netnstest.New(t)
	h.add("other", other, h.conf())
	for i, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02", ""} {
		n := netnstest.New(t)
		c := h.conf().with(conf{"runtimeConfig": conf{"mac": mac, "ips": []any{"10.1.2.50", "fd00:1:2::50"}}})
		h.ok(request{command: "ADD", id: fmtID(i), netns: n.Path(), conf: c})
		for _, a := range []string{"10.1.2.50", "fd00:1:2::50"} {
			if err := h.ping(h.ns, a); err != nil {
				t.Errorf("MAC %q, from the host: %v", mac, err)
			}
		}
		if err := h.ping(other, "10.1.2.50"); err != nil {
			t.Errorf("MAC %q, from a container: %v", mac, err)
		}
		h.ok(request{command: "DEL", id: fmtID(i), conf: c})
	}
}

func TestRecordIsTheEndpoint(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf().with(conf{"args": conf{"cni": conf{"labels": []any{conf{"key": "app", "value": "web"}}}}, "runtimeConfig": conf{"aliases": conf{"podnet": []any{"www"}}}})
	h.ok(request{command: "ADD", id: "a", netns: n.Path(), conf: c, args: "IgnoreUnknown=1;K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop"})
	if len(h.records()) != 1 {
		t.Fatal(h.records())
	}
	b, err := os.ReadFile(h.records()[0])
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"attached": `true`, "network": `"podnet"`, "containerID": `"a"`, "ifName": `"eth0"`, "netns": `"` + n.Path() + `"`,
		"hostLink": `"` + hostLink(c, "a", "eth0") + `"`, "bridge": `"cni0"`, "mac": `"0a:58:0a:01:02:02"`,
		"addresses": `["10.1.2.2/24","fd00:1:2::2/64"]`, "gateways": `["10.1.2.1","fd00:1:2::1"]`, "masquerade": `true`, "guarded": `true`,
		"names": `["web-1","www"]`, "namespace": `"shop"`, "labels": `{"app":"web"}`,
	}
	for k, w := range want {
		if g, _ := json.Marshal(got[k]); string(g) != w {
			t.Errorf("%s is %s, want %s", k, g, w)
		}
	}
	if name := filepath.Base(h.records()[0]); name != "10.1.2.2+fd00:1:2::2,a,eth0" {
		t.Errorf("file name %s", name)
	}
}

func TestLayer2NetworkHasNoAddressesAndCanBeChecked(t *testing.T) {
	h := newHost(t)
	c := h.conf().with(conf{"isGateway": false, "isDefaultGateway": false, "ipMasq": false, "dataDir": h.dir + "/attachments"})
	delete(c, "ipam")
	n := netnstest.New(t)
	r := h.add("a", n, c)
	if len(r.IPs) != 0 || r.Interfaces[2].Mac == "" {
		t.Errorf("%+v", r)
	}
	mac := strings.Fields(h.run("ip", "-br", "link", "show", "cni0"))[2]
	h.add("b", netnstest.New(t), c)
	if now := strings.Fields(h.run("ip", "-br", "link", "show", "cni0"))[2]; now != mac {
		t.Errorf("the bridge's MAC drifts: %s, then %s", mac, now)
	}
	h.ok(request{command: "CHECK", id: "a", netns: n.Path(), conf: withPrev(c, r)})
	for _, id := range []string{"a", "b"} {
		h.ok(request{command: "DEL", id: id, conf: c})
	}
	h.clean()
}
