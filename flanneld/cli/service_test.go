package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
)

const putWeb = "PUT /v1/services/default/default/web"

func TestServiceIsCreatedAsTyped(t *testing.T) {
	for line, want := range map[string]string{
		"service create web --port 80 --selector app=sample": `"ports":[{"port":80,"protocol":"tcp"}],"selector":{"app":"sample"}}`,
		"service create --port=http=80:8080 -port dns=53/UDP WEB -selector app=sample,tier=front -selector x=": `"ports":[{"name":"http","port":80,"target":8080,"protocol":"tcp"},` +
			`{"name":"dns","port":53,"protocol":"udp"}],"selector":{"app":"sample","tier":"front","x":""}}`,
		"service create web --headless --endpoint 192.0.2.7 --endpoint 2001:db8::7,192.0.2.8": `"endpoints":["192.0.2.7","2001:db8::7","192.0.2.8"],"headless":true}`,
		"service create web --port http=80:web/tcp --selector a=b --ip 10.0.0.206 --node-port 30080 --affinity client-ip --local prefer-local --balance round-robin": `"ports":[{"name":"http","port":80,"target_name":"web","protocol":"tcp","node_port":30080}],` +
			`"selector":{"a":"b"},"virtual_ips":["10.0.0.206"],"affinity_seconds":10800,"local":"prefer-local","balance":"round-robin"}`,
		"service create web --port a=80 --port b=81 --selector a=b --node-port b=auto --health http:/ok --health-interval 10s --health-timeout 1s --health-threshold 3": `"ports":[{"name":"a","port":80,"protocol":"tcp"},` +
			`{"name":"b","port":81,"protocol":"tcp","node_port_auto":true}],"selector":{"a":"b"},"health":{"type":"http","path":"/ok","interval_seconds":10,"timeout_seconds":1,"threshold":3}}`,
		"service create web --external DB.example.com":                                                                     `"external":"db.example.com"}`,
		"service create web --port 80 --selector a=b --local cluster --balance random --health none --ip= --affinity none": `"ports":[{"port":80,"protocol":"tcp"}],"selector":{"a":"b"}}`,
	} {
		c, d := client(t, map[string]any{putWeb: api.Change{Changed: true, FQDN: "web.default.svc.cluster.local"}})
		code, out, errs := do(t, c, line)
		if code != exitOK || out != "web.default.svc.cluster.local\n" || errs != "" {
			t.Errorf("%s: exit code %d, %q, %q", line, code, out, errs)
		}
		if want = putWeb + ` {"tenant":"default","network":"default","name":"web",` + want; len(d.asked) != 1 || d.asked[0] != want {
			t.Errorf("%s: asked\n%q, want\n%q", line, d.asked, want)
		}
	}
}

