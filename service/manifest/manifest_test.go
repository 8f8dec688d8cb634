package manifest

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/service"
)

// read parses a file without mistakes.
func read(t *testing.T, text string) File {
	t.Helper()
	f, errs := Parse([]byte(text))
	for _, e := range errs {
		t.Error(e)
	}
	if t.Failed() {
		t.FailNow()
	}
	return f
}

// service of a file that has one, without what is always the same.
func one(t *testing.T, text string) service.Service {
	t.Helper()
	f := read(t, text)
	if len(f.Services) != 1 {
		t.Fatalf("%d services in %s", len(f.Services), text)
	}
	s := *f.Services[0].Service
	if s.Tenant != "default" || s.Network != "default" {
		t.Errorf("in network %s of %s", s.Network, s.Tenant)
	}
	s.Tenant, s.Network = "", ""
	return s
}

func addrs(list string) (all []netip.Addr) {
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestOwnFormIsReadInTheWordsOfTheCommandLine(t *testing.T) {
	sample := map[string]string{"app": "sample"}
	http := []service.Port{{Port: 80, Protocol: "tcp"}}
	for text, want := range map[string]service.Service{
		"kind: Service\nname: web\nport: 80\nselector: app=sample":                                    {Ports: http, Selector: sample},
		"kind: Service\nname: web\nport: [80]\nselector: {app: sample}\n":                             {Ports: http, Selector: sample},
		`{"kind": "Service", "name": "web", "port": 80, "selector": ["app=sample", "tier=front,x="]}`: {Ports: http, Selector: map[string]string{"app": "sample", "tier": "front", "x": ""}},
		"kind: Service\nname: web\nport:\n- http=80:web\n- dns=53:5353/udp\nendpoint: [192.0.2.7, '2001:db8::7']\nip: 10.0.0.206\nnode-port: [http=30080, dns=auto]": {
			Ports:     []service.Port{{Name: "http", Port: 80, TargetName: "web", Protocol: "tcp", NodePort: 30080}, {Name: "dns", Port: 53, Target: 5353, Protocol: "udp", NodePort: service.AutoPort}},
			Endpoints: addrs("192.0.2.7 2001:db8::7"), VirtualIPs: addrs("10.0.0.206")},
		"kind: Service\nname: web\nport: 80\nselector: {app: sample}\naffinity: client-ip=3h\nlocal: prefer-local\nbalance: round-robin\nhealth: http:/ok\nhealth-interval: 10\nhealth-timeout: 1s\nhealth-threshold: 3": {
			Ports: http, Selector: sample, Affinity: 10800, Local: service.LocalFirst, Balance: service.BalanceRoundRobin,
			Health: &service.Health{Type: "http", Path: "/ok", Interval: 10, Timeout: 1, Threshold: 3}},
		"kind: Service\nname: web\nheadless: true\nselector: {app: sample}\nlocal: cluster\nbalance: random\nhealth: none\naffinity: none\nip: null": {Headless: true, Selector: sample},
		"kind: Service\nname: web\nnetwork: default\nexternal: DB.example.com.":                                                                      {External: "db.example.com"},
		"--- # nothing\n---\nkind: Service\nname: web\nport: &p 80\nselector: {app: &a sample, b: *a}\nnode-port: auto\n...\n": {
			Ports: []service.Port{{Port: 80, Protocol: "tcp", NodePort: service.AutoPort}}, Selector: map[string]string{"app": "sample", "b": "sample"}},
	} {
		want.Name = "web"
		if got := one(t, text); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", text, got, want)
		}
	}
}

