package service

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

func addrs(list string) (all []netip.Addr) {
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func frontend() *Service {
	return &Service{Tenant: "default", Network: "default", Name: "frontend",
		Ports:    []Port{{Name: "http", Port: 8888, Target: 80, Protocol: "tcp"}, {Name: "dns", Port: 53, Protocol: "udp"}, {Name: "dns", Port: 53, Protocol: "tcp"}},
		Selector: map[string]string{"app": "sample", "example.com/tier": ""}, Endpoints: addrs("192.0.2.1 fd00::1"), VirtualIPs: addrs("10.0.0.80 fd00::80")}
}

func parse(name, value string) (*Service, error) {
	return Parse("/p", store.KV{Key: "/p/services/" + name, Value: []byte(value)})
}

func TestServicesAreReadAsTheyWereWritten(t *testing.T) {
	for _, s := range []*Service{
		frontend(),
		{Tenant: "blue", Network: "front", Name: "db", Headless: true},
		{Tenant: "default", Network: "default", Name: "mail", External: "mx-1.example.com"},
		{Tenant: "default", Network: "default", Name: "all", Affinity: 604800, Local: LocalFirst, Balance: BalanceRoundRobin,
			Ports:  []Port{{Name: "http", Port: 80, TargetName: "web", Protocol: "tcp", NodePort: 30000}, {Name: "dns", Port: 53, Protocol: "udp", NodePort: 30000}},
			Health: &Health{Type: "http", Path: "/ok?x=%20", Interval: 3600, Timeout: 300, Threshold: 100}},
		{Tenant: "default", Network: "default", Name: "hashed", Balance: BalanceHash, Local: LocalOnly, Ports: []Port{{Port: 1, Protocol: "tcp", NodePort: 32767}}, Health: &Health{Type: "tcp"}},
		{Tenant: "default", Network: "default", Name: "checked", Headless: true, Local: LocalCluster, Balance: BalanceRandom, Ports: []Port{{Port: 1, Protocol: "tcp"}}, Health: &Health{Type: "tcp"}},
		{Tenant: "default", Network: "default", Name: "single", Ports: []Port{{Port: 65535, Target: 1, Protocol: "sctp"}}},
	} {
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		value, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse("/p", store.KV{Key: s.Key("/p"), Value: value})
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v, %v, want %+v", got, err, s)
		}
	}
	s, err := parse("default/default/x", `{"Ports":[{"Port":80},{"Port":81,"Protocol":"UDP","Name":"b"}],"Later":"version"}`)
	if err == nil || !strings.Contains(err.Error(), "Ports[0].Name: is missing") {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = parse("default/default/x", `{"Ports":[{"Port":80,"Protocol":"UDP"}],"Later":"version"}`)
	if err != nil || s.Ports[0] != (Port{Port: 80, Protocol: "udp"}) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = parse("default/default/x", `{"Ports":[{"Port":80}]}`); err != nil || s.Ports[0].Protocol != "tcp" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestWrongServicesAreRefusedWithWhatIsWrong(t *testing.T) {
	ports := make([]string, maxPorts+1)
	for i := range ports {
		ports[i] = fmt.Sprintf(`{"Name":"p%d","Port":%d}`, i, i+1)
	}
	labels := make([]string, maxSelector+1)
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d":"v"`, i)
	}
	many := make([]string, maxEndpoints+1)
	for i := range many {
		many[i] = fmt.Sprintf(`"10.1.%d.%d"`, i/256, i%256)
	}
	for q, want := range map[string]string{
		"default/default {}":                                             "the key must end in <tenant>/<network>/<name>",
		"a/b/c/d {}":                                                     "the key must end in <tenant>/<network>/<name>",
		"default/default/ {}":                                            "Name: is missing",
		"default/default/Web {}":                                         `Name = "Web": must be a DNS label`,
		"default/default/a.b {}":                                         `Name = "a.b": must be a DNS label`,
		"default/default/-a {}":                                          "must be a DNS label",
		"default/default/_a {}":                                          "must be a DNS label",
		"default/default/ä {}":                                           "must be a DNS label",
		"default/svc/x {}":                                               `Network = "svc": is reserved`,
		"pod/default/x {}":                                               `Tenant = "pod": is reserved`,
		"default/default/x 7":                                            "must be a service's JSON object",
		"default/default/x ":                                             "must be a service's JSON object",
		"default/default/x \x00\x1b":                                     "must be a service's JSON object",
		`default/default/x {"Ports":[{"Port":0}]}`:                       "Ports[0].Port = 0: must be from 1 to 65535",
		`default/default/x {"Ports":[{"Port":65536}]}`:                   "must be from 1 to 65535",
		`default/default/x {"Ports":[{"Port":-1}]}`:                      "must be from 1 to 65535",
		`default/default/x {"Ports":[{"Port":1,"Target":65536}]}`:        "must be from 1 to 65535",
		`default/default/x {"Ports":[{"Port":1e40}]}`:                    "must be a service's JSON object",
		`default/default/x {"Ports":[{"Port":1,"Protocol":"icmp"}]}`:     `Ports[0].Protocol = "icmp": must be tcp, udp or sctp`,
		`default/default/x {"Ports":[{"Port":1,"Name":"a"},{"Port":2}]}`: "Ports[1].Name: is missing: only a single port needs none",
		`default/default/x {"Ports":[{"Port":1,"Name":"a"},{"Port":1,"Name":"b"}]}`:                                   "Ports[1].Port = 1/tcp: is there twice",
		`default/default/x {"Ports":[{"Port":1,"Name":"a"},{"Port":2,"Name":"a"}]}`:                                   "Ports[1].Name = a/tcp: is there twice",
		`default/default/x {"Ports":[{"Port":1,"Name":"A"}]}`:                                                         `Ports[0].Name = "A": must be a DNS label`,
		`default/default/x {"Ports":[{"Port":80,"Name":"8888"}]}`:                                                     `Ports[0].Name = "8888": must have a letter in it`,
		`default/default/x {"Ports":[` + strings.Join(ports, ",") + `]}`:                                              "Ports = 101: must be at most 100",
		`default/default/x {"Selector":{` + strings.Join(labels, ",") + `}}`:                                          "Selector = 33 labels: must be at most 32",
		`default/default/x {"Selector":{"":"v"}}`:                                                                     "must be printable",
		`default/default/x {"Selector":{"a":"\u001b[31m"}}`:                                                           "must be printable",
		`default/default/x {"Selector":{"a":"` + strings.Repeat("x", maxText+1) + `"}}`:                               "must be printable",
		`default/default/x {"Endpoints":["x"]}`:                                                                       `Endpoints = "x": must be IP addresses`,
		`default/default/x {"Endpoints":["127.0.0.1"]}`:                                                               "must be unicast addresses",
		`default/default/x {"Endpoints":["fe80::1%eth0"]}`:                                                            "must be unicast addresses",
		`default/default/x {"Endpoints":["10.0.0.1","10.0.0.1"]}`:                                                     "Endpoints = 10.0.0.1: is there twice",
		`default/default/x {"Endpoints":[` + strings.Join(many, ",") + `]}`:                                           "Endpoints = 1001: must be at most 1000",
		`default/default/x {"VirtualIPs":["10.0.0.1","10.0.0.2"]}`:                                                    "must be at most one per family",
		`default/default/x {"VirtualIPs":["10.0.0.1","fd00::1","fd00::2"]}`:                                           "must be at most one per family",
		`default/default/x {"VirtualIPs":["224.0.0.1"]}`:                                                              "must be unicast addresses",
		`default/default/x {"VirtualIPs":["10.0.0.1"],"Headless":true}`:                                               "must be none if Headless is true",
		`default/default/x {"External":"DB.example.com"}`:                                                             `External = "DB.example.com": must be a name in the DNS`,
		`default/default/x {"External":"db.example.com."}`:                                                            "must be a name in the DNS",
		`default/default/x {"External":"192.0.2.7"}`:                                                                  "must be a name in the DNS",
		`default/default/x {"External":"a..b"}`:                                                                       "must be a name in the DNS",
		`default/default/x {"External":"` + strings.Repeat("a23456789.", 26) + `a"}`:                                  "must be a name in the DNS",
		`default/default/x {"External":"a.b","Ports":[{"Port":1}]}`:                                                   "Ports: must be left out with External",
		`default/default/x {"External":"a.b","Selector":{"a":"b"}}`:                                                   "Selector: must be left out with External",
		`default/default/x {"External":"a.b","Endpoints":["192.0.2.1"]}`:                                              "Endpoints: must be left out with External",
		`default/default/x {"External":"a.b","VirtualIPs":["10.0.0.1"]}`:                                              "VirtualIPs: must be left out with External",
		`default/default/x {"External":"a.b","Headless":true}`:                                                        "Headless: must be left out with External",
		`default/default/x {"External":"a.b","Affinity":1}`:                                                           "Affinity: must be left out with External",
		`default/default/x {"External":"a.b","Local":"cluster"}`:                                                      "Local: must be left out with External",
		`default/default/x {"External":"a.b","Balance":"hash"}`:                                                       "Balance: must be left out with External",
		`default/default/x {"External":"a.b","Health":{"Type":"tcp"}}`:                                                "Health: must be left out with External",
		`default/default/x {"Affinity":-1}`:                                                                           "Affinity = -1 s: must be from 1 to 604800 seconds",
		`default/default/x {"Affinity":604801}`:                                                                       "Affinity = 604801 s: must be from 1 to 604800 seconds",
		`default/default/x {"Affinity":1.5}`:                                                                          "must be a service's JSON object",
		`default/default/x {"Affinity":60,"Balance":"hash"}`:                                                          "Affinity = 60 s: must be none if Balance is hash",
		`default/default/x {"Affinity":60,"Headless":true}`:                                                           "Affinity = 60 s: must be left out if Headless is true",
		`default/default/x {"Local":"node"}`:                                                                          `Local = "node": must be cluster, local or prefer-local`,
		`default/default/x {"Local":"local","Headless":true}`:                                                         "Local = local: must be left out if Headless is true",
		`default/default/x {"Balance":"Random"}`:                                                                      `Balance = "Random": must be random, round-robin or hash`,
		`default/default/x {"Balance":"hash","Headless":true}`:                                                        "Balance = hash: must be left out if Headless is true",
		`default/default/x {"Ports":[{"Port":1}],"Health":{}}`:                                                        `Health.Type = "": must be tcp or http`,
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"tcp","Path":"/"}}`:                                 `Health.Path = "/": must be left out with the type tcp`,
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"http"}}`:                                           `Health.Path = "": must begin with /`,
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"http","Path":"/a b"}}`:                             `Health.Path = "/a b": must begin with / and be printable ASCII without spaces`,
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"http","Path":"/\r\nHost: x"}}`:                     "must begin with / and be printable ASCII",
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"tcp","Interval":3601}}`:                            "Health.Interval = 3601: must be from 1 to 3600",
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"tcp","Timeout":-1}}`:                               "Health.Timeout = -1: must be from 1 to 300",
		`default/default/x {"Ports":[{"Port":1}],"Health":{"Type":"tcp","Threshold":101}}`:                            "Health.Threshold = 101: must be from 1 to 100",
		`default/default/x {"Ports":[{"Port":1,"Protocol":"udp"}],"Health":{"Type":"tcp"}}`:                           "Health.Type = tcp: must be none, or a port of tcp be there",
		`default/default/x {"Headless":true,"Health":{"Type":"tcp"}}`:                                                 "Health.Type = tcp: must be none, or a port of tcp be there",
		`default/default/x {"Ports":[{"Port":1,"TargetName":"Web"}]}`:                                                 `Ports[0].TargetName = "Web": must be a DNS label`,
		`default/default/x {"Ports":[{"Port":1,"TargetName":"web","Target":80}]}`:                                     `Ports[0].TargetName = "web": must be left out, or Target 80`,
		`default/default/x {"Ports":[{"Port":1,"NodePort":29999}]}`:                                                   "Ports[0].NodePort = 29999: must be from 30000 to 32767",
		`default/default/x {"Ports":[{"Port":1,"NodePort":32768}]}`:                                                   "Ports[0].NodePort = 32768: must be from 30000 to 32767",
		`default/default/x {"Ports":[{"Port":1,"NodePort":1}]}`:                                                       "must have a NodePort from 30000 to 32767",
		`default/default/x {"Ports":[{"Port":1,"NodePort":30000}],"Headless":true}`:                                   "Ports[0].NodePort = 30000: must be none if Headless is true",
		`default/default/x {"Ports":[{"Name":"a","Port":1,"NodePort":30000},{"Name":"b","Port":2,"NodePort":30000}]}`: "Ports[1].NodePort = 30000/tcp: is there twice",
		"default/default/x " + strings.Repeat(" ", maxSize) + "{}":                                                    "must be at most 256 KiB",
	} {
		name, value, _ := strings.Cut(q, " ")
		s, err := parse(name, value)
		if _, ok := errors.AsType[*subnet.RecordError](err); !ok || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "/p/services/") {
			t.Errorf("%.90q: %+v, %v, want %s", q, s, err, want)
		}
		if err != nil && (len(err.Error()) > 500 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' })) {
			t.Errorf("%.90q: not fit for a line: %q", q, err.Error())
		}
	}
	if _, err := Parse("/p", store.KV{Key: "/elsewhere"}); err == nil {
		t.Error("a key of something else is taken")
	}
}

