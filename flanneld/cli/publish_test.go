package cli

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
)

func TestPortsArePublishedAsTyped(t *testing.T) {
	const tcp, udp = "PUT /v1/publications/default/host1/tcp/8080", "PUT /v1/publications/default/host-1.lan/udp/53"
	c, d := client(t, map[string]any{
		tcp: api.Published{Changed: true, Notes: []string{"no container is called web now"}},
		udp: api.Published{},
		"DELETE /v1/publications/default/host1/tcp/8080": api.Published{Changed: true},
		"DELETE /v1/publications/default/host1/sctp/80":  api.Published{Changed: true},
		"DELETE /v1/publications/default/host1/tcp/81":   api.NotFound("nothing is published at host1:81"),
		"PUT /v1/publications/default/host1/tcp/9":       api.Conflict("host1:9 already leads to db:5432: nothing was changed"),
		"PUT /v1/publications/default/host9/tcp/9":       api.Invalid("host", "host9", "there is none of that name, only host1"),
	})
	for _, tc := range []struct {
		line string
		code int
		out  string
		errs string
		body string
	}{
		{"publish host1:8080 web:80", exitOK, "host1:8080 leads to web:80\n", "note: no container is called web now\n",
			tcp + ` {"tenant":"default","host":"host1","protocol":"tcp","port":8080,"network":"default","target":"web","target_port":80}`},
		{"publish --network default host-1.lan:53 dns:5353/UDP", exitOK, "host-1.lan:53/udp leads to dns:5353, unchanged\n", "",
			udp + ` {"tenant":"default","host":"host-1.lan","protocol":"udp","port":53,"network":"default","target":"dns","target_port":5353}`},
		{"publish host-1.lan:53/udp 0123456789ab:5353/udp", exitOK, "host-1.lan:53/udp leads to 0123456789ab:5353, unchanged\n", "", ""},
		{"publish host1:9 web:80", exitFailure, "", "flanneld: host1:9 already leads to db:5432: nothing was changed\n", ""},
		{"publish host9:9 web:80", exitUsage, "", "flanneld: host \"host9\": there is none of that name, only host1\n", ""},
		{"publish remove host1:8080", exitOK, "", "", ""},
		{"publish remove host1:80/sctp", exitOK, "", "", ""},
		{"publish remove host1:81", exitFailure, "", "flanneld: nothing is published at host1:81\n", ""},
	} {
		d.asked = nil
		if code, out, errs := do(t, c, tc.line); code != tc.code || out != tc.out || errs != tc.errs {
			t.Errorf("%s: exit code %d, %q, %q", tc.line, code, out, errs)
		}
		if tc.body != "" && (len(d.asked) != 1 || d.asked[0] != tc.body) {
			t.Errorf("%s: asked %q", tc.line, d.asked)
		}
	}
}

func TestMistypedPublicationsSayWhatToType(t *testing.T) {
	c, d := client(t, nil)
	for line, says := range map[string]string{
		"publish":                         "usage: flanneld publish HOST:PORT",
		"publish ls":                      "2 arguments needed",
		"publish host1:80":                "2 arguments needed",
		"publish host1 web:80":            "HOST:PORT, such as host1:8080",
		"publish host1:x web:80":          "from 1 to 65535",
		"publish host1:0 web:80":          "from 1 to 65535",
		"publish host1:70000 web:80":      "from 1 to 65535",
		"publish 192.0.2.1:80 web:80":     "name instead of an address",
		"publish [fd00::1]:80 web:80":     "name instead of an address",
		"publish fd00::1:80 web:80":       "name instead of an address",
		"publish :80 web:80":              "HOST:PORT",
		"publish host1:80 web":            "CONTAINER:PORT, such as web:80",
		"publish host1:80 10.1.2.3:80":    "name instead of an address",
		"publish host1:80 web:80/http":    "tcp, udp or sctp",
		"publish host1:80/tcp web:80/udp": "one protocol",
		"publish host1:80 web:80 db:80":   `"db:80"`,
		"publish remove":                  "1 argument needed",
		"publish remove host1":            "HOST:PORT",
		"publish list host1":              `"host1"`,
		"endpoint":                        "label",
		"endpoint show":                   "label, list",
		"endpoint list web":               `"web"`,
		"endpoint label web":              "2 arguments needed",
		"endpoint label web app":          "KEY=VALUE to set a label, or KEY- to remove it",
		"endpoint label web =x":           "KEY=VALUE",
		"endpoint label web app=a app=b":  "twice",
		"endpoint label web app=a --all":  "all",
		"endpoint list --host":            "host",
		"endpoint list -o wide":           "json",
	} {
		if code, _, errs := do(t, c, line); code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, said %q", line, code, errs)
		}
	}
	if len(d.asked) > 0 {
		t.Errorf("asked %q", d.asked)
	}
}

