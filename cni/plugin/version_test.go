package plugin

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

var update = flag.Bool("update", false, "write golden files")

func TestEveryVersionOfTheSpecification(t *testing.T) {
	for _, v := range Versions {
		t.Run(v, func(t *testing.T) {
			h := newHost(t)
			n := netnstest.New(t)
			c := h.conf().with(conf{"cniVersion": v})
			out := h.ok(request{command: "ADD", id: "a", netns: n.Path(), conf: c})
			var raw map[string]any
			if err := json.Unmarshal([]byte(out), &raw); err != nil || raw["cniVersion"] != v {
				t.Fatalf("%v\n%s", err, out)
			}
			first := raw["ips"].([]any)[0].(map[string]any)
			if hasFamily := first["version"] == "4"; hasFamily != (v < "1.0.0") || first["address"] != "10.1.2.2/24" {
				t.Errorf("ips[0] is %v", first)
			}
			prev := c.with(conf{"prevResult": raw})
			check := request{command: "CHECK", id: "a", netns: n.Path(), conf: prev}
			if v < "0.4.0" {
				h.fails(check, 1, "CHECK needs cniVersion 0.4.0")
			} else {
				h.ok(check)
			}
			gc := request{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": []any{conf{"containerID": "a", "ifname": "eth0"}}})}
			status := request{command: "STATUS", conf: c}
			if v < "1.1.0" {
				h.fails(gc, 1, "GC needs cniVersion 1.1.0")
				h.fails(status, 1, "STATUS needs cniVersion 1.1.0")
			} else {
				h.ok(gc)
				h.ok(status)
			}
			h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: prev})
			h.clean()
		})
	}
}

// offline calls a plugin without a namespace, for what fails early.
func offline(env map[string]string, stdin string) (string, int) {
	var out, errs bytes.Buffer
	code := Bridge(IO{Getenv: func(k string) string { return env[k] }, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs})
	return out.String() + errs.String(), code
}

func TestVERSIONNamesAllOfThem(t *testing.T) {
	out, code := offline(map[string]string{"CNI_COMMAND": "VERSION"}, "")
	var got struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || !slices.Equal(got.SupportedVersions, Versions) || got.CNIVersion != "1.1.0" {
		t.Errorf("%d %s", code, out)
	}
}

func TestPersonIsToldWhatItIs(t *testing.T) {
	if out, code := offline(nil, ""); code != 0 || !strings.Contains(out, "flanneld-bridge is a CNI plugin") {
		t.Errorf("%d %s", code, out)
	}
}