func TestWhoMakesAServiceIsToldWhatMakesNoSense(t *testing.T) {
	s := Service{Tenant: "default", Network: "default", Name: "web"}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	if err := s.ValidateNew(); err == nil || !strings.Contains(err.Error(), "Ports: is missing: give at least one") {
		t.Errorf("without ports: %v", err)
	}
	s.Headless = true
	if err := s.ValidateNew(); err != nil {
		t.Error(err)
	}
	s = *frontend()
	s.Ports[1].NodePort, s.Ports[2].NodePort, s.Ports[0].NodePort = AutoPort, AutoPort, AutoPort
	if err := s.ValidateNew(); err != nil {
		t.Errorf("node ports left to the daemon: %v", err)
	}
}

func TestAServiceSelectsWhatCarriesAllItsLabels(t *testing.T) {
	s := frontend()
	e := endpoint.Endpoint{Tenant: "default", Network: "default", Labels: map[string]string{"app": "sample", "example.com/tier": "", "more": "x"}}
	if !s.Selects(&e) {
		t.Error("all labels: not selected")
	}
	for name, change := range map[string]func(*endpoint.Endpoint){
		"another value":   func(e *endpoint.Endpoint) { e.Labels = map[string]string{"app": "other", "example.com/tier": ""} },
		"an empty label":  func(e *endpoint.Endpoint) { e.Labels = map[string]string{"app": "sample"} },
		"no labels":       func(e *endpoint.Endpoint) { e.Labels = nil },
		"another network": func(e *endpoint.Endpoint) { e.Network = "back" },
		"another tenant":  func(e *endpoint.Endpoint) { e.Tenant = "blue" },
	} {
		other := e
		change(&other)
		if s.Selects(&other) {
			t.Errorf("%s: selected", name)
		}
	}
	s.Selector = nil
	if s.Selects(&e) {
		t.Error("a service without selector selects")
	}
}