func TestContainersAreLabelledAsTyped(t *testing.T) {
	const post = "POST /v1/endpoints/web/labels"
	c, d := client(t, map[string]any{
		post:                              api.Relabelled{Changed: true, Container: "0123456789abcdef", Labels: map[string]string{"app": "sample", "tier": "front-"}},
		"POST /v1/endpoints/old/labels":   api.Relabelled{Container: "fedcba9876543210"},
		"POST /v1/endpoints/other/labels": api.Conflict("other is attached to host2: run flanneld endpoint label there"),
	})
	if code, out, errs := do(t, c, "endpoint label web app=sample tier=front- old- older-"); code != exitOK || out != "0123456789ab app=sample,tier=front-\n" || errs != "" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if want := post + ` {"set":{"app":"sample","tier":"front-"},"remove":["old","older"]}`; len(d.asked) != 1 || d.asked[0] != want {
		t.Errorf("asked %q", d.asked)
	}
	if code, out, _ := do(t, c, "endpoint label old x-"); code != exitOK || out != "fedcba987654 has no labels, unchanged\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
	if code, _, errs := do(t, c, "endpoint label other x-"); code != exitFailure || !strings.Contains(errs, "attached to host2") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

func TestPublicationsAndEndpointsReadAtAGlance(t *testing.T) {
	c, _ := client(t, map[string]any{
		"GET /v1/publications": api.PublicationList{Publications: []api.Publication{
			{Tenant: "default", Host: "host1", Protocol: "tcp", Port: 8080, Network: "default", Target: "web", TargetPort: 80, State: &api.PublicationState{Containers: 3, LeftOut: 1}},
			{Tenant: "default", Host: "host2", Protocol: "udp", Port: 53, Network: "default", Target: "dns", TargetPort: 5353, State: &api.PublicationState{}},
		}},
		"GET /v1/endpoints": api.EndpointList{Endpoints: []api.Endpoint{
			{Tenant: "default", Network: "default", Container: "0123456789abcdef", Interface: "eth0", Host: "host1", Names: []string{"web", "web-1"}, Addresses: ips("10.1.19.3", "fd00:1:19::3"), Labels: map[string]string{"tier": "front", "app": "sample"}},
			{Tenant: "default", Network: "default", Container: "fedcba9876543210", Interface: "eth0", Host: "host2", Namespace: "shop", Names: []string{"db"}, Addresses: ips("10.1.7.12"), NotReady: "unhealthy for db: connection refused"},
			{Tenant: "default", Network: "default", Container: "aaaabbbbccccdddd", Interface: "eth0", Host: "host3", Addresses: ips("10.1.9.5"), NotReady: "host3 is not alive: it has no record under hosts/"},
		}},
	})
	for line, file := range map[string]string{
		"publish list": "publish-list.txt", "publish list -o json": "publish-list.json",
		"endpoint list": "endpoint-list.txt", "endpoint list -o json": "endpoint-list.json", "endpoint list --host host2": "endpoint-list-host2.txt",
	} {
		code, out, errs := do(t, c, line)
		if code != exitOK || errs != "" {
			t.Errorf("%s: exit code %d, %q", line, code, errs)
		}
		golden(t, file, out)
	}
}

func TestEveryPublishAndEndpointCommandHasHelpWithAnExample(t *testing.T) {
	c, _ := client(t, nil)
	for line, example := range map[string]string{
		"publish --help": "publish host1:8080 web:80", "publish host1:80 --help": "publish host1:8080 web:80", "publish list --help": "publish list",
		"publish remove --help": "publish remove host1:8080", "endpoint help": "endpoint list", "endpoint list --help": "endpoint list", "endpoint label --help": "endpoint label web",
	} {
		if code, out, _ := do(t, c, line); code != exitOK || !strings.Contains(out, "\n  flanneld "+example) {
			t.Errorf("%s: exit code %d, help without an example:\n%s", line, code, out)
		}
	}
}

func FuzzPublication(f *testing.F) {
	for _, s := range []string{"host1:80 web:80", "host1:53/udp dns:53/udp", ": :", "a:1/ b:2/"} {
		from, to, _ := strings.Cut(s, " ")
		f.Add(from, to)
	}
	f.Fuzz(func(t *testing.T, from, to string) {
		p, err := publication(from, to)
		if err != nil {
			return
		}
		again, err := publication(p.At(), p.To())
		if err != nil || again != p {
			t.Errorf("%q %q is %+v, which is %+v, %v", from, to, p, again, err)
		}
	})
}
