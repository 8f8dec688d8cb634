package endpoint

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

const prefix = "/coreos.com/network"

const goodKey = prefix + "/endpoints/default/default/host1,abc123,eth0"

func TestEndpointIsReadAsItWasWritten(t *testing.T) {
	e := &Endpoint{
		Tenant: "default", Network: "default", ID: "host1,abc123,eth0", Host: "host1", Identity: "f00", Container: "abc123", IfName: "eth0",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.19.3"), netip.MustParseAddr("fd00:1:19::3")}, MAC: "0a:58:0a:01:13:03",
		Namespace: "shop", Names: []string{"web-1", "www", "shop_web_1"}, Labels: map[string]string{"app.kubernetes.io/name": "web", "<&>": ""}, Unhealthy: map[string]string{"web": "does not answer"},
	}
	value, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(prefix, store.KV{Key: e.Key(prefix), Value: value, ModRevision: 7})
	if err != nil || !got.Equal(e) || got.revision != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	// What a later version adds is no reason to skip it.
	value = append(value[:len(value)-1], `,"Zone":{"a":1}}`...)
	if got, err := Parse(prefix, store.KV{Key: goodKey, Value: value}); err != nil || !got.Equal(e) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHostileRecordIsSkippedAndItsFieldNamed(t *testing.T) {
	tests := map[string]struct{ key, value, text string }{
		"elsewhere":               {"/x/endpoints/default/default/host1,abc123,eth0", "", "is not under " + prefix + "/endpoints/"},
		"too few parts":           {prefix + "/endpoints/default/host1,abc123,eth0", "", "must end in <tenant>/<network>"},
		"too many parts":          {goodKey + "/x", "", "must end in <tenant>/<network>"},
		"no id":                   {prefix + "/endpoints/default/default/", "", "must end in <tenant>/<network>"},
		"upper case":              {prefix + "/endpoints/default/Default/host1,abc123,eth0", "", "DNS labels in lower case"},
		"of another host":         {strings.Replace(goodKey, "host1", "host2", 1), "", `"host1,abc123,eth0": must be the key's last part`},
		"of another container":    {strings.Replace(goodKey, "abc123", "abc124", 1), "", "Host, Container, IfName"},
		"no JSON":                 {"", "{", "must be an endpoint's JSON object"},
		"no object":               {"", "[]", "must be an endpoint's JSON object"},
		"null":                    {"", "null", "Host = \"\": must be a host's name"},
		"too large":               {"", `{"x":"` + strings.Repeat("x", 65<<10) + `"}`, "at most 64 KiB"},
		"host":                    {"", `{"Host":"a\u001b[2J"}`, `Host = "a\x1b[2J": must be a host's name`},
		"identity":                {"", `{"Identity":""}`, "Identity"},
		"container":               {"", `{"Container":"../x"}`, "Container"},
		"interface":               {"", `{"IfName":"eth/0"}`, "IfName"},
		"no address":              {"", `{"Addresses":["10.1.19"]}`, `Addresses = "10.1.19": must be unicast`},
		"empty address":           {"", `{"Addresses":[""]}`, "Addresses"},
		"loopback":                {"", `{"Addresses":["127.0.0.1"]}`, "Addresses"},
		"multicast":               {"", `{"Addresses":["ff02::1"]}`, "Addresses"},
		"zone":                    {"", `{"Addresses":["fe80::1%eth0"]}`, "Addresses"},
		"mapped":                  {"", `{"Addresses":["::ffff:10.1.19.3"]}`, "Addresses"},
		"address twice":           {"", `{"Addresses":["10.1.19.3","10.1.19.3"]}`, "once each"},
		"address of another type": {"", `{"Addresses":[1]}`, "JSON object"},
		"MAC":                     {"", `{"MAC":"0A-58-0A-01-13-03"}`, "MAC"},
		"namespace":               {"", `{"Namespace":"a.b"}`, "Namespace"},
		"upper case name":         {"", `{"Names":["Web"]}`, `Names = "Web": must be DNS labels`},
		"name of two labels":      {"", `{"Names":["a.b"]}`, "Names"},
		"name with a byte":        {"", `{"Names":["a\u0000"]}`, "Names"},
		"name of a service's":     {"", `{"Names":["_tcp"]}`, "Names"},
		"long name":               {"", `{"Names":["` + strings.Repeat("a", 64) + `"]}`, "Names"},
		"name twice":              {"", `{"Names":["a","a"]}`, "once each"},
		"names in svc":            {"", `{"Namespace":"svc","Names":["a"]}`, "namespaces svc and pod are reserved"},
		"many names":              {"", `{"Names":["` + strings.Join(strings.Split(strings.Repeat("a", 65), ""), `","`) + `"]}`, "at most 64"},
		"label":                   {"", `{"Labels":{"a":"x\ny"}}`, "Labels"},
		"empty label":             {"", `{"Labels":{"":"x"}}`, "Labels"},
		"large labels":            {"", `{"Labels":{"a":"` + strings.Repeat("x", 8<<10) + `"}}`, "Labels"},
		"reason":                  {"", `{"Unhealthy":{"web":"\u001b[31mred"}}`, "Unhealthy"},
		"no reason":               {"", `{"Unhealthy":{"web":""}}`, "Unhealthy"},
		"reason of no service":    {"", `{"Unhealthy":{"a/b":"x"}}`, "must name a service"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fields := map[string]json.RawMessage{}
			good := `{"Host":"host1","Identity":"f00","Container":"abc123","IfName":"eth0","Addresses":["10.1.19.3"]}`
			value := tt.value
			if err := json.Unmarshal([]byte(good), &fields); err != nil {
				t.Fatal(err)
			}
			if change := map[string]json.RawMessage{}; value == "" || json.Unmarshal([]byte(value), &change) == nil && change != nil {
				maps.Copy(fields, change)
				b, err := json.Marshal(fields)
				if err != nil {
					t.Fatal(err)
				}
				value = string(b)
			}
			key := tt.key
			if key == "" {
				key = goodKey
			}
			e, err := Parse(prefix, store.KV{Key: key, Value: []byte(value)})
			bad, ok := errors.AsType[*subnet.RecordError](err)
			if e != nil || !ok || bad.Key != key || !strings.Contains(err.Error(), tt.text) || len(err.Error()) > 800 {
				t.Errorf("%+v, %v; want %q in it", e, err, tt.text)
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("%q is not fit for a terminal", err)
			}
		})
	}
}