func TestWhatWasChosenIsShownAndWhatExistsIsSaidToExist(t *testing.T) {
	conflict := api.Conflict("there is a service web already, which differs (headless: true instead of false): nothing was changed; add --replace to make it as you say")
	made := api.Service{Name: "web", Ports: []api.Port{{Name: "http", Port: 80, Protocol: "tcp", NodePort: 31234}, {Name: "dns", Port: 53, Protocol: "udp"}}}
	outside := api.Invalid("VirtualIPs", "192.0.2.1", "must be in 10.0.0.0/16, the network of services")
	taken := api.Conflict("node port 30080/tcp is that of service db in network default: nothing was changed")
	taken.Field = "NodePort"
	c, _ := client(t, map[string]any{
		"PUT /v1/services/default/default/same":    api.Change{FQDN: "same.default.svc.cluster.local", Addresses: ips("10.0.0.9")},
		putWeb:                                     conflict,
		putWeb + "?replace=true":                   api.Change{Changed: true, FQDN: "web.default.svc.cluster.local", Addresses: ips("10.0.0.206", "fd00::9"), Service: &made},
		"PUT /v1/services/default/default/outside": outside,
		"PUT /v1/services/default/default/taken":   taken,
		"PUT /v1/services/default/default/busy":    api.Change{Changed: true, Created: true, FQDN: "busy.default.svc.cluster.local", Note: "nginx listens on port 30080/tcp of host1"},
	})
	for line, want := range map[string]struct {
		code      int
		out, errs string
	}{
		"service create same --port 80 --selector a=b":          {exitOK, "same.default.svc.cluster.local 10.0.0.9 exists already, unchanged\n", ""},
		"service create web --port 80 --selector a=b":           {exitFailure, "", "flanneld: " + conflict.Message + "\n"},
		"service create web --port 80 --selector a=b --replace": {exitOK, "web.default.svc.cluster.local 10.0.0.206 fd00::9, node port http=31234/tcp\n", ""},
		"service create busy --port 80 --selector a=b":          {exitOK, "busy.default.svc.cluster.local\n", "note: nginx listens on port 30080/tcp of host1\n"},
		"service create outside --port 80 --selector a=b":       {exitUsage, "", "flanneld: VirtualIPs \"192.0.2.1\": must be in 10.0.0.0/16, the network of services (--ip)\n"},
		"service create taken --port 80 --selector a=b":         {exitFailure, "", "flanneld: " + taken.Message + " (--node-port)\n"},
	} {
		if code, out, errs := do(t, c, line); code != want.code || out != want.out || errs != want.errs {
			t.Errorf("%s: exit code %d, %q, %q", line, code, out, errs)
		}
	}
}

func TestUpdateChangesWhatIsGiven(t *testing.T) {
	have := func() api.Service {
		return api.Service{Tenant: "default", Network: "default", Name: "web", Version: "v7", Ports: []api.Port{{Name: "http", Port: 80, Protocol: "tcp", NodePort: 30080}, {Name: "dns", Port: 53, Protocol: "udp"}},
			Selector: map[string]string{"app": "sample"}, VirtualIPs: ips("10.0.0.9"), Affinity: 60, Health: &api.Health{Type: "http", Path: "/ok", Interval: 10}}
	}
	const stored = "GET /v1/services/default/default/web?stored=true"
	for line, change := range map[string]func(*api.Service){
		"--selector app=other,x=y": func(s *api.Service) { s.Selector = map[string]string{"app": "other", "x": "y"} },
		"--port http=80:8080":      func(s *api.Service) { s.Ports = s.Ports[:1]; s.Ports[0].Target = 8080 },
		"--node-port dns=30053":    func(s *api.Service) { s.Ports[1].NodePort = 30053 },
		"--node-port auto": func(s *api.Service) {
			s.Ports[0].NodePort, s.Ports[0].NodePortAuto, s.Ports[1].NodePortAuto = 0, true, true
		},
		"--node-port http=":                       func(s *api.Service) { s.Ports[0].NodePort = 0 },
		"--node-port=":                            func(s *api.Service) { s.Ports[0].NodePort = 0 },
		"--affinity=":                             func(s *api.Service) { s.Affinity = 0 },
		"--health tcp":                            func(s *api.Service) { s.Health = &api.Health{Type: "tcp", Interval: 10} },
		"--health-interval=":                      func(s *api.Service) { s.Health.Interval = 0 },
		"--health=":                               func(s *api.Service) { s.Health = nil },
		"--endpoint 192.0.2.7 --selector=":        func(s *api.Service) { s.Selector, s.Endpoints = nil, ips("192.0.2.7") },
		"--headless --affinity none --node-port=": func(s *api.Service) { s.Headless, s.VirtualIPs, s.Affinity, s.Ports[0].NodePort = true, nil, 0, 0 },
		"--ip 10.0.0.10":                          func(s *api.Service) { s.VirtualIPs = ips("10.0.0.10") },
		"--ip=":                                   func(s *api.Service) { s.VirtualIPs, s.VirtualIPsAuto = nil, true },
		"--headless --affinity= --node-port= --ip=": func(s *api.Service) { s.Headless, s.VirtualIPs, s.Affinity, s.Ports[0].NodePort = true, nil, 0, 0 },
	} {
		want := have()
		change(&want)
		c, d := client(t, map[string]any{stored: api.ServiceDetail{Service: have()},
			putWeb + "?replace=true": api.Change{Changed: true, FQDN: "web.default.svc.cluster.local", Addresses: ips("10.0.0.9"), Fields: []string{"ports", "selector"}}})
		code, out, errs := do(t, c, "service update web "+line)
		if code != exitOK || out != "web.default.svc.cluster.local 10.0.0.9 changed (ports, selector)\n" || errs != "" {
			t.Errorf("%s: exit code %d, %q, %q", line, code, out, errs)
			continue
		}
		if body := putWeb + "?replace=true " + asJSON(t, want); len(d.asked) != 2 || d.asked[1] != body {
			t.Errorf("%s: asked\n%q, want\n%q", line, d.asked[1:], body)
		}
	}
	c, _ := client(t, map[string]any{stored: api.ServiceDetail{Service: have()}, putWeb + "?replace=true": api.Change{FQDN: "web.default.svc.cluster.local"},
		"GET /v1/services/default/default/bare?stored=true":  api.ServiceDetail{Service: api.Service{Tenant: "default", Network: "default", Name: "bare", Ports: have().Ports}},
		"PUT /v1/services/default/default/bare?replace=true": api.Change{Changed: true, FQDN: "bare.default.svc.cluster.local", Fields: []string{"local"}},
		"GET /v1/services/default/default/no?stored=true":    api.NotFound("there is no service no in network default")})
	for line, want := range map[string]struct {
		code int
		says string
	}{
		"web --local cluster":          {exitOK, "web.default.svc.cluster.local was so before, unchanged\n"},
		"no --local cluster":           {exitFailure, "flanneld: there is no service no in network default\n"},
		"web":                          {exitUsage, "nothing to change"},
		"web --selector=":              {exitUsage, "nothing would belong to the service: give labels to select containers by, or addresses as endpoints (--selector)"},
		"bare --local local":           {exitOK, "changed (local)"},
		"web --port=":                  {exitUsage, "Ports: is missing"},
		"web --balance hash":           {exitUsage, "Affinity = 60 s: must be none if Balance is hash, which sends a client to one endpoint by itself (--affinity)"},
		"web --node-port 30080":        {exitUsage, "as in http=30080"},
		"web --external a.example.com": {exitUsage, "Ports: must be left out with External"},
	} {
		if code, out, errs := do(t, c, "service update "+line); code != want.code || !strings.Contains(out+errs, want.says) {
			t.Errorf("%s: exit code %d, %q, %q", line, code, out, errs)
		}
	}
}