func FuzzParse(f *testing.F) {
	value, err := frontend().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("default/default/frontend", value)
	f.Add("default/default/x", []byte(`{"Ports":[{"Port":80}]}`))
	f.Add("default/default/x", []byte(`{"External":"a.b"}`))
	f.Add("default/default/x", []byte(`{"Ports":[{"Port":80,"TargetName":"web","NodePort":30080}],"Affinity":60,"Local":"local","Balance":"round-robin","Health":{"Type":"http","Path":"/x","Interval":5,"Timeout":2,"Threshold":2}}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		s, err := parse(name, string(value))
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("not fit for a line: %q", err.Error())
			}
			return
		}
		again, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		same, err := Parse("/p", store.KV{Key: s.Key("/p"), Value: again})
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if twice, err := same.Marshal(); err != nil || string(twice) != string(again) {
			t.Fatalf("%s is read as %s, %v", again, twice, err)
		}
	})
}

func TestServicesAreWatched(t *testing.T) {
	st := mem.New()
	s := frontend()
	value, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: s.Key("/p"), Value: value}, {Key: "/p/services/x", Value: value}}}); err != nil {
		t.Fatal(err)
	}
	for r, err := range Watch(t.Context(), st, "/p") {
		s.created = r.Values[0].created
		if err != nil || len(r.Values) != 1 || !reflect.DeepEqual(r.Values[0], s) || len(r.Problems) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		break
	}
}
