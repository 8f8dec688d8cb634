package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// TestMain lets the test binary be the plugin, for tests that need a process
// of its own.
func TestMain(m *testing.M) {
	x := IO{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	switch filepath.Base(os.Args[0]) {
	case "flanneld-bridge":
		os.Exit(Bridge(x))
	case "flanneld-ipam":
		os.Exit(IPAM(x))
	}
	os.Exit(m.Run())
}

type conf map[string]any

func (c conf) with(more conf) conf {
	out := maps.Clone(c)
	maps.Copy(out, more)
	return out
}

// host is a machine without containers: a namespace and directories.
type host struct {
	t   testing.TB
	ns  *netns.NS
	dir string // records, subnet.env, plugins

	filter func() (hostside.PacketFilter, error) // of calls in this process; nil: nftables
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, ns: netnstest.New(t), dir: t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"flanneld-bridge", "flanneld-ipam"} {
		if err := os.Symlink(self, filepath.Join(h.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// in is the same host for a subtest.
func (h *host) in(t testing.TB) *host {
	sub := *h
	sub.t = t
	return &sub
}

func (h *host) write(name, content string, mode os.FileMode) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func (h *host) ipam(more conf) conf {
	return conf{"type": "flanneld-ipam", "dataDir": h.dir + "/attachments", "subnetFile": h.dir + "/subnet.env"}.with(more)
}

// conf is an ordinary dual-stack network.
func (h *host) conf() conf {
	return conf{
		"cniVersion": "1.1.0", "name": "podnet", "type": "flanneld-bridge", "bridge": "cni0",
		"isGateway": true, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1450,
		"ipam": h.ipam(conf{"ranges": []any{[]any{conf{"subnet": "10.1.2.0/24"}}, []any{conf{"subnet": "fd00:1:2::/64"}}}}),
	}
}

// small is a network of few addresses, IPv4 alone.
func (h *host) small(from, to string) conf {
	return h.conf().with(conf{"ipam": h.ipam(conf{"ranges": []any{[]any{conf{"subnet": "10.1.2.0/24", "rangeStart": from, "rangeEnd": to}}}})})
}

// request is one call of a plugin.
type request struct {
	plugin, command, id, ifName, netns, args string
	conf                                     any // conf, or the text itself
}

func (h *host) env(q request) map[string]string {
	if q.ifName == "" {
		q.ifName = "eth0"
	}
	env := map[string]string{"CNI_COMMAND": q.command, "CNI_PATH": h.dir, "CNI_ARGS": q.args}
	if q.command != "GC" && q.command != "STATUS" {
		env["CNI_CONTAINERID"], env["CNI_IFNAME"], env["CNI_NETNS"] = q.id, q.ifName, q.netns
	}
	return env
}

func (q request) stdin(t testing.TB) []byte {
	if s, ok := q.conf.(string); ok {
		return []byte(s)
	}
	b, err := json.Marshal(q.conf)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// do calls a plugin in this process.
func (h *host) do(q request) (out string, code int) {
	h.t.Helper()
	out, _, code = h.hear(q)
	return out, code
}

// hear is do, with what it says on standard error.
func (h *host) hear(q request) (out, said string, code int) {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	env := h.env(q)
	err := h.ns.Do(func() error {
		f := Bridge
		if q.plugin == "flanneld-ipam" {
			f = IPAM
		}
		code = f(IO{Getenv: func(k string) string { return env[k] }, Stdin: bytes.NewReader(q.stdin(h.t)), Stdout: &stdout, Stderr: &stderr, Filter: h.filter})
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), code
}

// process is a call in a process of its own, not started yet.
func (h *host) process(ctx context.Context, q request) *exec.Cmd {
	name := "flanneld-bridge"
	if q.plugin != "" {
		name = q.plugin
	}
	cmd := exec.CommandContext(ctx, filepath.Join(h.dir, name))
	cmd.Stdin = bytes.NewReader(q.stdin(h.t))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range h.env(q) {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

func (h *host) ok(q request) string {
	h.t.Helper()
	out, code := h.do(q)
	if code != 0 {
		h.t.Fatalf("%s of %q: %s", q.command, q.id, out)
	}
	return out
}

type failure struct {
	CNIVersion   string
	Code         uint
	Msg, Details string
}

// fails calls a plugin that must fail with this code and a message that holds
// these words.
func (h *host) fails(q request, code uint, words ...string) failure {
	h.t.Helper()
	out, status := h.do(q)
	var f failure
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		h.t.Fatalf("%s: output is not one JSON value: %v\n%s", q.command, err, out)
	}
	if status == 0 || f.Code != code {
		h.t.Fatalf("%s: status %d, want code %d: %s", q.command, status, code, out)
	}
	for _, w := range words {
		if !strings.Contains(f.Msg, w) {
			h.t.Errorf("%s: message lacks %q: %s", q.command, w, f.Msg)
		}
	}
	return f
}

func result(t testing.TB, out string) *types100.Result {
	t.Helper()
	r, err := parseResult("", []byte(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return r
}

// add attaches a container and returns its first address.
func (h *host) add(id string, target *netns.NS, c conf) *types100.Result {
	h.t.Helper()
	return result(h.t, h.ok(request{command: "ADD", id: id, netns: target.Path(), conf: c}))
}

func withPrev(c conf, out *types100.Result) conf {
	v, err := out.GetAsVersion(c["cniVersion"].(string))
	if err != nil {
		panic(err)
	}
	return c.with(conf{"prevResult": v})
}

func hostLink(c conf, id, ifName string) string {
	return ipam.Key{ContainerID: id, IfName: ifName}.HostLink(c["name"].(string))
}

func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	return netnstest.Run(h.t, h.ns, name, args...)
}

func (h *host) records() []string {
	h.t.Helper()
	all, err := filepath.Glob(h.dir + "/attachments/*/[^.]*")
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// clean fails the test if anything of any container is left.
func (h *host) clean() {
	h.t.Helper()
	if r := h.records(); len(r) > 0 {
		h.t.Errorf("records left: %v", r)
	}
	if links := h.run("ip", "-br", "link", "show", "type", "veth"); links != "" {
		h.t.Errorf("links left: %s", links)
	}
	rules := h.run("nft", "list", "ruleset")
	if strings.Contains(rules, "elements") {
		h.t.Errorf("nftables elements left: %s", rules)
	}
	if h.filter != nil {
		if rules := h.run("sh", "-c", "for i in legacy nft; do iptables-$i-save -t nat; ip6tables-$i-save -t nat; done 2>/dev/null"); strings.Contains(rules, "FLCNI-OUT -s") {
			h.t.Errorf("iptables rules left: %s", rules)
		}
	}
}

func (h *host) ping(from *netns.NS, to string) error {
	_, err := from.Run(h.t.Context(), "ping", "-c1", "-W2", "-i0.1", to)
	return err
}

func fmtID(i int) string { return fmt.Sprintf("container-%d", i) }