// asJSON is v as a request's body.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	var out strings.Builder
	printJSON(&out, v)
	text := strings.ReplaceAll(out.String(), "\n", "")
	for strings.Contains(text, "  ") {
		text = strings.ReplaceAll(text, "  ", "")
	}
	return strings.ReplaceAll(text, `": `, `":`)
}

func TestMistypedServiceCommandsSayWhatToType(t *testing.T) {
	c, d := client(t, nil)
	const web = "service create web --selector a=b --port http=80 "
	for line, says := range map[string]string{
		"service":                                                "create",
		"service make web":                                       "create, delete, describe, list, update",
		"service create":                                         "needed after the command",
		"service create a b --selector a=b":                      `"b"`,
		"service create web":                                     "(--selector)",
		"service create web --port 80":                           "nothing would belong to the service",
		"service create web --selector a=b":                      "Ports: is missing: give at least one, or make the service headless, whose name stands for the endpoints themselves (--port)",
		"service create web --selector a":                        "LABEL=VALUE",
		"service create web --selector a=1,a=2":                  "twice",
		"service create web --port":                              "port",
		"service create web --port http":                         "http=8888",
		"service create web --port 0":                            "65535",
		"service create web --port 70000":                        "65535",
		"service create web --port 80/http":                      `--port "80/http": there is no protocol "http": use tcp, udp or sctp`,
		"service create web --port 80:x_":                        `"x_"`,
		"service create web --port =80":                          "empty",
		"service create web --endpoint web":                      "192.0.2.7",
		"service create web --local here -selector a=b -port 80": `Local = "here": must be cluster, local or prefer-local (--local)`,
		"service create a.b --selector a=b --port 80":            `Name = "a.b"`,
		web + "--port b=80":                                      "80/tcp: is there twice (--port)",
		web + "--port 81":                                        "is missing: only a single port needs none",
		web + "--ip 10.0.0":                                      `--ip "10.0.0": give an IP address`,
		web + "--ip 127.0.0.1":                                   "must be unicast addresses that others can reach (--ip)",
		web + "--node-port 8080":                                 `--node-port "8080": give a number from 30000 to 32767, or auto`,
		web + "--node-port dns=30053":                            "the service has no such port",
		web + "--node-port auto --headless":                      "must be none if Headless is true (--node-port)",
		web + "--affinity cookie":                                "client-ip=3h",
		web + "--affinity client-ip=8d":                          "whole seconds",
		web + "--affinity client-ip=99999999h":                   `--affinity "client-ip=99999999h": give a time of whole seconds, at most 168h (7 days), such as client-ip=3h`,
		web + "--affinity client-ip=200h":                        `--affinity "client-ip=200h": give a time of whole seconds, at most 168h (7 days)`,
		web + "--affinity client-ip --affinity none":             "is one too many",
		web + "--affinity client-ip --balance hash":              "must be none if Balance is hash",
		web + "--balance fair":                                   "random, round-robin or hash (--balance)",
		web + "--health ping":                                    "tcp, http:/PATH",
		web + "--health-interval 5s":                             "say how with health",
		web + "--health tcp --health-interval 2h":                "must be from 1 to 3600, or 0 for what is usual (--health-interval)",
		web + "--external a.example.com":                         "must be left out with External",
		web + "--headless=maybe":                                 "give true or false",
		"service create db --external 192.0.2.7":                 "must be a name in the DNS",
		"service list -o yaml":                                   "json",
		"service describe":                                       "needed after the command",
		"service describe web -o yaml":                           "json",
		"service update":                                         "needed after the command",
		"service delete":                                         "needed after the command",
	} {
		if code, _, errs := do(t, c, line); code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, said %q", line, code, errs)
		}
	}
	if len(d.asked) > 0 {
		t.Errorf("asked %q", d.asked)
	}
}

