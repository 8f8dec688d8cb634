package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// book is Names in memory.
type book struct {
	mu       sync.Mutex
	services map[string]*service.Service
	names    map[string]*zone.Name
	err      error // of every edit
	answers  map[string]api.Lookup
	asked    []string
	broken   string // what cannot be looked up
	writes   int
}

var _ Names = &book{}

func newBook() *book {
	return &book{services: map[string]*service.Service{}, names: map[string]*zone.Name{}, answers: map[string]api.Lookup{}}
}

func (b *book) Services(context.Context) (out []ServiceState, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b.services)) {
		out = append(out, ServiceState{b.services[k], 2, 1})
	}
	return out, nil
}

func (b *book) AddedNames(context.Context) (out []*zone.Name, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b.names)) {
		out = append(out, b.names[k])
	}
	return out, nil
}

func edit[T any](b *book, in map[string]*T, key string, f func(*T) (*T, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if _, err := f(in[key]); err != nil && !errors.Is(err, ErrDryRun) { // a conflict: once more
		return err
	}
	want, err := f(in[key])
	switch {
	case errors.Is(err, ErrDryRun):
		return nil
	case err != nil:
		return err
	case want == in[key]:
		return nil
	case want == nil:
		delete(in, key)
	default:
		in[key] = want
	}
	b.writes++
	return nil
}

func (b *book) EditService(_ context.Context, tenant, network, name string, f func(*service.Service) (*service.Service, error)) error {
	return edit(b, b.services, tenant+"/"+network+"/"+name, func(have *service.Service) (*service.Service, error) {
		want, err := f(have)
		if want != nil && want != have {
			choose(want)
		}
		return want, err
	})
}

// choose fills in what the daemon would choose.
func choose(s *service.Service) {
	if !s.Headless && s.External == "" && len(s.VirtualIPs) == 0 {
		s.VirtualIPs = addrs("10.0.0.99")
	}
	for i, p := range s.Ports {
		if p.NodePort == service.AutoPort {
			s.Ports[i].NodePort = 31000 + uint16(i)
		}
	}
}

// NodePortNotes: a program has port 30080.
func (b *book) NodePortNotes(s *service.Service) (notes []string) {
	for _, p := range s.Ports {
		if p.NodePort == 30080 {
			notes = append(notes, "nginx listens on port 30080")
		}
	}
	return notes
}

// Describe knows of one endpoint that is ready, and of one that is not.
func (b *book) Describe(_ context.Context, tenant, network, name string) (*Described, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.services[tenant+"/"+network+"/"+name]
	if !ok {
		return nil, nil
	}
	return &Described{s, []api.Behind{{Address: addrs("10.1.7.3")[0], Host: "host2", Name: "web-2", Why: "unhealthy: connection refused"},
		{ID: "host1,4f66ad9a2b1c,eth0", Address: addrs("10.1.19.3")[0], Host: "host1", Name: "web-1", Ready: true},
		{ID: "host1,4f66ad9a2b1c,eth0", Address: addrs("fd00::3")[0], Host: "host1", Name: "web-1", Why: "the service has no IPv6 address"}}, []string{"node port 30080 is another's"}}, nil
}

func (b *book) EditName(_ context.Context, tenant, network, name string, f func(*zone.Name) (*zone.Name, error)) error {
	return edit(b, b.names, tenant+"/"+network+"/"+name, f)
}

func (b *book) Lookup(_ context.Context, name string, qtype uint16) (api.Lookup, error) {
	b.asked = append(b.asked, name)
	if name == b.broken {
		return api.Lookup{}, errors.New("no upstream answers")
	}
	l, ok := b.answers[name+" "+api.TypeName(qtype)]
	if !ok {
		l.Rcode = "NXDOMAIN"
	}
	l.Name, l.Type = name+".", api.TypeName(qtype)
	return l, b.err
}

func client(t *testing.T, b Names) *api.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	start(t, fake{}, Options{Socket: socket, Names: b, Domain: "cluster.local"})
	return api.NewClient(socket)
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func status(err error) int {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		return 0
	}
	return e.Status
}

