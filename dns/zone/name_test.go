package zone

import (
	"reflect"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

func parseName(name, value string) (*Name, error) {
	return ParseName("/p", store.KV{Key: "/p/names/" + name, Value: []byte(value)})
}

func TestAddedNamesAreReadAsTheyWereWritten(t *testing.T) {
	for _, n := range []*Name{
		{Tenant: "default", Network: "default", Name: "printer", Addresses: addrs("192.0.2.9")},
		{Tenant: "blue", Network: "front", Name: "a.b-c.d_e", Addresses: addrs("192.0.2.9 fd00::1")},
		{Tenant: "default", Network: "default", Name: "svc.x", Addresses: addrs("10.1.2.3")},
	} {
		value, err := n.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseName("/p", store.KV{Key: n.Key("/p"), Value: value})
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Errorf("%+v %v, want %+v", got, err, n)
		}
	}
	if n, err := parseName("default/default/x", `{"Addresses":["192.0.2.1"],"Comment":"from a later version"}`); err != nil || len(n.Addresses) != 1 {
		t.Errorf("%+v %v", n, err)
	}
}

func TestWrongNamesAreRefusedWithWhatIsWrong(t *testing.T) {
	const good = `{"Addresses":["192.0.2.1"]}`
	for q, want := range map[string]string{
		"default/default " + good:                                      "the key must end in <tenant>/<network>/<name>",
		"a/b/c/d " + good:                                              "the key must end in <tenant>/<network>/<name>",
		"default/svc/x " + good:                                        `Network = "svc": is reserved`,
		"pod/default/x " + good:                                        `Tenant = "pod": is reserved`,
		"default/Default/x " + good:                                    `Network = "Default": must be a DNS label`,
		"default//x " + good:                                           "Network: is missing",
		"default/default/ " + good:                                     `Name = "": must be DNS labels`,
		"default/default/a..b " + good:                                 `Name = "a..b": must be DNS labels`,
		"default/default/.a " + good:                                   `Name = ".a": must be DNS labels`,
		"default/default/a. " + good:                                   `Name = "a.": must be DNS labels`,
		"default/default/A " + good:                                    `Name = "A": must be DNS labels`,
		"default/default/*.a " + good:                                  `Name = "*.a": must be DNS labels`,
		"default/default/_http._tcp.x " + good:                         "must be DNS labels",
		"default/default/svc " + good:                                  `Name = "svc": must not end in svc or pod`,
		"default/default/frontend.default.svc " + good:                 "must not end in svc or pod",
		"default/default/10-1-1-1.default.pod " + good:                 "must not end in svc or pod",
		"default/default/" + strings.Repeat("a.", 70) + "a " + good:    "must be at most 128 bytes",
		"default/default/x {}":                                         "Addresses: are missing",
		"default/default/x null":                                       "Addresses: are missing",
		"default/default/x []":                                         "the value must be a JSON object with Addresses",
		"default/default/x \x00":                                       "the value must be a JSON object with Addresses",
		`default/default/x {"Addresses":["nonsense"]}`:                 `Addresses = "nonsense": must be IP addresses`,
		`default/default/x {"Addresses":["127.0.0.1"]}`:                "must be unicast addresses",
		`default/default/x {"Addresses":["0.0.0.0"]}`:                  "must be unicast addresses",
		`default/default/x {"Addresses":["224.0.0.1"]}`:                "must be unicast addresses",
		`default/default/x {"Addresses":["fe80::1%eth0"]}`:             "must be unicast addresses",
		`default/default/x {"Addresses":["::ffff:10.0.0.1"]}`:          "must be unicast addresses",
		`default/default/x {"Addresses":["192.0.2.1","192.0.2.1"]}`:    "is there twice",
		"default/default/x " + strings.Repeat(" ", maxNameSize) + "{}": "must be at most 64 KiB",
		`default/default/x {"Addresses":[` + strings.Repeat(`"10.0.0.1",`, 256) + `"10.0.0.1"]}`: "must be at most 256",
	} {
		name, value, _ := strings.Cut(q, " ")
		n, err := parseName(name, value)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "/p/names/") {
			t.Errorf("%.80q: %+v %v, want %s", q, n, err, want)
		}
	}
	if _, err := ParseName("/p", store.KV{Key: "/elsewhere"}); err == nil {
		t.Error("a key of something else is taken")
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("default/default/a.b", []byte(`{"Addresses":["192.0.2.1"]}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		n, err := parseName(name, string(value))
		if err != nil {
			return
		}
		again, err := n.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		same, err := ParseName("/p", store.KV{Key: n.Key("/p"), Value: again})
		if err != nil || !reflect.DeepEqual(n, same) {
			t.Fatalf("%+v is read as %+v, %v", n, same, err)
		}
		s := State{Domain: "cluster.local", Tenant: n.Tenant, Names: []*Name{n}}
		z := new(Builder).Build(s)
		fqdn := n.Name + "." + n.Network + ".cluster.local"
		if n.Tenant != "default" {
			fqdn = n.Name + "." + n.Network + "." + n.Tenant + ".cluster.local"
		}
		if got := ask(z, fqdn, typeOf(n.Addresses[0])); !strings.Contains(got, n.Addresses[0].String()) && fqdn != "ns.dns.cluster.local" {
			t.Fatalf("%s is %s", fqdn, got)
		}
	})
}

func TestNamesAreWatched(t *testing.T) {
	st := mem.New()
	n := &Name{Tenant: "default", Network: "default", Name: "printer", Addresses: addrs("192.0.2.9")}
	value, _ := n.Marshal()
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: n.Key("/p"), Value: value}, {Key: "/p/names/x", Value: value}}}); err != nil {
		t.Fatal(err)
	}
	for r, err := range WatchNames(t.Context(), st, "/p") {
		if err != nil || len(r.Values) != 1 || !reflect.DeepEqual(r.Values[0], n) || len(r.Problems) != 1 {
			t.Fatalf("%+v %v", r, err)
		}
		break
	}
}