func TestEveryServiceCommandHasHelpWithAnExample(t *testing.T) {
	c, _ := client(t, nil)
	for _, line := range []string{"service create", "service list", "service describe", "service update", "service delete", "apply"} {
		code, out, _ := do(t, c, line+" --help")
		if code != exitOK || !strings.Contains(out, "\n  flanneld "+line) {
			t.Errorf("%s: exit code %d, help without an example:\n%s", line, code, out)
		}
	}
	if code, out, _ := do(t, c, "service help"); code != exitOK || !strings.HasPrefix(out, "usage: flanneld") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestServiceIsDeleted(t *testing.T) {
	c, _ := client(t, map[string]any{"DELETE /v1/services/default/default/web": api.Change{Changed: true},
		"DELETE /v1/services/default/default/odd": api.Change{Changed: true, Note: "the record could not be read"}})
	for name, note := range map[string]string{"web": "", "odd": "note: the record could not be read\n"} {
		if code, out, errs := do(t, c, "service delete "+name); code != exitOK || out != "" || errs != note {
			t.Errorf("%s: exit code %d, %q, %q", name, code, out, errs)
		}
	}
}

func TestListOfServicesWithVeryMuchStaysReadable(t *testing.T) {
	var s api.Service
	for i := range 1001 {
		s.Endpoints = append(s.Endpoints, ips(fmt.Sprintf("192.0.%d.%d", i/200, i%200+1))...)
	}
	for i := range uint16(4) {
		s.Ports = append(s.Ports, api.Port{Name: fmt.Sprint("p", i), Port: 80 + i, Protocol: "tcp", NodePort: 30080 + i})
	}
	var out strings.Builder
	printServices(&out, []api.Service{s})
	for _, want := range []string{"  192.0.0.1 192.0.0.2 192.0.0.3 and 998 more  ", "  p0=80/tcp, p1=81/tcp, p2=82/tcp and 1 more  ", "p2=30082/tcp and 1 more  "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestServiceIsDescribedWithWhatIsNotReadyAndWhy(t *testing.T) {
	web := api.ServiceDetail{FQDN: "web.default.svc.cluster.local", Service: api.Service{Tenant: "default", Network: "default", Name: "web",
		Ports:    []api.Port{{Name: "http", Port: 80, TargetName: "web", Protocol: "tcp", NodePort: 30080}, {Name: "dns", Port: 53, Target: 5353, Protocol: "udp"}},
		Selector: map[string]string{"app": "sample"}, Endpoints: ips("192.0.2.7"), VirtualIPs: ips("10.0.0.206", "fd00::9"), Affinity: 5400, Local: "prefer-local", Balance: "round-robin",
		Health: &api.Health{Type: "http", Path: "/ok", Interval: 90, Threshold: 3}, Version: "v7", State: &api.ServiceState{Endpoints: 2, LeftOut: 2}},
		Behind: []api.Behind{{Host: "host3", Name: "web-4", Why: "it has no address"}, {Address: ips("10.1.7.12")[0], Host: "host2", Name: "web-2", Why: "unhealthy: connection refused"},
			{Address: ips("10.1.19.3")[0], Host: "host1", Name: "web-1", Ready: true, Why: "port 80/tcp: its label flanneld.io/port-web is missing"}, {Address: ips("192.0.2.7")[0], Ready: true}},
		Problems: []string{"node port 30080/tcp is service db's: take another"}}
	c, _ := client(t, map[string]any{
		"GET /v1/services/default/default/web":  web,
		"GET /v1/services/default/default/mail": api.ServiceDetail{FQDN: "mail.default.svc.cluster.local", Service: api.Service{Name: "mail", External: "mx.example.com", State: &api.ServiceState{}}},
		"GET /v1/services/default/default/none": api.ServiceDetail{FQDN: "none.default.svc.cluster.local", Service: api.Service{Name: "none", Headless: true, Selector: map[string]string{"app": "x"}, State: &api.ServiceState{}}},
		"GET /v1/services/default/default/bare": api.ServiceDetail{FQDN: "bare.default.svc.cluster.local", Service: api.Service{Name: "bare", Ports: web.Ports[1:], VirtualIPs: ips("10.0.0.7"), State: &api.ServiceState{}}},
		"GET /v1/services/default/default/no":   api.NotFound("there is no service no in network default"),
	})
	var all strings.Builder
	for _, name := range []string{"web", "mail", "none", "bare", "no"} {
		code, out, errs := do(t, c, "service describe "+name)
		if (code == exitOK) == (name == "no") {
			t.Errorf("%s: exit code %d", name, code)
		}
		all.WriteString("$ flanneld service describe " + name + "\n" + out + errs + "\n")
	}
	golden(t, "service-describe.txt", all.String())
	_, out, _ := do(t, c, "service describe web -o json")
	golden(t, "service-describe.json", out)
}

const manifests = `apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: sample}}
spec:
  type: NodePort
  ports: [{port: 80, targetPort: web}]
  selector: {app: sample}
---
kind: Service
name: db
external: db.example.com
---
kind: Service
name: cache
port: 6379
ip: 10.0.0.7
selector: app=cache
`

func TestFileIsAppliedAfterAllOfItWasChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.yaml")
	if err := os.WriteFile(path, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	made := api.Service{Ports: []api.Port{{Port: 80, TargetName: "web", Protocol: "tcp", NodePort: 31000}}}
	web := api.Change{Created: true, Changed: true, FQDN: "web.default.svc.cluster.local", Addresses: ips("10.0.0.206"), Service: &made}
	db := api.Change{FQDN: "db.default.svc.cluster.local"}
	cache := api.Change{Changed: true, FQDN: "cache.default.svc.cluster.local", Addresses: ips("10.0.0.7"), Fields: []string{"ports", "virtual ip"}}
	outside := api.Conflict("virtual IP 10.0.0.7 is that of service x in network default: nothing was changed")
	outside.Field = "VirtualIPs"
	answers := map[string]any{}
	for name, ch := range map[string]api.Change{"web": web, "db": db, "cache": cache} {
		answers["PUT /v1/services/default/default/"+name+"?dry_run=true&replace=true"] = ch
		answers["PUT /v1/services/default/default/"+name+"?replace=true"] = ch
	}
	c, d := client(t, answers)
	var all strings.Builder
	try := func(what string, args ...string) int {
		var out, errs strings.Builder
		code := applyWith(t.Context(), c, strings.NewReader(manifests), args, &out, &errs)
		all.WriteString("# " + what + "\n" + strings.ReplaceAll(errs.String(), path, "services.yaml") + out.String() + "\n")
		return code
	}
	if code := try("to see", "-f", "-", "--dry-run"); code != exitOK || len(d.asked) != 3 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	d.asked = nil
	if code := try("for good", "-f", path); code != exitOK || len(d.asked) != 6 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	want := `PUT /v1/services/default/default/web?replace=true {"tenant":"default","network":"default","name":"web","ports":[{"port":80,"target_name":"web","protocol":"tcp","node_port_auto":true}],"selector":{"app":"sample"}}`
	if len(d.asked) > 3 && d.asked[3] != want {
		t.Errorf("asked %s, want %s", d.asked[3], want)
	}
	d.asked = nil
	answers["PUT /v1/services/default/default/cache?dry_run=true&replace=true"] = outside
	if code := try("one is refused", "-f", path); code != exitFailure || len(d.asked) != 3 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	d.asked = nil
	answers["PUT /v1/services/default/default/web?dry_run=true&replace=true"] = api.Unavailable("etcd is out of reach, nothing was changed: timeout")
	if code := try("all would be refused", "-f", path); code != exitFailure || len(d.asked) != 1 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	d.asked = nil
	delete(answers, "PUT /v1/services/default/default/web?dry_run=true&replace=true")
	answers["PUT /v1/services/default/default/cache?dry_run=true&replace=true"] = &api.Error{Status: 400, Field: "VirtualIPs", Message: "VirtualIPs = 10.0.0.7: must be in 10.9.0.0/16, the network of services"}
	if code := try("one is refused, only to see", "-f", path, "--dry-run"); code != exitUsage || len(d.asked) != 3 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	d.asked = nil
	if code := try("two are refused", "-f", path); code != exitUsage || len(d.asked) != 3 {
		t.Errorf("exit code %d, asked %q", code, d.asked)
	}
	golden(t, "apply.txt", all.String())
}

func TestFileWithMistakesChangesNothing(t *testing.T) {
	c, d := client(t, nil)
	for text, says := range map[string]string{
		"kind: Service\nname: web\nport: 80/http\nselector: a=b\n": `standard input: line 3: port = "80/http": there is no protocol "http": use tcp, udp or sctp`,
		"":        "standard input: line 1: there is no service in the file",
		"a: b: c": "is neither YAML nor JSON",
	} {
		var out, errs strings.Builder
		code := applyWith(t.Context(), c, strings.NewReader(text), []string{"-f", "-"}, &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), says) || !strings.Contains(errs.String(), "nothing was changed") {
			t.Errorf("%q: exit code %d, said %q", text, code, errs.String())
		}
	}
	dir := t.TempDir()
	if code, _, errs := do(t, c, "apply -f "+dir); code != exitFailure || errs != "flanneld: "+dir+" is a directory: give a file, or - for standard input\n" {
		t.Errorf("exit code %d, said %q", code, errs)
	}
	for line, want := range map[string]int{"apply": exitUsage, "apply services.yaml": exitUsage, "apply -f /nonexistent/services.yaml": exitFailure} {
		if code, _, errs := do(t, c, line); code != want || !strings.Contains(errs, "file") && !strings.Contains(errs, "services.yaml") {
			t.Errorf("%s: exit code %d, said %q", line, code, errs)
		}
	}
	if len(d.asked) > 0 {
		t.Errorf("asked %q", d.asked)
	}
}
