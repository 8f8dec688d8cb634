package plugin

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// fake is an IPAM plugin that logs its calls and answers what a file says.
const fake = `#!/bin/sh
dir=${0%/*}
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >>"$dir/calls"
cat >"$dir/stdin"
[ "$CNI_COMMAND" = ADD ] || exit 0
cat "$dir/answer"
[ ! -e "$dir/fail" ]
`

func delegating(h *host, answer string) conf {
	h.write("other-ipam", fake, 0o755)
	h.write("answer", answer, 0o644)
	return h.conf().with(conf{"dataDir": h.dir + "/attachments", "ipam": conf{"type": "other-ipam", "x": 1}})
}

func (h *host) calls() string {
	b, _ := os.ReadFile(h.dir + "/calls")
	_ = os.Remove(h.dir + "/calls")
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "; ")
}

const answer = `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.7.7.9/24","gateway":"10.7.7.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.7.7.53"]}}`

func TestAnotherIPAMPluginIsAsked(t *testing.T) {
	h := newHost(t)
	c := delegating(h, answer)
	n := netnstest.New(t)
	r := h.add("a", n, c)
	if r.IPs[0].Address.String() != "10.7.7.9/24" || r.DNS.Nameservers[0] != "10.7.7.53" {
		t.Errorf("%+v", r)
	}
	if err := h.ping(n, "10.7.7.1"); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile(h.dir + "/stdin")
	var seen conf
	if err := json.Unmarshal(b, &seen); err != nil || seen["name"] != "podnet" || seen["bridge"] != "cni0" {
		t.Errorf("it was given %s", b)
	}
	h.ok(request{command: "CHECK", id: "a", netns: n.Path(), conf: withPrev(c, r)})
	h.ok(request{command: "STATUS", conf: c})
	h.ok(request{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": []any{conf{"containerID": "a", "ifname": "eth0"}}})})
	h.ok(request{command: "DEL", id: "a", conf: c})
	if got := h.calls(); got != "ADD a eth0; CHECK a eth0; STATUS  ; GC  ; DEL a eth0" {
		t.Errorf("calls %q", got)
	}
	h.clean()
}

func TestFailingIPAMPluginGetsADELAndItsErrorIsTold(t *testing.T) {
	h := newHost(t)
	c := delegating(h, `{"cniVersion":"1.0.0","code":999,"msg":"pool is dry"}`)
	h.write("fail", "", 0o644)
	n := netnstest.New(t)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, codeDelegate, "other-ipam: pool is dry")
	if got := h.calls(); got != "ADD a eth0; DEL a eth0" {
		t.Errorf("calls %q", got)
	}
	if err := os.Remove(h.dir + "/fail"); err != nil {
		t.Fatal(err)
	}
	h.write("answer", "nonsense", 0o644)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, 6, "result")
	h.write("answer", `{"cniVersion":"1.0.0"}`, 0o644)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, codeDelegate, "returned no address")
	// Addresses are there, but the plugging in fails.
	h.write("answer", strings.ReplaceAll(answer, `"dst":"0.0.0.0/0"`, `"dst":"0.0.0.0/0","gw":"192.168.1.1"`), 0o644)
	h.calls()
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, codeKernel, "add route to 0.0.0.0/0")
	if got := h.calls(); got != "ADD a eth0; DEL a eth0" {
		t.Errorf("calls %q", got)
	}
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c.with(conf{"ipam": conf{"type": "no-such"}})}, 7, "no-such is not in CNI_PATH")
	h.clean()
}

func TestFlanneldIPAMServesOtherPlugins(t *testing.T) {
	h := newHost(t)
	c := h.small("10.1.2.10", "10.1.2.11")
	q := func(command, id string, c conf) request {
		return request{plugin: "flanneld-ipam", command: command, id: id, netns: "/run/netns/whatever", conf: c}
	}
	resolv := h.write("resolv.conf", "# x\nnameserver 10.1.2.53\nsearch a.example b.example\noptions ndots:1\n", 0o644)
	c["ipam"].(conf)["resolvConf"] = resolv
	c["ipam"].(conf)["routes"] = []any{conf{"dst": "0.0.0.0/0"}}
	r := result(t, h.ok(q("ADD", "a", c)))
	if len(r.Interfaces) != 0 || r.IPs[0].Address.String() != "10.1.2.10/24" || r.IPs[0].Gateway.String() != "10.1.2.1" ||
		r.DNS.Search[1] != "b.example" || r.DNS.Options[0] != "ndots:1" || len(r.Routes) != 1 {
		t.Errorf("%+v", r)
	}
	h.fails(q("ADD", "a", c), codeExists, "DEL it first")
	h.ok(q("ADD", "b", c))
	h.fails(q("ADD", "c", c), codeFull, "all 2 are taken")
	h.fails(request{plugin: "flanneld-ipam", command: "STATUS", conf: c}, 50, "all 2 addresses are taken")
	h.ok(q("CHECK", "a", withPrev(c, r)))
	h.ok(request{plugin: "flanneld-ipam", command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": []any{conf{"containerID": "b", "ifname": "eth0"}}})})
	h.fails(q("CHECK", "a", withPrev(c, r)), codeCheck, "has no reservation")
	for range 2 {
		h.ok(q("DEL", "b", c))
	}
	delete(c, "ipam")
	h.fails(q("ADD", "a", c), 7, `"ipam" is missing`)
	h.clean()
}

func TestFlanneldIPAMSurvivesKills(t *testing.T) {
	h := newHost(t)
	c := h.small("10.1.2.10", "10.1.2.17")
	seen := map[string]string{}
	for i := range 60 {
		q := request{plugin: "flanneld-ipam", command: "ADD", id: fmtID(i), netns: "/run/netns/whatever", conf: c}
		h.killed(t, q, killAfter(i))
		q.command = "DEL"
		h.killed(t, q, killAfter(i+7))
		if i%3 == 0 {
			h.ok(q)
			continue
		}
		for _, path := range h.records() { // what is left is complete, and no address is there twice
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var r struct {
				ContainerID string
				Addresses   []string
			}
			if err := json.Unmarshal(b, &r); err != nil {
				t.Fatalf("%s: %v: %s", path, err, b)
			}
			if who := seen[r.Addresses[0]]; who != "" && who != r.ContainerID {
				t.Errorf("%s is %s's and %s's", r.Addresses[0], who, r.ContainerID)
			}
		}
		h.ok(q)
	}
	h.clean()
}
