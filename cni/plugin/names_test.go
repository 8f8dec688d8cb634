package plugin

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// called is a call with this configuration, as far as its names go.
func called(t *testing.T, stdin, args string) *call {
	t.Helper()
	conf, err := parseConfig([]byte(strings.Replace(stdin, "{", `{"cniVersion":"1.0.0","name":"flannel",`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return &call{conf: conf, args: parseArgs(args)}
}

func TestNamesAndLabelsOfEveryEngine(t *testing.T) {
	tests := map[string]struct{ conf, args, namespace, names, labels string }{
		"containerd": {
			`{"x":0}`, "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=i", "shop", "web-1", `{}`,
		},
		"podman": {
			`{"runtimeConfig":{"aliases":{"flannel":["www","c1","0123456789ab"],"other":["no"]}}}`, "IgnoreUnknown=1;K8S_POD_NAME=c1",
			"", "c1 www 0123456789ab", `{}`,
		},
		"args": {
			`{"args":{"cni":{"name":"web","labels":[{"key":"app","value":"web"},{"key":"tier","value":"1"}]}}}`, "", "", "web", `{"app":"web","tier":"1"}`,
		},
		"labels as an object": {`{"args":{"cni":{"labels":{"app":"web"}}}}`, "", "", "", `{"app":"web"}`},
		"labels in CNI_ARGS":  {`{"args":{"cni":{"labels":{"app":"web"}}}}`, "LABELS=app=x,tier=a=b,,=,z", "", "", `{"app":"web","tier":"a=b"}`},
		"another's name":      {`{"args":{"cni":{"name":{"a":1},"labels":null}}}`, "K8S_POD_NAME=a", "", "a", `null`},
		"nothing":             {`{"x":0}`, "", "", "", `{}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			id, err := called(t, tt.conf, tt.args).identity()
			labels, _ := json.Marshal(id.labels)
			if err != nil || id.namespace != tt.namespace || strings.Join(id.names, " ") != tt.names || string(labels) != tt.labels {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
}

func TestLabelsOfNoKnownFormAreRefused(t *testing.T) {
	for _, labels := range []string{`"app=web"`, `[1]`, `{"app":1}`, `[{"key":1}]`} {
		_, err := called(t, `{"args":{"cni":{"labels":`+labels+`}}}`, "").identity()
		if err == nil || !strings.Contains(err.Error(), "args.cni.labels "+labels+": must be a list of") {
			t.Errorf("%s: %v", labels, err)
		}
	}
}

// podNetworkConf is a network whose subnet is the daemon's to tell.
func (h *host) podNetworkConf() conf {
	env := subnet.Env{Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}, MTU: 1450}
	h.write("subnet.env", string(env.Marshal()), 0o644)
	return h.conf().with(conf{"ipam": h.ipam(nil)})
}

func (h *host) writeDNSEnv(servers ...string) {
	e := subnet.DNSEnv{Domain: "cluster.local", Search: subnet.PodSearch("cluster.local", "default", ""), Options: []string{"timeout:3", "attempts:3"}}
	for _, s := range servers {
		e.Servers = append(e.Servers, netip.MustParseAddr(s))
	}
	h.write(subnet.DNSEnvFile, string(e.Marshal()), 0o644)
}

func TestResultTellsTheResolver(t *testing.T) {
	h := newHost(t)
	h.writeDNSEnv("10.0.0.10", "fd00::a")
	resolv := h.write("resolv.conf", "nameserver 10.9.9.9\n", 0o644)
	ours := types.DNS{Nameservers: []string{"10.0.0.10"}, Search: []string{"default.svc.cluster.local", "default.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"timeout:3", "attempts:3"}}
	shop := ours
	shop.Search = []string{"default.svc.cluster.local", "shop.cluster.local", "svc.cluster.local", "cluster.local"}
	pod := h.podNetworkConf()
	tests := map[string]struct {
		conf conf
		args string
		want types.DNS
	}{
		"pod network":              {pod, "", ours},
		"Kubernetes namespace":     {pod, "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop", shop},
		"configured":               {pod.with(conf{"dns": conf{"nameservers": []any{"10.8.8.8"}}}), "", types.DNS{Nameservers: []string{"10.8.8.8"}}},
		"configured search only":   {pod.with(conf{"dns": conf{"search": []any{"x"}}}), "", types.DNS{Search: []string{"x"}}},
		"resolvConf":               {pod.with(conf{"ipam": h.ipam(conf{"resolvConf": resolv})}), "", types.DNS{Nameservers: []string{"10.9.9.9"}}},
		"not the daemon's network": {h.conf(), "", types.DNS{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, n := h.in(t), netnstest.New(t)
			r := result(t, h.ok(request{command: "ADD", id: "a", netns: n.Path(), conf: tt.conf, args: tt.args}))
			if !sameDNS(r.DNS, tt.want) {
				t.Errorf("%+v", r.DNS)
			}
			h.ok(request{command: "DEL", id: "a", conf: tt.conf})
			if tt.conf["dns"] != nil {
				return // the interface plugin's business
			}
			q := request{plugin: "flanneld-ipam", command: "ADD", id: "b", netns: n.Path(), conf: tt.conf, args: tt.args}
			if r := result(t, h.ok(q)); !sameDNS(r.DNS, tt.want) {
				t.Errorf("flanneld-ipam: %+v", r.DNS)
			}
			q.command = "DEL"
			h.ok(q)
		})
	}
}

func sameDNS(a, b types.DNS) bool {
	return slices.Equal(a.Nameservers, b.Nameservers) && a.Domain == b.Domain && slices.Equal(a.Search, b.Search) && slices.Equal(a.Options, b.Options)
}

func TestResolverFollowsDNSEnv(t *testing.T) {
	h := newHost(t)
	c := h.podNetworkConf()
	n := netnstest.New(t)
	q := request{command: "ADD", id: "a", netns: n.Path(), conf: c}
	if r := result(t, h.ok(q)); !r.DNS.IsEmpty() {
		t.Errorf("without the file: %+v", r.DNS)
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.writeDNSEnv("fd00::a")
	if r := result(t, h.ok(q)); !r.DNS.IsEmpty() {
		t.Errorf("with a server that no container reaches: %+v", r.DNS)
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.write(subnet.DNSEnvFile, "FLANNEL_DNS=nonsense\n", 0o644)
	out, said, code := h.hear(q)
	if code != 0 || !result(t, out).DNS.IsEmpty() {
		t.Errorf("with a file that cannot be read: %d, %s", code, out)
	}
	if !strings.Contains(said, "dns.env: line 1: FLANNEL_DNS=nonsense: must be") || !strings.Contains(said, "restart flanneld") {
		t.Errorf("it says %q", said)
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
}

func TestNamesGoIntoTheRecordOfBothPlugins(t *testing.T) {
	h := newHost(t)
	c := h.conf().with(conf{"args": conf{"cni": conf{"name": "own", "labels": conf{"app": "web"}}}, "runtimeConfig": conf{"aliases": conf{"podnet": []any{"www"}}}})
	n := netnstest.New(t)
	for _, plugin := range []string{"flanneld-bridge", "flanneld-ipam"} {
		q := request{plugin: plugin, command: "ADD", id: "a", netns: n.Path(), conf: c, args: "IgnoreUnknown=1;K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop"}
		h.ok(q)
		b, err := os.ReadFile(h.records()[0])
		if err != nil {
			t.Fatal(err)
		}
		r, err := ipam.ParseRecord(b)
		if err != nil || r.Namespace != "shop" || strings.Join(r.Names, " ") != "web-1 own www" || r.Labels["app"] != "web" || len(r.Labels) != 1 {
			t.Errorf("%s: %+v, %v", plugin, r, err)
		}
		q.command = "DEL"
		h.ok(q)
	}
	h.clean()
}