func TestReservedNamespaceHasNoNames(t *testing.T) {
	for ns, want := range map[string]string{"": "default", "shop": "shop", "svc": "", "pod": ""} {
		value := `{"Host":"host1","Identity":"f00","Container":"abc123","IfName":"eth0","Namespace":"` + ns + `"}`
		e, err := Parse(prefix, store.KV{Key: goodKey, Value: []byte(value)})
		if err != nil || e.Parent() != want {
			t.Errorf("%q: %+v, %v", ns, e, err)
		}
	}
	if (&Endpoint{Network: "svc"}).Parent() != "" {
		t.Error("nor has a network of that name")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(goodKey, []byte(`{"Host":"host1","Identity":"f00","Container":"abc123","IfName":"eth0","Addresses":["10.1.19.3","fd00::3"],"MAC":"0a:58:0a:01:13:03","Namespace":"a","Names":["b"],"Labels":{"c":"d"}}`))
	f.Add(goodKey, []byte(`{"Host":"host1","Identity":"f00","Container":"abc123","IfName":"eth0","Namespace":"svc","Unhealthy":{"x":"y"}}`))
	f.Add(prefix+"/endpoints/a/b/c,d,e,f", []byte(`{"host":"c","identity":"1","container":"d","ifname":"e,f","addresses":null}`))
	f.Add(goodKey, []byte(`null`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e, err := Parse(prefix, store.KV{Key: key, Value: value})
		if (e == nil) == (err == nil) {
			t.Fatalf("%+v, %v", e, err)
		}
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Errorf("%q is not fit for a terminal", err)
			}
			return
		}
		survives(t, e)
		if e.Key(prefix) != key {
			t.Errorf("key %q became %q", key, e.Key(prefix))
		}
	})
}

// survives: e is read as it is written.
func survives(t *testing.T, e *Endpoint) {
	t.Helper()
	value, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(prefix, store.KV{Key: e.Key(prefix), Value: value})
	if err != nil || !again.Equal(e) {
		t.Errorf("%+v\nwas written as %s\nand read as %+v, %v", e, value, again, err)
	}
}

func record() ipam.Record {
	return ipam.Record{
		Attached: true, Network: "flannel", ContainerID: "0123456789abcdef", IfName: "eth0", MAC: "0A:58:0A:01:13:03",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.19.3/24"), netip.MustParsePrefix("fd00:1:19::3/64")},
	}
}