func TestKubernetesServicesBecomeOurs(t *testing.T) {
	sample := map[string]string{"app": "sample"}
	const head = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: sample}\n  "
	ports := func(node uint16) []service.Port { return []service.Port{{Port: 80, Protocol: "tcp", NodePort: node}} }
	const port = "ports: [{port: 80}]\n  "
	for text, want := range map[string]service.Service{
		port: {Ports: ports(0)},
		"ports:\n  - {name: http, port: 80, targetPort: 8080, protocol: TCP}\n  - {name: web, port: 81, targetPort: web}\n  - {name: dns, port: 53, targetPort: 53, protocol: UDP}": {
			Ports: []service.Port{{Name: "http", Port: 80, Target: 8080, Protocol: "tcp"}, {Name: "web", Port: 81, TargetName: "web", Protocol: "tcp"}, {Name: "dns", Port: 53, Protocol: "udp"}}},
		"type: ClusterIP\n  clusterIP: 10.0.0.9\n  clusterIPs: [10.0.0.9, 'fd00::9']\n  sessionAffinity: None\n  " + port: {Ports: ports(0), VirtualIPs: addrs("10.0.0.9 fd00::9")},
		"clusterIP: ''\n  " + port:                               {Ports: ports(0)},
		"clusterIP: None\n  " + port:                             {Ports: ports(0), Headless: true},
		"clusterIP: None\n  clusterIPs: [None]":                  {Headless: true},
		"type: NodePort\n  " + port:                              {Ports: ports(service.AutoPort)},
		"type: NodePort\n  ports: [{port: 80, nodePort: 30080}]": {Ports: ports(30080)},
		"type: NodePort\n  ports: [{port: 80, nodePort: 0}]":     {Ports: ports(service.AutoPort)},
		"sessionAffinity: ClientIP\n  " + port:                   {Ports: ports(0), Affinity: 10800},
		"sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}\n  " + port: {Ports: ports(0), Affinity: 60},
		"internalTrafficPolicy: Local\n  " + port:                                                         {Ports: ports(0), Local: service.LocalOnly},
		"internalTrafficPolicy: Cluster\n  trafficDistribution: PreferClose\n  " + port:                   {Ports: ports(0), Local: service.LocalFirst},
		"internalTrafficPolicy: Local\n  trafficDistribution: PreferSameNode\n  " + port:                  {Ports: ports(0), Local: service.LocalOnly},
		"type: NodePort\n  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n  " + port:       {Ports: ports(service.AutoPort), Local: service.LocalOnly},
	} {
		want.Name, want.Selector = "web", sample
		if got := one(t, head+text); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", text, got, want)
		}
	}
	alias := one(t, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"db","namespace":"default"},"spec":{"type":"ExternalName","externalName":"db.Example.com"}}`)
	if !reflect.DeepEqual(alias, service.Service{Name: "db", External: "db.example.com"}) {
		t.Errorf("%+v", alias)
	}
}

func TestEveryIgnoredFieldIsNamedWithItsLine(t *testing.T) {
	f := read(t, `# from a cluster
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {app: sample}
  uid: 7d1e
spec:
  type: LoadBalancer
  selector: {app: sample}
  ports:
  - port: 80
    appProtocol: http
  externalTrafficPolicy: Local
  loadBalancerIP: 203.0.113.5
  publishNotReadyAddresses: true
  ipFamilies: [IPv4]
  sessionAffinityConfig: {}
  trafficDistribution: PreferSameZone
  selektor: {}
status:
  loadBalancer: {}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: db}
  spec: {type: ExternalName, externalName: db.example.com, ports: [{port: 5432}], sessionAffinity: None}
