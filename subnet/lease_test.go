package subnet

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store"
)

const flannelValue = `{"PublicIP":"192.168.77.13","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"46:5d:1c:8a:6b:01"}}`

func leaseKV(name, value string) store.KV {
	return store.KV{Key: SubnetsPrefix(testPrefix) + name, Value: []byte(value), ModRevision: 7, CreateRevision: 5, Session: 9}
}

func TestLeaseValuesAreFlannels(t *testing.T) {
	tests := map[string]struct {
		name, value string
		want        Lease
	}{
		"flannel's": {"10.1.19.0-24", flannelValue, Lease{
			Subnets: prefixes("10.1.19.0/24"), PublicIPs: addrs("192.168.77.13"), Type: "vxlan",
			Data: BackendData{V4: json.RawMessage(`{"VNI":1,"VtepMAC":"46:5d:1c:8a:6b:01"}`)},
		}},
		"ours": {"10.1.19.0-24", `{"PublicIP":"192.168.77.13","PublicIPv6":null,"BackendType":"host-gw","Node":"a","Identity":"00ff"}`, Lease{
			Subnets: prefixes("10.1.19.0/24"), PublicIPs: addrs("192.168.77.13"), Type: "host-gw", Node: "a", Identity: "00ff",
		}},
		"dual stack": {"10.1.19.0-24&fd00:1:19::-64", `{"PublicIP":"192.168.77.13","PublicIPv6":"fd00:77::13","BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":{"VNI":2}}`, Lease{
			Subnets: prefixes("10.1.19.0/24 fd00:1:19::/64"), PublicIPs: addrs("192.168.77.13 fd00:77::13"), Type: "vxlan",
			Data: BackendData{V4: json.RawMessage(`{"VNI":1}`), V6: json.RawMessage(`{"VNI":2}`)},
		}},
		"IPv6 alone": {"0.0.0.0-0&fd00:1:19::-64", `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:77::13","BackendType":"vxlan","BackendV6Data":{"VNI":2}}`, Lease{
			Subnets: prefixes("fd00:1:19::/64"), PublicIPs: addrs("fd00:77::13"), Type: "vxlan", Data: BackendData{V6: json.RawMessage(`{"VNI":2}`)},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := ParseLease(testPrefix, leaseKV(tt.name, tt.value))
			if err != nil {
				t.Fatal(err)
			}
			if !l.says(tt.want) || Key(testPrefix, l.Subnets) != l.Key || l.Revision != 7 || l.Created != 5 || l.Session != 9 {
				t.Errorf("got %+v, want %+v", l, tt.want)
			}
			b, err := MarshalLease(tt.want)
			if err != nil || string(b) != tt.value {
				t.Errorf("value %s, %v, want %s", b, err, tt.value)
			}
		})
	}
}

