package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/store/storetest"
	"github.com/flanneld/flanneld/subnet"
)

// editor is the names of a host that uses a store, with these service networks.
func editor(t *testing.T, st store.Store, networks string) *names {
	t.Helper()
	cfg := &config.Config{SubnetFile: t.TempDir() + "/subnet.env", DNS: config.DNS{Off: true, Domain: "cluster.local"}}
	n := newNames(cfg, st, subnet.Host{Name: "host1", Identity: "id1"}, newBalancer(&kernel{}, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	var g ground
	for p := range strings.FieldsSeq(networks) {
		g.services = append(g.services, netip.MustParsePrefix(p))
	}
	n.shown.Store(&shown{ground: g})
	return n
}

// put makes a service as it is told, and returns what became of it.
func put(t *testing.T, n *names, name string, ports []service.Port, vips ...string) (*service.Service, error) {
	t.Helper()
	return alter(t, n, name, func(*service.Service) *service.Service {
		want := &service.Service{Tenant: "default", Network: "default", Name: name, Ports: slices.Clone(ports)}
		for _, a := range vips {
			want.VirtualIPs = append(want.VirtualIPs, netip.MustParseAddr(a))
		}
		return want
	})
}

func alter(t *testing.T, n *names, name string, to func(have *service.Service) *service.Service) (made *service.Service, err error) {
	t.Helper()
	err = n.EditService(t.Context(), "default", "default", name, func(have *service.Service) (*service.Service, error) {
		made = to(have)
		return made, nil
	})
	return made, err
}

func remove(t *testing.T, n *names, name string) {
	t.Helper()
	if _, err := alter(t, n, name, func(*service.Service) *service.Service { return nil }); err != nil {
		t.Fatal(err)
	}
}

// claimed are the keys of claims without their prefix, and whose they are.
func claimed(t *testing.T, st store.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, prefix := range []string{"/vips/", "/nodeports/"} {
		list, err := st.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range list.KVs {
			out[strings.TrimPrefix(kv.Key, "/")] = strings.TrimPrefix(service.Claimant("", kv), "/services/default/default/")
		}
	}
	return out
}

func nodePort(protocol string, port uint16) []service.Port {
	return []service.Port{{Port: 80, Protocol: protocol, NodePort: port}}
}

func TestAServiceHoldsItsAddressAndNodePortsUntilItGivesThemUp(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24 fd00::/112")
	web, err := put(t, n, "web", nodePort("tcp", service.AutoPort))
	if err != nil || len(web.VirtualIPs) != 2 || web.Ports[0].NodePort < service.NodePortFirst || web.Ports[0].NodePort > service.NodePortLast {
		t.Fatalf("%+v, %v", web, err)
	}
	kv, err := st.Get(t.Context(), web.Key(""))
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := service.Parse("", kv); err != nil || !slices.Equal(stored.VirtualIPs, web.VirtualIPs) || stored.Ports[0] != web.Ports[0] {
		t.Errorf("stored %s, %v", kv.Value, err)
	}
	want := map[string]string{}
	for _, key := range web.Claims("") {
		want[strings.TrimPrefix(key, "/")] = "web"
	}
	if got := claimed(t, st); len(got) != 3 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Another selector: all stays, even what is asked to be chosen again.
	again, err := alter(t, n, "web", func(have *service.Service) *service.Service {
		return &service.Service{Tenant: "default", Network: "default", Name: "web", Selector: map[string]string{"a": "b"}, Ports: nodePort("tcp", service.AutoPort), VirtualIPs: have.VirtualIPs}
	})
	if err != nil || !slices.Equal(again.VirtualIPs, web.VirtualIPs) || again.Ports[0] != web.Ports[0] || fmt.Sprint(claimed(t, st)) != fmt.Sprint(want) {
		t.Errorf("%+v, %v, %v", again, err, claimed(t, st))
	}
	// Another address and port, and one given up.
	if _, err := put(t, n, "web", nodePort("udp", 30100), "10.0.0.99"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(claimed(t, st)); got != "map[nodeports/udp-30100:web vips/10.0.0.99:web]" {
		t.Error(got)
	}
	if _, err := alter(t, n, "web", func(*service.Service) *service.Service {
		return &service.Service{Tenant: "default", Network: "default", Name: "web", Headless: true}
	}); err != nil || len(claimed(t, st)) != 0 {
		t.Errorf("headless: %v, %v", err, claimed(t, st))
	}
}

func TestWhatAnotherServiceHoldsIsRefusedInItsName(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	if _, err := put(t, n, "web", nodePort("tcp", 30080), "10.0.0.20"); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(claimed(t, st))
	for what, tc := range map[string]struct {
		ports  []service.Port
		vip    string
		status int
		says   string
	}{
		"address":   {nil, "10.0.0.20", 409, "virtual IP 10.0.0.20 is that of service web in network default: nothing was changed"},
		"node port": {nodePort("tcp", 30080), "10.0.0.21", 409, "node port 30080/tcp is that of service web in network default: nothing was changed"},
		"elsewhere": {nil, "10.0.1.20", 0, "must be in 10.0.0.0/24"},
	} {
		_, err := put(t, n, "db", tc.ports, tc.vip)
		e, ok := errors.AsType[*api.Error](err)
		if ok != (tc.status != 0) || ok && e.Status != tc.status || err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := fmt.Sprint(claimed(t, st)); got != before {
		t.Errorf("%s, before %s", got, before)
	}
	if _, err := put(t, n, "db", nodePort("udp", 30080), "10.0.0.21"); err != nil {
		t.Errorf("the same port of another protocol: %v", err)
	}
	remove(t, n, "web")
	if _, err := put(t, n, "web2", nodePort("tcp", 30080), "10.0.0.20"); err != nil {
		t.Errorf("after web was deleted: %v", err)
	}
	remove(t, n, "db")
	remove(t, n, "web2")
	if got := claimed(t, st); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestClaimsOfServicesThatDoNotHaveThemAnyMoreAreTakenOver(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	write := func(key, value string) {
		t.Helper()
		if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
	}
	write("/vips/10.0.0.20", `{"Service":"default/default/gone"}`)
	write("/vips/10.0.0.21", `{"Service":"default/default/moved"}`)
	write("/services/default/default/moved", `{"Ports":[{"Port":80}],"VirtualIPs":["10.0.0.99"]}`)
	write("/vips/10.0.0.22", `garbage`)
	write("/vips/10.0.0.23", `{"Service":"default/default/odd"}`)
	write("/services/default/default/odd", `garbage`)
	for vip, ok := range map[string]bool{"10.0.0.20": true, "10.0.0.21": true, "10.0.0.22": true, "10.0.0.23": false} {
		if _, err := put(t, n, "web"+vip[7:], nil, vip); (err == nil) != ok {
			t.Errorf("%s: %v", vip, err)
		}
	}
	// The odd one's claims go with it although nobody can read which it has.
	remove(t, n, "odd")
	if got := fmt.Sprint(claimed(t, st)); got != "map[vips/10.0.0.20:web20 vips/10.0.0.21:web21 vips/10.0.0.22:web22]" {
		t.Error(got)
	}
	// One that lost its address to another may be altered all the same.
	write("/services/default/default/late", `{"Ports":[{"Port":80}],"VirtualIPs":["10.0.0.20"]}`)
	if _, err := alter(t, n, "late", func(have *service.Service) *service.Service {
		want := *have
		want.Selector = map[string]string{"a": "b"}
		return &want
	}); err != nil {
		t.Error(err)
	}
	remove(t, n, "late")
	if got := claimed(t, st)["vips/10.0.0.20"]; got != "web20" {
		t.Errorf("10.0.0.20 is %q's", got)
	}
}

func TestAnAddressIsNotTakenOverFromAServiceThatIsBeingMade(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/vips/10.0.0.20", Value: []byte(`{"Service":"default/default/back"}`)}}}); err != nil {
		t.Fatal(err)
	}
	raced := &racing{Store: st, before: func() {
		if _, err := put(t, editor(t, st, "10.0.0.0/24"), "back", nil, "10.0.0.20"); err != nil {
			t.Error(err)
		}
	}}
	n.store = raced
	if _, err := put(t, n, "thief", nil, "10.0.0.20"); err == nil || !strings.Contains(err.Error(), "that of service back") {
		t.Errorf("%v, %v", err, claimed(t, st))
	}
}

// racing is a store in which somebody else is faster once.
type racing struct {
	store.Store
	before func()
	once   sync.Once
}

func (r *racing) Commit(ctx context.Context, x store.Txn) (int64, error) {
	r.once.Do(r.before)
	return r.Store.Commit(ctx, x)
}

func TestAnEditThatIsOnlyToSeeWritesNothing(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	if _, err := put(t, n, "web", nil, "10.0.0.20"); err != nil {
		t.Fatal(err)
	}
	var want *service.Service
	dry := func(name, vip string) error {
		return n.EditService(t.Context(), "default", "default", name, func(*service.Service) (*service.Service, error) {
			want = &service.Service{Tenant: "default", Network: "default", Name: name, Ports: nodePort("tcp", service.AutoPort)}
			if vip != "" {
				want.VirtualIPs = []netip.Addr{netip.MustParseAddr(vip)}
			}
			return want, server.ErrDryRun
		})
	}
	if err := dry("db", ""); err != nil || len(want.VirtualIPs) != 1 || want.Ports[0].NodePort < service.NodePortFirst {
		t.Errorf("%+v, %v", want, err)
	}
	if err := dry("db", "10.0.0.20"); err == nil || !strings.Contains(err.Error(), "that of service web") {
		t.Error(err)
	}
	if got := fmt.Sprint(claimed(t, st)); got != "map[vips/10.0.0.20:web]" {
		t.Errorf("written: %s", got)
	}
}

func TestManyNodePortsChangeInSteps(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	many := func(n int, first uint16) (out []service.Port) {
		for i := range n {
			out = append(out, service.Port{Name: fmt.Sprint("p", i), Port: uint16(i + 1), Protocol: "tcp", NodePort: first + uint16(i)})
		}
		return out
	}
	if _, err := put(t, n, "web", many(100, 30000)); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t, n, "web", many(100, 31000)); err == nil || !strings.Contains(err.Error(), "change some of them") {
		t.Errorf("all at once: %v", err)
	}
	if _, err := put(t, n, "web", many(50, 31000)); err == nil {
		t.Error("150 changes at once") // 50 new ones, 100 given up
	}
	if _, err := put(t, n, "web", many(50, 30000)); err != nil {
		t.Error(err)
	}
	remove(t, n, "web")
	if got := claimed(t, st); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestEditsAtOnceNeverShareAnAddressOrPort(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		st := mem.New()
		edits(t, func() store.Store { return st.Dial() }, 8, 30)
	})
	t.Run("etcd", func(t *testing.T) {
		url, _ := storetest.Etcd(t)
		edits(t, func() store.Store {
			st, err := etcd.New(etcd.Options{Endpoints: []string{url}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { st.Close() })
			return st
		}, 4, 10)
	})
}

// edits has hosts make services at once, in a network with hardly more
// addresses than that, then half of them delete theirs while the others make
// more, then all delete all.
func edits(t *testing.T, dial func() store.Store, hosts, each int) {
	const network = "10.0.0.0/23" // 495 addresses
	var mu sync.Mutex             // guards made
	made := map[string]*service.Service{}
	name := func(host, i int) string { return fmt.Sprintf("s%d-%d", host, i) }
	all := make([]*names, hosts)
	for h := range all {
		all[h] = editor(t, dial(), network)
	}
	parallel := func(f func(h int)) {
		var g sync.WaitGroup
		for h := range hosts {
			g.Go(func() { f(h) })
		}
		g.Wait()
	}
	create := func(h, i int) {
		s, err := put(t, all[h], name(h, i), nodePort("tcp", service.AutoPort))
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		made[s.Name] = s
	}
	check := func() {
		t.Helper()
		holders := map[string]string{}
		for _, s := range made {
			for _, key := range s.Claims("") {
				key = strings.TrimPrefix(key, "/")
				if other := holders[key]; other != "" {
					t.Errorf("%s is both %s's and %s's", key, s.Name, other)
				}
				holders[key] = s.Name
			}
		}
		if got := claimed(t, all[0].store); fmt.Sprint(got) != fmt.Sprint(holders) || len(got) != 2*len(made) {
			t.Errorf("claims of %d services: %v, want %v", len(made), got, holders)
		}
	}
	parallel(func(h int) {
		for i := range each {
			create(h, i)
		}
	})
	check()
	parallel(func(h int) {
		for i := range each {
			if h%2 == 0 {
				remove(t, all[h], name(h, i))
				mu.Lock()
				delete(made, name(h, i))
				mu.Unlock()
			} else {
				create(h, each+i)
			}
		}
	})
	check()
	// All want the same one now: one has it.
	var won []string
	parallel(func(h int) {
		if _, err := put(t, all[h], name(h, 1000), nil, "10.0.0.16"); err == nil {
			mu.Lock()
			defer mu.Unlock()
			won = append(won, name(h, 1000))
		}
	})
	taken := slices.ContainsFunc(slices.Collect(maps.Values(made)), func(s *service.Service) bool { return s.VirtualIPs[0].String() == "10.0.0.16" })
	if len(won) != 1 && !taken || len(won) > 0 && taken {
		t.Errorf("%q got the one address, taken before: %v", won, taken)
	}
	for _, name := range slices.Concat(won, slices.Collect(maps.Keys(made))) {
		remove(t, all[0], name)
	}
	if got := claimed(t, all[0].store); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}