- {apiVersion: v1, kind: Service, metadata: {name: peers}, spec: {clusterIP: None, sessionAffinity: ClientIP, internalTrafficPolicy: Local}}
- {apiVersion: v1, kind: Secret, data: {a: b}}
`)
	var got []string
	for _, n := range f.Ignored {
		got = append(got, n.String())
	}
	want := []string{
		"line 6: metadata.namespace is ignored: there is one network yet, default, and the service is in it: web.default.svc",
		"line 7: metadata.labels is ignored: services have no labels of their own",
		"line 8: metadata.uid is ignored: it is told by Kubernetes, not to it",
		"line 10: spec.type LoadBalancer is ignored: nothing outside balances; the service gets node ports as with NodePort",
		"line 14: spec.ports[0].appProtocol is ignored: nobody looks into connections",
		"line 15: spec.externalTrafficPolicy is ignored: Local would hold for connections from containers too; if that is meant, set internalTrafficPolicy: Local as well",
		"line 16: spec.loadBalancerIP is ignored: there is no load balancer outside",
		"line 17: spec.publishNotReadyAddresses is ignored: what is not healthy gets no connections",
		"line 18: spec.ipFamilies is ignored: there is a virtual IP of each family that the network of services has",
		"line 19: spec.sessionAffinityConfig is ignored: flanneld has nothing like it",
		"line 20: spec.trafficDistribution is ignored: PreferSameZone means nothing here, hosts have no zones; PreferSameNode does",
		"line 21: spec.selektor is ignored: flanneld has nothing like it",
		"line 22: status is ignored: it is told by Kubernetes, not to it",
		"line 25: kind Deployment of apps/v1 is ignored: only Service and List of v1 are applied",
		"line 35: items[0].spec.ports is ignored: a service of type ExternalName is an alias and nothing else",
		"line 36: items[1].spec.sessionAffinity is ignored: clients of a headless service choose among the endpoints themselves",
		"line 36: items[1].spec.internalTrafficPolicy is ignored: clients of a headless service choose among the endpoints themselves",
		"line 37: items[2].kind Secret of v1 is ignored: only Service and List of v1 are applied",
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
	if len(f.Services) != 3 || f.Services[1].Service.Name != "db" || f.Services[1].Line != 32 {
		t.Errorf("%+v", f.Services)
	}
}

func TestMistakesAreToldWithLineFieldAndRemedy(t *testing.T) {
	const own = "kind: Service\nname: web\nselector: {app: sample}\n"
	const k8s = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  "
	const valid = "kind: Service\nname: db\nexternal: a.example\n"
	for text, want := range map[string]string{
		"":                                       "line 1: there is no service in the file",
		"---\n---\n":                             "line 1: there is no service in the file",
		"a: b: c":                                "line 1: is neither YAML nor JSON: mapping values are not allowed",
		"a: 1\nb: [\n":                           "is neither YAML nor JSON",
		"- kind: Service":                        "line 1: must be a mapping",
		"7":                                      "line 1: must be a mapping",
		"name: web":                              "line 1: kind: is missing: Service",
		"kind: Deployment":                       `line 1: kind = "Deployment": must be Service`,
		"kind: Service\nspec:":                   "line 1: apiVersion: is missing: v1 for a Kubernetes Service",
		"kind: 7":                                "line 1: kind = 7: must be a text: put it in quotes",
		"apiVersion: v1\nkind: ConfigMap":        "there is no service in the file",
		"kind: Service\nport: 80\nselector: a=b": "line 1: name: is missing",
		"kind: Service\nname: Web\nport: 80\nselector: a=b":  `line 2: name = "Web": must be a DNS label`,
		"kind: Service\nname: web\nport: 80":                 "line 1: selector: is missing, and nothing would belong",
		own:                                                  "line 1: port: is missing: give at least one, or make the service headless",
		own + "port: 80/http":                                `line 4: port = "80/http": there is no protocol "http": use tcp, udp or sctp`,
		own + "port: [80,\n  http=x]":                        `line 5: port = "http=x": port "x": give a number from 1 to 65535`,
		own + "port: {a: b}":                                 "line 4: port: must be as on the command line: [NAME=]PORT",
		own + "port: [80, 80]":                               "line 4: name of port[0]: is missing: only a single port needs none",
		own + "port: [a=80, b=80]":                           "line 4: port[1] = 80/tcp: is there twice",
		own + "port: 80\nport: 81":                           "line 5: port: is there twice, first in line 4",
		own + "ports: [80]":                                  "line 4: ports: there is no such field, only name, network, port, selector,",
		own + "port: 80\nip: 10.0.0":                         `line 5: ip = "10.0.0": give an IP address`,
		own + "port: 80\nip: [10.0.0.1, 10.0.0.2]":           "line 5: ip = [10.0.0.1 10.0.0.2]: must be at most one per family",
		own + "port: 80\nnode-port: 80":                      `line 5: node-port = "80": give a number from 30000 to 32767, or auto`,
		own + "port: 80\nnode-port: http=30080":              `line 5: node-port = "http=30080": the service has no such port`,
		own + "port: [a=80, b=81]\nnode-port: 30080":         `line 5: node-port = "30080": the service has several ports: say which one, as in a=30080`,
		own + "port: 80\nheadless: true\nnode-port: auto":    "line 6: node-port = auto: must be none if Headless is true",
		own + "port: 80\nheadless: maybe":                    `line 5: headless = "maybe": give true or false`,
		own + "port: 80\naffinity: cookie":                   `line 5: affinity = "cookie": use client-ip`,
		own + "port: 80\naffinity: client-ip=200h":           `line 5: affinity = "client-ip=200h": give a time of whole seconds, at most 168h (7 days)`,
		own + "port: 80\naffinity: client-ip\nbalance: hash": "line 5: affinity = 10800 s: must be none if Balance is hash",
		own + "port: 80\naffinity: [client-ip, none]":        "line 5: affinity: must be as on the command line",
		own + "port: 80\nlocal: node":                        `line 5: local = "node": must be cluster, local or prefer-local`,
		own + "port: 80\nbalance: fair":                      `line 5: balance = "fair": must be random, round-robin or hash`,
		own + "port: 80\nhealth: icmp":                       `line 5: health = "icmp": use tcp, http:/PATH`,
		own + "port: 80\nhealth: http:healthz":               `line 5: health = "healthz": must begin with /`,
		own + "port: 53/udp\nhealth: tcp":                    "line 5: health = tcp: must be none, or a port of tcp be there",
		own + "port: 80\nhealth-interval: 5s":                `line 5: health-interval = "5s": nothing is checked: say how with health`,
		own + "port: 80\nhealth: tcp\nhealth-interval: 2h":   "line 6: health-interval = 7200: must be from 1 to 3600",
		own + "port: 80\nhealth: tcp\nhealth-timeout: 500ms": `line 6: health-timeout = "500ms": give a time of whole seconds`,
		own + "port: 80\nexternal: db.example.com":           "line 4: port: must be left out with External",
		"kind: Service\nname: db\nexternal: 192.0.2.7":       `line 3: external = "192.0.2.7": must be a name in the DNS`,
		own + "port: 80\n<<: {a: b}":                         "merged and complex keys are not understood",
		own + "port: 80\n? [a]\n: b":                         "merged and complex keys are not understood",
		own + "port: 80\n---\n" + own + "port: 81":           "line 6: name = web: is there twice: the service in line 1 has it too",
		own + "port: 80\nip: 10.0.0.9\n---\nkind: Service\nname: b\nport: 80\nselector: a=b\nip: 10.0.0.9":         "line 7: b = 10.0.0.9: is there twice: the service in line 1 has it too",
		own + "port: 80\nnode-port: 30080\n---\nkind: Service\nname: b\nport: 80\nselector: a=b\nnode-port: 30080": "line 7: b = tcp-30080: is there twice: the service in line 1",
		valid + "---\nkind: Service\nname: [b]\n":                                                                  "line 6: name: must be a text",

		"apiVersion: v1\nkind: Service\nspec: {}":                                          "line 1: metadata.name: is missing",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web}":                             "line 1: spec: is missing",
		"apiVersion: v1\nkind: Service\nmetadata: [web]\nspec: {}":                         "line 3: metadata: must be a mapping",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a.b}\nspec: {ports: [{port: 1}]}": `line 3: metadata.name = "a.b": must be a DNS label`,
		"apiVersion: v1\nkind: List\nitems: {}":                                            "line 3: items: must be a list",
		"apiVersion: v1\nkind: List\nitems:\n- kind: Service\n  spec: {}":                  "line 4: items[0].apiVersion: is missing",
		k8s + "selector: {app: sample}":                                                    "line 5: spec.ports: is missing: give at least one",
		k8s + "ports: [{name: http}]":                                                      "line 5: spec.ports[0].port: is missing",
		k8s + "ports: [{port: '80'}]":                                                      `line 5: spec.ports[0].port = "80": must be a number, without quotes`,
		k8s + "ports: [{port: 70000}]":                                                     "line 5: spec.ports[0].port = 70000: must be from 1 to 65535",
		k8s + "ports: [{port: 80, targetPort: 0}]":                                         "spec.ports[0].targetPort = 0: must be from 1 to 65535",
		k8s + "ports: [{port: 80, targetPort: 'We b'}]":                                    `spec.ports[0].targetPort = "We b": must be a DNS label`,
		k8s + "ports:\n  - port: 80\n    protocol: ICMP":                                   `line 7: spec.ports[0].protocol = "icmp": must be tcp, udp or sctp`,
		k8s + "ports: [80]":                                                                "line 5: spec.ports[0]: must be a mapping",
		k8s + "ports: {port: 80}":                                                          "line 5: spec.ports: must be a list",
		k8s + "ports: [{port: 80}, {port: 81}]":                                            "line 5: spec.ports[0].name: is missing: only a single port",
		k8s + "ports:\n  - {name: a, port: 80}\n  - {name: b, port: 80}":                   "line 7: spec.ports[1].port = 80/tcp: is there twice",
		k8s + "ports: [{port: 80, nodePort: 30080}]":                                       "spec.ports[0].nodePort = 30080: must be left out, or spec.type be NodePort",
		k8s + "type: NodePort\n  ports: [{port: 80, nodePort: 8080}]":                      "line 6: spec.ports[0].nodePort = 8080: must be from 30000 to 32767",
		k8s + "type: NodePort\n  clusterIP: None\n  ports: [{port: 80}]":                   "spec.ports[0].nodePort = auto: must be none if Headless",
		k8s + "type: clusterip":                                                            `line 5: spec.type = "clusterip": must be ClusterIP, NodePort or ExternalName`,
		k8s + "type: ExternalName":                                                         "line 5: spec.externalName: is missing",
		k8s + "type: ExternalName\n  externalName: a b":                                    `line 6: spec.externalName = "a b": must be a name in the DNS`,
		k8s + "selector: {app: 1}":                                                         "line 5: spec.selector.app = 1: must be a text: put it in quotes",
		k8s + "selector: [app]":                                                            "line 5: spec.selector: must be a mapping",
		k8s + "ports: [{port: 80}]\n  clusterIP: none":                                     `line 6: spec.clusterIP = "none": must be an IP address, or None`,
		k8s + "ports: [{port: 80}]\n  clusterIP: 127.0.0.1":                                `line 6: spec.clusterIP = "127.0.0.1": must be unicast`,
		k8s + "ports: [{port: 80}]\n  clusterIPs: [10.0.0.1, 10.0.0.2]":                    "line 6: spec.clusterIPs = [10.0.0.1 10.0.0.2]: must be at most one per family",
		k8s + "ports: [{port: 80}]\n  clusterIP: 10.0.0.1\n  clusterIPs: [10.0.0.2]":       "line 7: spec.clusterIPs = 10.0.0.2: must begin with clusterIP",
		k8s + "ports: [{port: 80}]\n  sessionAffinity: clientip":                           `line 6: spec.sessionAffinity = "clientip": must be ClientIP or None`,
		k8s + "ports: [{port: 80}]\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}":         "spec.sessionAffinityConfig.clientIP.timeoutSeconds = 0: must be from 1 to 604800",
		k8s + "ports: [{port: 80}]\n  internalTrafficPolicy: local":                                                                `line 6: spec.internalTrafficPolicy = "local": must be Cluster or Local`,
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 0}]}}": "line 4: items[0].spec.ports[0].port = 0: must be from 1 to 65535",
	} {
		_, errs := Parse([]byte(text))
		said := fmt.Sprint(errs)
		if len(errs) == 0 || !strings.Contains(said, want) {
			t.Errorf("%s\nsaid %s, want %s", text, said, want)
		}
	}
}

func TestAllMistakesOfAFileAreTold(t *testing.T) {
	_, errs := Parse([]byte("kind: Service\nname: a\nport: x\nip: y\n---\nkind: Service\nname: b\nport: 80\n---\na: b: c\n---\nkind: Service\n"))
	if got := fmt.Sprint(errs); len(errs) != 4 || !strings.Contains(got, "line 3") || !strings.Contains(got, "line 4") || !strings.Contains(got, "line 6") || !strings.Contains(got, "neither YAML") {
		t.Errorf("said %s", got)
	}
}

func TestAPlaceInTheFileIsKnownOfEachField(t *testing.T) {
	f := read(t, "kind: Service\nname: web\nselector: a=b\nport: [a=80, b=81]\nip: 10.0.0.9\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: 10.0.0.8\n  ports:\n  - port: 80\n")
	for _, tc := range []struct {
		of    int
		field string
		line  int
		name  string
	}{
		{0, "VirtualIPs", 5, "ip"}, {0, "Ports[1].NodePort", 4, "port"}, {0, "Local", 1, ""}, {0, "", 1, ""},
		{1, "VirtualIPs", 11, "spec.clusterIP"}, {1, "Ports[0].Port", 13, "spec.ports[0].port"}, {1, "Ports[7]", 13, "spec.ports"}, {1, "", 7, ""},
	} {
		if line, name := f.Services[tc.of].Place(tc.field); line != tc.line || name != tc.name {
			t.Errorf("%s of service %d is in line %d, %q, want %d, %q", tc.field, tc.of, line, name, tc.line, tc.name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"kind: Service\nname: web\nport: [http=80:web, dns=53/udp]\nselector: {app: sample}\nnode-port: auto\nhealth: http:/x\nhealth-interval: 5s\naffinity: client-ip=3h",
		"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: web, namespace: x}\n  spec:\n    type: NodePort\n    ports: [{port: 80, targetPort: web, nodePort: 30080}]\n    clusterIP: 10.0.0.1\n    sessionAffinity: ClientIP",
		"a: &a [*a, *a]\n", "? {a: b}\n: c", "<<: *x", "--- !!binary |\n  aaaa\n", "\xff\xfe", "kind: Service\nexternal: \"\\e[0m\"\nname: x", "a: b: c",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, errs := Parse(text)
		for _, e := range errs {
			if strings.ContainsFunc(e.Error(), func(r rune) bool { return r < ' ' }) || e.Line < 1 {
				t.Errorf("not fit for a line: %q", e.Error())
			}
		}
		for _, n := range file.Ignored {
			if strings.ContainsFunc(n.String(), func(r rune) bool { return r < ' ' }) || n.Line < 1 {
				t.Errorf("not fit for a line: %q", n)
			}
		}
		if len(errs) > 0 {
			return
		}
		for _, p := range file.Services {
			if err := p.Service.ValidateNew(); err != nil || p.Line < 1 {
				t.Errorf("line %d: %v", p.Line, err)
			}
		}
	})
}

func TestTabsAreToldApartFromOtherMistakes(t *testing.T) {
	const tabs = "indent with spaces, YAML has no tabs"
	for text, says := range map[string]string{
		"kind: Service\nselector:\n\tapp: x\n":         "line 3: " + tabs,
		"kind: Service\nselector:\n  app: x\n\ty: z\n": "line 4: " + tabs,
		"\tkind: Service\n":                            "line 1: " + tabs,
		"kind: Service\nname: @a\n":                    "line 2: is neither YAML nor JSON: found character that cannot start any token",
		"{\n\t\"kind\": \"Service\"\n\t\"x\": 1}":      "is neither YAML nor JSON: did not find expected",
	} {
		if _, errs := Parse([]byte(text)); len(errs) != 1 || !strings.Contains(errs[0].Error(), says) {
			t.Errorf("%q: %v", text, errs)
		}
	}
}