// TestWrongInput compares every refusal with testdata/refused.golden.
func TestWrongInput(t *testing.T) {
	base := `{"cniVersion":"1.1.0","name":"podnet","type":"flanneld-bridge"%s}`
	with := func(more string) string { return fmt.Sprintf(base, ","+more) }
	ranges := func(r string) string { return with(`"ipam":{"type":"flanneld-ipam","ranges":[[` + r + `]]}`) }
	env := func(more ...string) map[string]string {
		m := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nowhere", "CNI_IFNAME": "eth0"}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	cases := []struct {
		name, conf string
		env        map[string]string
	}{
		{"unknown command", fmt.Sprintf(base, ""), env("CNI_COMMAND", "PLUG")},
		{"no container id", fmt.Sprintf(base, ""), env("CNI_CONTAINERID", "")},
		{"path as container id", fmt.Sprintf(base, ""), env("CNI_CONTAINERID", "../../etc")},
		{"container id with a blank", fmt.Sprintf(base, ""), env("CNI_CONTAINERID", "a b")},
		{"no interface name", fmt.Sprintf(base, ""), env("CNI_IFNAME", "")},
		{"long interface name", fmt.Sprintf(base, ""), env("CNI_IFNAME", "abcdefghijklmnop")},
		{"interface name with a slash", fmt.Sprintf(base, ""), env("CNI_IFNAME", "a/b")},
		{"interface name that is a pattern", fmt.Sprintf(base, ""), env("CNI_IFNAME", "eth%d")},
		{"interface lo", fmt.Sprintf(base, ""), env("CNI_IFNAME", "lo")},
		{"no netns", fmt.Sprintf(base, ""), env("CNI_NETNS", "")},
		{"netns missing", fmt.Sprintf(base, ""), env()},
		{"netns is a file", fmt.Sprintf(base, ""), env("CNI_NETNS", "/etc/passwd")},
		{"no JSON", "nonsense", env()},
		{"nothing", "", env()},
		{"wrong type", with(`"mtu":"1450"`), env()},
		{"no version", `{"name":"podnet"}`, env()},
		{"old version", `{"cniVersion":"0.2.0","name":"podnet"}`, env()},
		{"future version", `{"cniVersion":"9.0.0","name":"podnet"}`, env()},
		{"no name", `{"cniVersion":"1.0.0"}`, env()},
		{"path as name", `{"cniVersion":"1.0.0","name":"../x"}`, env()},
		{"bridge with a slash", with(`"bridge":"a/b"`), env()},
		{"bridge like a container's link", with(`"bridge":"fl0123456789abc"`), env()},
		{"vlan", with(`"vlan":7`), env()},
		{"vlanTrunk", with(`"vlanTrunk":[{"id":7}]`), env()},
		{"no container interface", with(`"disableContainerInterface":true`), env()},
		{"negative mtu", with(`"mtu":-1`), env()},
		{"hairpin and promiscuous", with(`"hairpinMode":true,"promiscMode":true`), env()},
		{"gateway without addresses", with(`"isGateway":true`), env()},
		{"ipam type with a path", with(`"ipam":{"type":"../sh"}`), env()},
		{"relative data directory", with(`"ipam":{"type":"flanneld-ipam","dataDir":"x"}`), env()},
		{"no subnet file", with(`"ipam":{"type":"flanneld-ipam","subnetFile":"/nowhere/subnet.env"}`), env()},
		{"subnet missing", ranges(`{}`), env()},
		{"no subnet but a start", with(`"ipam":{"type":"flanneld-ipam","rangeStart":"10.1.2.3"}`), env()},
		{"subnet no prefix", ranges(`{"subnet":"10.1.2.0"}`), env()},
		{"subnet with host bits", ranges(`{"subnet":"10.1.2.3/24"}`), env()},
		{"subnet too small", ranges(`{"subnet":"10.1.2.0/31"}`), env()},
		{"start no address", ranges(`{"subnet":"10.1.2.0/24","rangeStart":"x"}`), env()},
		{"start outside", ranges(`{"subnet":"10.1.2.0/24","rangeStart":"10.1.3.1"}`), env()},
		{"end before start", ranges(`{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.8"}`), env()},
		{"gateway of another family", ranges(`{"subnet":"10.1.2.0/24","gateway":"fd00::1"}`), env()},
		{"ranges overlap", ranges(`{"subnet":"10.1.2.0/24"},{"subnet":"10.1.0.0/16"}`), env()},
		{"families mixed", ranges(`{"subnet":"10.1.2.0/24"},{"subnet":"fd00::/64"}`), env()},
		{"empty set", ranges(``), env()},
		{"resolv.conf missing", with(`"ipam":{"type":"flanneld-ipam","resolvConf":"/nowhere","ranges":[[{"subnet":"10.1.2.0/24"}]]}`), env()},
		{"prevResult broken", with(`"prevResult":7`), env("CNI_COMMAND", "CHECK")},
		{"prevResult of no version", with(`"prevResult":{"cniVersion":"7"}`), env("CNI_COMMAND", "CHECK")},
	}
	var got strings.Builder
	for _, c := range cases {
		out, code := offline(c.env, c.conf)
		var f failure
		if err := json.Unmarshal([]byte(out), &f); err != nil || code != 1 || f.Code == 999 || f.Code == 0 {
			t.Errorf("%s: status %d, %v: %s", c.name, code, err, out)
		}
		fmt.Fprintf(&got, "%s\n\t%d: %s\n", c.name, f.Code, f.Msg)
	}
	const golden = "testdata/refused.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("refusals differ from %s (write it with -update):\n%s", golden, &got)
	}
}

func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","name":"n","ipam":{"type":"flanneld-ipam","ranges":[[{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.3"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1"}]}}`,
		`{"cniVersion":"0.3.0","name":"n","isGateway":true,"ipam":{"type":"flanneld-ipam","subnet":"fd00::/64"},"runtimeConfig":{"ips":["fd00::7/64"],"MAC":"02:00:00:00:00:01"}}`,
		`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24","interface":9}]}}`,
		`{}`, `[]`, `null`,
	} {
		f.Add([]byte(s), "IP=10.1.2.3;MAC=02:00:00:00:00:01;=;;x")
	}
	f.Fuzz(func(t *testing.T, b []byte, args string) {
		c := call{args: parseArgs(args)}
		var err error
		if c.conf, err = parseConfig(b); err != nil {
			return
		}
		if !isID(c.conf.Name) || !slices.Contains(Versions, c.conf.CNIVersion) {
			t.Fatalf("accepted %+v", c.conf)
		}
		_ = c.conf.validate()
		_, _ = c.mac()
		_, _ = c.wanted()
		_, _ = c.conf.ranges()
		_, _ = c.conf.validAttachments()
		_, _ = c.identity()
		if prev, err := c.conf.prevResult(); err == nil && prev != nil {
			c.ownAddresses(prev)
		}
	})
}