func TestNameIsAddedListedAndRemoved(t *testing.T) {
	b := newBook()
	c := client(t, b)
	db := func(a ...string) api.Name {
		return api.Name{Tenant: "default", Network: "default", Name: "db", Addresses: addrs(a...)}
	}
	ch, err := c.AddName(t.Context(), db("192.0.2.8", "192.0.2.7", "192.0.2.7"))
	if err != nil || !ch.Changed || ch.FQDN != "db.default.cluster.local" || fmt.Sprint(ch.Addresses) != "[192.0.2.7 192.0.2.8]" {
		t.Fatalf("%+v, %v", ch, err)
	}
	if ch, err := c.AddName(t.Context(), db("::ffff:192.0.2.7")); err != nil || ch.Changed || b.writes != 1 {
		t.Errorf("again: %+v, %v, %d writes", ch, err, b.writes)
	}
	if ch, err := c.AddName(t.Context(), db("2001:db8::7")); err != nil || !ch.Changed || len(ch.Addresses) != 3 {
		t.Errorf("more: %+v, %v", ch, err)
	}
	all, err := c.Names(t.Context())
	if err != nil || len(all) != 1 || all[0].FQDN != "db.default.cluster.local" || len(all[0].Addresses) != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := c.RemoveName(t.Context(), db("192.0.2.7", "192.0.2.9")); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "no address 192.0.2.9") || len(b.names["default/default/db"].Addresses) != 3 {
		t.Errorf("got %v", err)
	}
	if ch, err := c.RemoveName(t.Context(), db("192.0.2.7")); err != nil || fmt.Sprint(ch.Addresses) != "[192.0.2.8 2001:db8::7]" {
		t.Errorf("%+v, %v", ch, err)
	}
	if ch, err := c.RemoveName(t.Context(), db("192.0.2.8", "2001:db8::7")); err != nil || len(ch.Addresses) != 0 || len(b.names) != 0 {
		t.Errorf("%+v, %v, %v", ch, err, b.names)
	}
	if _, err := c.RemoveName(t.Context(), db()); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "flanneld dns list") {
		t.Errorf("got %v", err)
	}
}

func TestFullNamesAreUnderstood(t *testing.T) {
	for typed, want := range map[string]string{
		"DB": "db", "db.": "db", "db.default.cluster.local": "db", "db.default.cluster.local.": "db",
		"www.shop": "www.shop", "www.shop.default.cluster.local": "www.shop", "my_host": "my_host",
	} {
		b := newBook()
		ch, err := client(t, b).AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: typed, Addresses: addrs("192.0.2.1")})
		if err != nil || ch.FQDN != want+".default.cluster.local" || b.names["default/default/"+want] == nil {
			t.Errorf("%s: %+v, %v", typed, ch, err)
		}
	}
}