func TestUnknownFieldsOfALeaseAreKept(t *testing.T) {
	l, err := ParseLease(testPrefix, leaseKV("10.1.19.0-24",
		`{"Zone":{"a": [1, 2]},"publicip":"192.168.77.13","BackendType":"vxlan","Alpha":"<&>"}`))
	if err != nil {
		t.Fatal(err)
	}
	l.Node, l.Identity = "a", "00ff"
	b, err := MarshalLease(l)
	want := `{"PublicIP":"192.168.77.13","PublicIPv6":null,"BackendType":"vxlan","Node":"a","Identity":"00ff","Alpha":"<&>","Zone":{"a": [1, 2]}}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
	if !json.Valid(b) {
		t.Error("not JSON")
	}
}

func TestUnreadableLeasesAreRefused(t *testing.T) {
	for name, tt := range map[string]struct{ name, value, text string }{
		"not JSON":         {"10.1.19.0-24", `hello`, "/coreos.com/network/subnets/10.1.19.0-24 = hello: the value must be a lease in flannel's JSON format"},
		"empty":            {"10.1.19.0-24", ``, "must be a lease in flannel's JSON format"},
		"array":            {"10.1.19.0-24", `[]`, "must be a lease"},
		"number":           {"10.1.19.0-24", `{"PublicIP":5}`, "must be a lease"},
		"not an address":   {"10.1.19.0-24", `{"PublicIP":"hello"}`, "PublicIP = hello: must be an address of its family"},
		"wrong family":     {"10.1.19.0-24", `{"PublicIP":"fd00::1"}`, "PublicIP = fd00::1: must be an address of its family"},
		"wrong family 6":   {"10.1.19.0-24", `{"PublicIPv6":"10.0.0.1"}`, "PublicIPv6 = 10.0.0.1"},
		"zone":             {"10.1.19.0-24", `{"PublicIPv6":"fe80::1%eth0"}`, "must be an address of its family"},
		"shell":            {"10.1.19.0-24", "{\"PublicIP\":\"1.2.3.4\\n; reboot\"}", "PublicIP = 1.2.3.4 ; reboot: must be an address"},
		"1 MB":             {"10.1.19.0-24", `{"PublicIP":"192.168.77.13","x":"` + strings.Repeat("x", 1<<20) + `"}`, "1048611 bytes: the value must be at most 64 KiB"},
		"key of no subnet": {"hello", flannelValue, "subnets/hello: the key must look like 10.1.19.0-24"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseLease(testPrefix, leaseKV(tt.name, tt.value))
			if _, ok := errors.AsType[*RecordError](err); !ok || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want text with %q", err, tt.text)
			}
		})
	}
}

func TestUnservableLeasesAreRefused(t *testing.T) {
	c := mustConfig(t, `{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}`)
	for name, tt := range map[string]struct{ name, ip, text string }{
		"fine":                 {"10.1.19.0-24&fd00:1:0:1::-64", "192.168.77.13", ""},
		"one family of two":    {"10.1.19.0-24", "192.168.77.13", ""},
		"other length":         {"10.1.18.0-23", "192.168.77.13", ""},
		"skipped first subnet": {"10.1.0.0-24", "192.168.77.13", ""},
		"everything":           {"128.0.0.0-1", "192.168.77.13", "128.0.0.0/1 is not a part of the network 10.1.0.0/16 from /17 to /30"},
		"whole network":        {"10.1.0.0-16", "192.168.77.13", "is not a part of the network"},
		"one address":          {"10.1.19.1-32", "192.168.77.13", "is not a part of the network"},
		"elsewhere":            {"10.96.0.0-24", "192.168.77.13", "10.96.0.0/24 is not a part of the network 10.1.0.0/16"},
		"elsewhere in IPv6":    {"10.1.19.0-24&fd00:2::-64", "192.168.77.13", "fd00:2::/64 is not a part of the network"},
		"no address":           {"10.1.19.0-24", "0.0.0.0", "PublicIP: is missing"},
		"loopback":             {"10.1.19.0-24", "127.0.0.1", "PublicIP = 127.0.0.1: must be a unicast address"},
		"multicast":            {"10.1.19.0-24", "239.1.1.1", "must be a unicast address"},
		"broadcast":            {"10.1.19.0-24", "255.255.255.255", "must be a unicast address"},
		"link-local":           {"10.1.19.0-24", "169.254.1.1", "must be a unicast address"},
		"network zero":         {"10.1.19.0-24", "0.1.2.3", "must be a unicast address"},
		"inside its own":       {"10.1.19.0-24", "10.1.19.7", "the host's own address is inside its subnet"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := ParseLease(testPrefix, leaseKV(tt.name, `{"PublicIP":"`+tt.ip+`","BackendType":"vxlan"}`))
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.under(c)
			if (err == nil) != (tt.text == "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want text with %q", err, tt.text)
			}
		})
	}
}

func TestNamesFromTheStoreAreFitForATerminal(t *testing.T) {
	evil := "a\n\x1b[2J\u202eb"
	text, err := json.Marshal(evil)
	if err != nil {
		t.Fatal(err)
	}
	long, _ := json.Marshal(strings.Repeat("ü", 200))
	for in, want := range map[string]string{string(text): "a??[2J?b", string(long): strings.Repeat("ü", 127), `"host-1.example"`: "host-1.example"} {
		l, err := ParseLease(testPrefix, leaseKV("10.1.19.0-24", `{"PublicIP":"192.168.77.13","BackendType":`+string(text)+`,"Node":`+in+`}`))
		if err != nil || l.Node != want || l.Type != "a??[2j?b" {
			t.Errorf("node %q, type %q, %v, want %q", l.Node, l.Type, err, want)
		}
	}
	h, err := parseHost(evil, store.KV{Session: 1, Value: []byte(`{"Name":` + string(text) + `,"Identity":"1","Instance":"2","Version":` + string(text) + `,"Drivers":[` + string(text) + `]}`)})
	if err != nil || h.Name != "a??[2J?b" || h.Version != h.Name || h.Drivers[0] != h.Name {
		t.Errorf("%+v, %v", h, err)
	}
	if s := (&RecordError{Key: evil, Remedy: "x"}).Error(); s != "a??[2J?b: x" {
		t.Errorf("%q", s)
	}
}

func FuzzParseLease(f *testing.F) {
	f.Add("10.1.19.0-24", []byte(flannelValue))
	f.Add("10.1.19.0-24&fd00:1:19::-64", []byte(`{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:77::13","x":[{}],"Node":"\u0000"}`))
	f.Add("10.1.19.0-24", []byte(`{"PublicIP":"192.168.77.13","BackendType":"\u2028","Node":"a\n\u001b[2J\u202e`+strings.Repeat("ü", 200)+`"}`))
	c := mustConfig(f, `{"Network":"10.1.0.0/16"}`)
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		l, err := ParseLease(testPrefix, leaseKV(name, string(value)))
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Fatalf("%d bytes of error", len(err.Error()))
			}
			return
		}
		if _, err := l.under(c); err != nil && err.Error() == "" {
			t.Fatal("error without text")
		}
		b, err := MarshalLease(l)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseLease(testPrefix, store.KV{Key: l.Key, Value: b})
		if err != nil && len(b) <= maxLeaseSize || err == nil && !again.says(l) {
			t.Fatalf("%s became %s: %v", value, b, err)
		}
	})
}
