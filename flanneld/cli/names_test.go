package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
)

// canned answers requests, "METHOD path?query", with what it was given, and
// remembers them with their bodies.
type canned struct {
	answers map[string]any
	asked   []string
}

func (d *canned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Method + " " + r.URL.RequestURI()
	body, _ := io.ReadAll(r.Body)
	d.asked = append(d.asked, strings.TrimSpace(key+" "+string(body)))
	answer, ok := d.answers[key]
	if !ok {
		answer = &api.Error{Status: http.StatusNotFound, Message: "unexpected " + key}
	}
	if e, ok := answer.(*api.Error); ok {
		w.WriteHeader(e.Status)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// client of a daemon that gives these answers.
func client(t *testing.T, answers map[string]any) (*api.Client, *canned) {
	t.Helper()
	d := &canned{answers: answers}
	s := httptest.NewUnstartedServer(d)
	_ = s.Listener.Close()
	socket := filepath.Join(t.TempDir(), "s")
	var err error
	if s.Listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	return api.NewClient(socket), d
}

// do runs a command line, such as "service list".
func do(t *testing.T, c *api.Client, line string) (code int, stdout, stderr string) {
	t.Helper()
	groups := map[string]func(context.Context, *api.Client, []string, io.Writer, io.Writer) int{"service": serviceWith, "dns": dnsWith, "publish": publishWith, "endpoint": endpointWith,
		"apply": func(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
			return applyWith(ctx, c, strings.NewReader(""), args, stdout, stderr)
		}}
	args := strings.Fields(line)
	var out, errs strings.Builder
	code = groups[args[0]](t.Context(), c, args[1:], &out, &errs)
	return code, out.String(), errs.String()
}

func ips(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestMistypedNamesCommandsSayWhatToType(t *testing.T) {
	c, d := client(t, nil)
	for line, says := range map[string]string{
		"dns":                      "lookup",
		"dns find web":             "lookup",
		"dns add db":               "needed after the command",
		"dns add 192.0.2.7 db":     "name comes first",
		"dns add db 192.0.2":       "192.0.2.7",
		"dns remove":               "needed after the command",
		"dns lookup":               "needed after the command",
		"dns lookup web ADDRESS":   "AAAA",
		"dns lookup web A B":       `"B"`,
		"dns lookup web --verbose": "verbose",
	} {
		if code, _, errs := do(t, c, line); code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d, said %q", line, code, errs)
		}
	}
	if len(d.asked) > 0 {
		t.Errorf("asked %q", d.asked)
	}
}

func TestEveryNamesCommandHasHelpWithAnExample(t *testing.T) {
	c, _ := client(t, nil)
	for _, line := range []string{"dns lookup", "dns add", "dns remove", "dns list"} {
		code, out, _ := do(t, c, line+" --help")
		if code != exitOK || !strings.Contains(out, "\n  flanneld "+line) {
			t.Errorf("%s: exit code %d, help without an example:\n%s", line, code, out)
		}
	}
	for _, line := range []string{"dns --help"} {
		if code, out, _ := do(t, c, line); code != exitOK || !strings.HasPrefix(out, "usage: flanneld") {
			t.Errorf("%s: exit code %d\n%s", line, code, out)
		}
	}
}

func TestNamesAreAddedAndRemovedAsTyped(t *testing.T) {
	c, d := client(t, map[string]any{
		"PUT /v1/names/default/default/db":                                                api.Change{Changed: true, FQDN: "db.default.cluster.local", Addresses: ips("192.0.2.7", "2001:db8::7")},
		"PUT /v1/names/default/default/old":                                               api.Change{FQDN: "old.default.cluster.local", Addresses: ips("192.0.2.7")},
		"DELETE /v1/names/default/default/db?address=192.0.2.7&address=2001%3Adb8%3A%3A7": api.Change{Changed: true, FQDN: "db.default.cluster.local"},
		"DELETE /v1/names/default/default/www.shop":                                       api.Change{Changed: true, FQDN: "www.shop.default.cluster.local"},
		"DELETE /v1/services/default/default/web":                                         api.Change{Changed: true},
	})
	for line, want := range map[string]string{
		"dns add db 192.0.2.7 2001:db8::7":                      "db.default.cluster.local 192.0.2.7 2001:db8::7\n",
		"dns add old --network default 192.0.2.7":               "old.default.cluster.local 192.0.2.7, unchanged\n",
		"dns remove db 192.0.2.7,2001:db8::7 --network=default": "db.default.cluster.local is gone\n",
		"dns remove www.shop":                                   "www.shop.default.cluster.local is gone\n",
	} {
		if code, out, errs := do(t, c, line); code != exitOK || out != want {
			t.Errorf("%s: exit code %d, %q, %q", line, code, out, errs)
		}
	}
	if i := slices.IndexFunc(d.asked, func(a string) bool { return strings.HasPrefix(a, "PUT /v1/names/default/default/db ") }); i < 0 || !strings.HasSuffix(d.asked[i], `"addresses":["192.0.2.7","2001:db8::7"]}`) {
		t.Errorf("asked %q", d.asked)
	}
}

func lists() map[string]any {
	return map[string]any{
		"GET /v1/services": api.ServiceList{Services: []api.Service{
			{Tenant: "default", Network: "default", Name: "db", Ports: []api.Port{{Port: 5432, Protocol: "tcp"}}, Endpoints: ips("192.0.2.7", "192.0.2.8"), Headless: true, State: &api.ServiceState{Endpoints: 2}},
			{Tenant: "default", Network: "default", Name: "frontend", Ports: []api.Port{{Name: "http", Port: 80, Target: 8888, Protocol: "tcp", NodePort: 30080}, {Name: "dns", Port: 53, Protocol: "udp"}},
				Selector: map[string]string{"tier": "front", "app": "sample"}, VirtualIPs: ips("10.0.0.20"), State: &api.ServiceState{Endpoints: 3, LeftOut: 1}},
			{Tenant: "default", Network: "default", Name: "mail", External: "mx.example.com", State: &api.ServiceState{}},
			{Tenant: "default", Network: "default", Name: "none", Selector: map[string]string{"app": "x"}, State: &api.ServiceState{}},
		}},
		"GET /v1/names": api.NameList{Names: []api.Name{
			{Tenant: "default", Network: "default", Name: "db", Addresses: ips("192.0.2.7", "2001:db8::7"), FQDN: "db.default.cluster.local"},
			{Tenant: "default", Network: "default", Name: "www.shop", Addresses: ips("192.0.2.9"), FQDN: "www.shop.default.cluster.local"},
		}},
	}
}

func TestListsReadAtAGlance(t *testing.T) {
	c, _ := client(t, lists())
	for line, file := range map[string]string{"service list": "service-list.txt", "dns list": "dns-list.txt", "service list -o json": "service-list.json", "dns list -o json": "dns-list.json"} {
		code, out, errs := do(t, c, line)
		if code != exitOK || errs != "" {
			t.Errorf("%s: exit code %d, %q", line, code, errs)
		}
		golden(t, file, out)
	}
	empty, _ := client(t, map[string]any{"GET /v1/services": api.ServiceList{}, "GET /v1/names": api.NameList{}})
	for _, line := range []string{"service list", "dns list"} {
		if code, out, _ := do(t, empty, line); code != exitOK || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", line, code, out)
		}
	}
}

func lookups() map[string]any {
	a := func(name, data, source string) api.Record {
		return api.Record{Name: name, TTL: 5, Type: "A", Data: data, Source: source}
	}
	const web, front = "web.default.cluster.local.", "frontend.default.svc.cluster.local."
	return map[string]any{
		"GET /v1/lookup?name=web&type=": api.Lookup{Name: web, Type: "A", Rcode: "NOERROR", Tried: []string{"web.default.svc.cluster.local."}, View: "default", Zone: "cluster.local.",
			Answers: []api.Record{a(web, "10.1.19.3", "container web on host1"), a(web, "10.1.7.12", "container web on host2")}},
		"GET /v1/lookup?name=web&type=AAAA": api.Lookup{Name: web, Type: "AAAA", Rcode: "NOERROR", View: "default", Zone: "cluster.local.",
			Answers: []api.Record{{Name: web, TTL: 5, Type: "AAAA", Data: "fd00:1:0:19::3", Source: "container web on host1"}}},
		"GET /v1/lookup?name=frontend&type=": api.Lookup{Name: front, Type: "A", Rcode: "NOERROR", View: "default", Zone: "cluster.local.",
			Answers: []api.Record{a(front, "10.1.19.3", "container web on host1, by service frontend")},
			LeftOut: []api.LeftOut{{Data: "10.1.9.5", Source: "container web-3 on host3", Why: "host3 has been silent for 20s"}, {Data: "10.1.7.12", Source: "container web-2 on host2", Why: "unhealthy: connection refused"}}},
		"GET /v1/lookup?name=frontend&type=AAAA": api.Lookup{Name: front, Type: "AAAA", Rcode: "NOERROR", View: "default", Zone: "cluster.local.", Answers: []api.Record{}},
		"GET /v1/lookup?name=_http._tcp.frontend.default.svc&type=srv": api.Lookup{Name: "_http._tcp." + front, Type: "SRV", Rcode: "NOERROR", View: "default", Zone: "cluster.local.",
			Answers:    []api.Record{{Name: "_http._tcp." + front, TTL: 5, Type: "SRV", Data: "0 100 8888 10-1-19-3." + front, Source: "service frontend"}},
			Additional: []api.Record{a("10-1-19-3."+front, "10.1.19.3", "container web on host1")}},
		"GET /v1/lookup?name=example.org&type=A": api.Lookup{Name: "example.org.", Type: "A", Rcode: "NOERROR", View: "default", Upstream: "192.0.2.53:53, 12ms",
			Answers: []api.Record{{Name: "example.org.", TTL: 3600, Type: "A", Data: "192.0.2.80"}}, Notes: []string{"kept for another 59m"}},
		"GET /v1/lookup?name=nobody&type=":     api.Lookup{Name: "nobody.default.svc.cluster.local.", Type: "A", Rcode: "NXDOMAIN", Tried: []string{"nobody.default.cluster.local.", "nobody."}, View: "default", Zone: "cluster.local."},
		"GET /v1/lookup?name=nobody&type=AAAA": api.Lookup{Name: "nobody.default.svc.cluster.local.", Type: "AAAA", Rcode: "NXDOMAIN"},
		"GET /v1/lookup?name=broken&type=A":    api.Lookup{Name: "broken.", Type: "A", Rcode: "SERVFAIL", Upstream: "192.0.2.53:53", Notes: []string{"no reply within 2s"}},
	}
}

func TestLookupAnswersAsDigAndExplains(t *testing.T) {
	c, _ := client(t, lookups())
	var all strings.Builder
	for _, tc := range []struct {
		line string
		code int
	}{
		{"dns lookup web", 0}, {"dns lookup web -v", 0}, {"dns lookup -v frontend", 0}, {"dns lookup _http._tcp.frontend.default.svc srv -v", 0},
		{"dns lookup example.org A -v", 0}, {"dns lookup nobody", 1}, {"dns lookup nobody -v", 1}, {"dns lookup frontend AAAA", 1}, {"dns lookup broken A", 1},
	} {
		code, out, errs := do(t, c, tc.line)
		if code != tc.code {
			t.Errorf("%s: exit code %d, want %d", tc.line, code, tc.code)
		}
		fmt.Fprintf(&all, "$ flanneld %s\n%s%s\n", tc.line, out, errs)
	}
	golden(t, "dns-lookup.txt", all.String())
	_, out, _ := do(t, c, "dns lookup web -o json")
	golden(t, "dns-lookup.json", out)
}

func TestOlderDaemonIsSaidToBeOlder(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	_ = s.Listener.Close()
	socket := filepath.Join(t.TempDir(), "s")
	var err error
	if s.Listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	if code, _, errs := do(t, api.NewClient(socket), "service list"); code != exitFailure || !strings.Contains(errs, "restart it") {
		t.Errorf("exit code %d, said %q", code, errs)
	}
}