// TestMistakesAreRefusedWithFieldAndRemedy: nothing of it reaches the store.
func TestMistakesAreRefusedWithFieldAndRemedy(t *testing.T) {
	b := newBook()
	c := client(t, b)
	svc := func(change func(*api.Service)) error {
		s := frontend()
		change(&s)
		_, err := c.CreateService(t.Context(), s)
		return err
	}
	name := func(name string, addresses ...netip.Addr) error {
		_, err := c.AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: name, Addresses: addresses})
		return err
	}
	var many []netip.Addr
	for i := range mostAddresses + 1 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}))
	}
	_, lookupErr := c.Lookup(t.Context(), "a..b.", "A")
	_, typeErr := c.Lookup(t.Context(), "web", "ADDRESS")
	_, emptyErr := c.Lookup(t.Context(), "", "")
	one := addrs("192.0.2.1")[0]
	for what, tc := range map[string]struct {
		err  error
		code int
		says []string
	}{
		"service name":      {svc(func(s *api.Service) { s.Name = "a.b" }), 400, []string{`"a.b"`, "letters"}},
		"service network":   {svc(func(s *api.Service) { s.Network = "blue" }), 404, []string{`"blue"`, `"default"`}},
		"port 0":            {svc(func(s *api.Service) { s.Ports[0].Port = 0 }), 400, []string{"Ports[0].Port", "65535"}},
		"protocol":          {svc(func(s *api.Service) { s.Ports[0].Protocol = "http" }), 400, []string{"http", "tcp"}},
		"unnamed ports":     {svc(func(s *api.Service) { s.Ports[0].Name = "" }), 400, []string{"Ports[0].Name"}},
		"no ports":          {svc(func(s *api.Service) { s.Ports = nil }), 400, []string{"Ports: is missing", "headless"}},
		"node port":         {svc(func(s *api.Service) { s.Ports[0].NodePort = 80 }), 400, []string{"Ports[0].NodePort = 80", "from 30000 to 32767"}},
		"external":          {svc(func(s *api.Service) { s.External = "db.example.com" }), 400, []string{"Ports", "External"}},
		"affinity":          {svc(func(s *api.Service) { s.Affinity, s.Balance = 60, "hash" }), 400, []string{"Affinity = 60 s", "hash"}},
		"health":            {svc(func(s *api.Service) { s.Health = &api.Health{Type: "icmp"} }), 400, []string{`Health.Type = "icmp"`, "tcp or http"}},
		"virtual IPs":       {svc(func(s *api.Service) { s.VirtualIPs = addrs("10.0.0.1", "10.0.0.2") }), 400, []string{"VirtualIPs", "one per family"}},
		"endpoint":          {svc(func(s *api.Service) { s.Endpoints = addrs("224.0.0.1") }), 400, []string{"Endpoints", "224.0.0.1"}},
		"large":             {svc(func(s *api.Service) { s.Selector["x"] = strings.Repeat("x", maxBody) }), 413, []string{"65536"}},
		"address first":     {name("192.0.2.7", one), 400, []string{"192.0.2.7", "name comes first"}},
		"no address":        {name("db"), 400, []string{"at least one"}},
		"wildcard":          {name("*.shop", one), 400, []string{"*.shop"}},
		"empty label":       {name("a..b", one), 400, []string{"a..b"}},
		"elsewhere":         {name("db.svc.cluster.local", one), 400, []string{".default.cluster.local"}},
		"the domain":        {name("cluster.local", one), 400, []string{"cluster.local"}},
		"only the suffix":   {name("default.cluster.local", one), 400, []string{"default.cluster.local"}},
		"unspecified":       {name("db", netip.IPv4Unspecified()), 400, []string{"0.0.0.0"}},
		"loopback":          {name("db", addrs("127.0.0.1")...), 400, []string{"127.0.0.1", "unicast"}},
		"link-local":        {name("db", addrs("fe80::1")...), 400, []string{"fe80::1", "unicast"}},
		"of a service":      {name("x.svc", one), 400, []string{"x.svc", "must not end in svc"}},
		"with a zone":       {name("db", netip.MustParseAddr("fe80::1%eth0")), 400, []string{"fe80::1"}},
		"too many":          {name("db", many...), 400, []string{"257", "256"}},
		"lookup's name":     {lookupErr, 400, []string{"a..b"}},
		"lookup's type":     {typeErr, 400, []string{"ADDRESS", "AAAA"}},
		"lookup of nothing": {emptyErr, 400, []string{"give a name"}},
	} {
		if status(tc.err) != tc.code {
			t.Errorf("%s: status %d, want %d: %v", what, status(tc.err), tc.code, tc.err)
			continue
		}
		for _, w := range tc.says {
			if !strings.Contains(tc.err.Error(), w) {
				t.Errorf("%s: %q does not say %q", what, tc.err, w)
			}
		}
	}
	if b.writes != 0 {
		t.Errorf("%d writes", b.writes)
	}
}

func TestStoreOutOfReachIsSaidWithWhatWasChanged(t *testing.T) {
	b := newBook()
	b.err = api.Unavailable("etcd is out of reach since 12s: nothing was changed")
	c := client(t, b)
	if _, err := c.CreateService(t.Context(), frontend()); status(err) != 503 || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("got %v", err)
	}
	b.err = fmt.Errorf("write: %w", context.DeadlineExceeded)
	if _, err := c.AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: "db", Addresses: addrs("192.0.2.1")}); status(err) != 503 || !strings.Contains(err.Error(), "does no harm") {
		t.Errorf("got %v", err)
	}
	b.err = errors.New("disk on fire")
	if _, err := c.AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: "db", Addresses: addrs("192.0.2.1")}); status(err) != 500 || err.Error() != "disk on fire" {
		t.Errorf("got %v", err)
	}
}