func TestRecordBecomesAnEndpoint(t *testing.T) {
	r := record()
	r.Namespace, r.Names, r.Labels = "Shop", []string{"Web-1", "www", "web-1", "shop_web_1", "0123456789ab"}, map[string]string{"app": "web"}
	got := FromRecord(r, "host1", "f00")
	want := &Endpoint{
		Tenant: "default", Network: "default", ID: "host1,0123456789abcdef,eth0", Host: "host1", Identity: "f00",
		Container: "0123456789abcdef", IfName: "eth0", MAC: "0a:58:0a:01:13:03",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.19.3"), netip.MustParseAddr("fd00:1:19::3")},
		Namespace: "shop", Names: []string{"web-1", "www", "shop_web_1"}, Labels: map[string]string{"app": "web"},
	}
	if !got.Equal(want) {
		t.Errorf("%+v", got)
	}
	if notes := Notes(r); len(notes) != 0 {
		t.Errorf("notes %q", notes)
	}
	survives(t, got)
}

func TestOwnNameCountsEvenIfItIsTheID(t *testing.T) {
	r := record()
	r.ContainerID, r.Names = "web", []string{"web", "www", "web"}
	if e := FromRecord(r, "host1", "f00"); strings.Join(e.Names, " ") != "web www" {
		t.Errorf("%q", e.Names)
	}
}

func TestWhatCannotBeANameIsLeftOutAndTold(t *testing.T) {
	tests := map[string]struct {
		namespace string
		names     string
		want      string
		note      string
	}{
		"dots":               {"", "a.b ok", "ok", `name "a.b" is no DNS label`},
		"a service's":        {"", "_tcp -a a- ok", "ok", `name "_tcp"`},
		"long":               {"", strings.Repeat("a", 64) + " ok", "ok", "no DNS label"},
		"letters of others":  {"", "\u212aelvin bücher ok", "ok", "no DNS label"},
		"control characters": {"", "a\x1b[2J ok", "ok", `"a\x1b[2J"`},
		"reserved svc":       {"svc", "a", "", "is reserved"},
		"reserved POD":       {"POD", "a", "", "is reserved"},
		"bad namespace":      {"a.b", "a", "", `namespace "a.b" is no DNS label`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := record()
			r.Namespace, r.Names = tt.namespace, strings.Fields(tt.names)
			e := FromRecord(r, "host1", "f00")
			if e == nil || strings.Join(e.Names, " ") != tt.want {
				t.Errorf("%+v", e)
			}
			notes := strings.Join(Notes(r), "\n")
			if !strings.Contains(notes, tt.note) || !strings.HasPrefix(notes, "container 0123456789ab, interface eth0: ") {
				t.Errorf("notes %s", notes)
			}
			survives(t, e)
		})
	}
}

func TestLabelsAreTakenAsLongAsThereIsSpace(t *testing.T) {
	r := record()
	r.Labels = map[string]string{"a": strings.Repeat("<", 5000), "b": strings.Repeat("x", 5000), "c": "d", "": "x", "n\n": "x", "m": "\xff"}
	e := FromRecord(r, "host1", "f00")
	if len(e.Labels) != 2 || e.Labels["c"] != "d" || len(e.Labels["a"]) != 5000 {
		t.Errorf("labels %v", e.Labels)
	}
	if notes := Notes(r); len(notes) != 4 {
		t.Errorf("notes %q", notes)
	}
	survives(t, e)
}

func TestAddressesThatNobodyReachesAreLeftOut(t *testing.T) {
	r := record()
	r.Addresses = nil
	for _, s := range []string{"169.254.1.1/16", "fe80::1/64", "::ffff:10.1.19.3/120", "10.1.19.3/24", "0.0.0.0/0"} {
		r.Addresses = append(r.Addresses, netip.MustParsePrefix(s))
	}
	r.Addresses = append(r.Addresses, netip.Prefix{})
	if e := FromRecord(r, "host1", "f00"); len(e.Addresses) != 1 || e.Addresses[0] != netip.MustParseAddr("10.1.19.3") {
		t.Errorf("%v", e.Addresses)
	}
}

func FuzzFromRecord(f *testing.F) {
	f.Add([]byte(`{"attached":true,"network":"n","containerID":"abc","ifName":"eth0","mac":"0a:58:0a:01:13:03","addresses":["10.1.19.3/24"],"namespace":"Shop","names":["a","A","b.c"],"labels":{"a":"b"}}`), "host1", "f00")
	f.Add([]byte(`{"containerID":"abc","ifName":"e,t","addresses":["::/0","fe80::1/64"],"namespace":"svc","names":["a"]}`), "h", "1")
	f.Fuzz(func(t *testing.T, b []byte, host, identity string) {
		r, err := ipam.ParseRecord(b)
		if err != nil {
			return
		}
		Notes(r)
		if e := FromRecord(r, host, identity); e != nil {
			survives(t, e)
		}
	})
}