func TestLookupAsksAsAResolverDoes(t *testing.T) {
	found := api.Lookup{Rcode: "NOERROR", Answers: []api.Record{{Data: "10.1.2.3"}}}
	list := []string{"web.default.svc.cluster.local", "web.default.cluster.local", "web.svc.cluster.local", "web.cluster.local", "web"}
	for what, tc := range map[string]struct {
		name, qtype string
		answers     map[string]api.Lookup
		asked       []string
		got, tried  string
	}{
		"short":         {"Web", "", map[string]api.Lookup{"web.default.cluster.local A": found}, list[:2], "web.default.cluster.local. A", list[0] + "."},
		"nowhere":       {"web", "A", nil, list, list[0] + ". A", strings.Join(list[1:], ". ") + "."},
		"no data first": {"web", "AAAA", map[string]api.Lookup{"web.default.cluster.local AAAA": {Rcode: "NOERROR"}}, list, list[1] + ". AAAA", strings.Join([]string{list[0], list[2], list[3], list[4]}, ". ") + "."},
		"left out": {"web", "A", map[string]api.Lookup{"web.default.svc.cluster.local A": {Rcode: "NOERROR"}, "web.default.cluster.local A": {Rcode: "NXDOMAIN", LeftOut: []api.LeftOut{{Why: "host2 is silent"}}}},
			list, list[1] + ". A", strings.Join([]string{list[0], list[2], list[3], list[4]}, ". ") + "."},
		"with a dot":   {"web.default", "A", map[string]api.Lookup{"web.default.cluster.local A": found}, []string{"web.default", "web.default.default.svc.cluster.local", "web.default.default.cluster.local", "web.default.svc.cluster.local", "web.default.cluster.local"}, "web.default.cluster.local. A", "web.default. web.default.default.svc.cluster.local. web.default.default.cluster.local. web.default.svc.cluster.local."},
		"absolute":     {"web.", "A", nil, []string{"web"}, "web. A", ""},
		"the root":     {".", "NS", map[string]api.Lookup{" NS": found}, []string{""}, ". NS", ""},
		"address":      {"10.1.19.3", "", map[string]api.Lookup{"3.19.1.10.in-addr.arpa PTR": found}, []string{"3.19.1.10.in-addr.arpa"}, "3.19.1.10.in-addr.arpa. PTR", ""},
		"IPv6 address": {"2001:db8::17", "PTR", nil, []string{"7.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"}, "7.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR", ""},
		"a number":     {"web.", "TYPE65", nil, []string{"web"}, "web. HTTPS", ""},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBook()
			maps.Copy(b.answers, tc.answers)
			l, err := client(t, b).Lookup(t.Context(), tc.name, tc.qtype)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(b.asked, tc.asked) {
				t.Errorf("asked %q, want %q", b.asked, tc.asked)
			}
			if got := l.Name + " " + l.Type; got != tc.got || strings.Join(l.Tried, " ") != tc.tried {
				t.Errorf("got %s, tried %q", got, l.Tried)
			}
		})
	}
}

func TestSilentUpstreamIsAServerFailureWithTheReason(t *testing.T) {
	b := newBook()
	b.broken = "example.org"
	l, err := client(t, b).Lookup(t.Context(), "example.org", "TXT")
	if err != nil || l.Rcode != "SERVFAIL" || l.Name != "example.org." || l.Type != "TXT" || !slices.Equal(l.Notes, []string{"no upstream answers"}) {
		t.Errorf("%+v, %v", l, err)
	}
	b.broken = "web"
	b.answers["web.cluster.local A"] = api.Lookup{Rcode: "NOERROR", Answers: []api.Record{{Data: "10.1.2.3"}}}
	if l, err := client(t, b).Lookup(t.Context(), "web", "A"); err != nil || l.Name != "web.cluster.local." {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestMetricsAreServedOnSocketAndHealthPort(t *testing.T) {
	m := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "flanneld_build_info 1") })
	for name, h := range map[string]http.Handler{"socket": apiHandler(fake{}, Options{Metrics: m}), "health": healthHandler(fake{}, m)} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != 200 || w.Body.String() != "flanneld_build_info 1" {
			t.Errorf("%s: %d %q", name, w.Code, w.Body)
		}
	}
}

// FuzzRequests: whatever the path, the query and the body are, the answer is
// JSON, and what is stored can be stored.
func FuzzRequests(f *testing.F) {
	f.Add("PUT", "/v1/services/default/default/frontend", `{"ports":[{"port":80,"protocol":"tcp"}],"selector":{"a":"b"}}`)
	f.Add("PUT", "/v1/names/default/default/db", `{"addresses":["192.0.2.1"]}`)
	f.Add("DELETE", "/v1/names/default/default/db?address=x", ``)
	f.Add("GET", "/v1/lookup?name=web&type=A", ``)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://x"+path, io.NopCloser(bytes.NewReader([]byte(body))))
		if err != nil || r.URL.Path == "" {
			return
		}
		b := newBook()
		w := httptest.NewRecorder()
		apiHandler(fake{}, Options{Names: b, Domain: "cluster.local"}).ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%s %s %q: %s", method, path, body, w.Body)
		}
		for _, s := range b.services {
			if err := s.Validate(); err != nil {
				t.Error(err)
			}
		}
		for _, n := range b.names {
			if !isName(n.Name) || cmp.Compare(len(n.Addresses), 0) == 0 {
				t.Errorf("%+v", n)
			}
		}
	})
}
