package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

// testNames is the names of host1 in a cluster with host2.
func testNames(t *testing.T) *names {
	t.Helper()
	cfg := &config.Config{SubnetFile: t.TempDir() + "/subnet.env", DNS: config.DNS{Off: true, Domain: "cluster.local"}}
	n := newNames(cfg, mem.New(), subnet.Host{Name: "host1", Identity: "id1"}, newBalancer(&kernel{}, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	n.ground = ground{
		self: n.ground.self,
		own:  []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}, pods: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		hosts: map[string]subnet.Host{"host1": {Name: "host1", Identity: "id1"}, "host2": {Name: "host2", Identity: "id2"}},
		lives: map[string]bool{"id1": true, "id2": true}, fresh: time.Unix(1000, 0),
		services: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
	}
	n.shown.Store(&shown{ground: n.ground})
	return n
}

func at(host, identity, name, addr string) *endpoint.Endpoint {
	return &endpoint.Endpoint{
		Tenant: "default", Network: "default", ID: host + "," + name + ",eth0", Host: host, Identity: identity,
		Container: name, IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

func ids(list []*endpoint.Endpoint) []string {
	out := []string{}
	for _, e := range list {
		out = append(out, e.ID)
	}
	return out
}

func TestEndpointsOfAnEarlierLifeOfTheirHostDoNotCount(t *testing.T) {
	n := testNames(t)
	n.local = []*endpoint.Endpoint{at("host1", "id1", "mine", "10.1.1.2")}
	n.all.Values = []*endpoint.Endpoint{
		at("host1", "id0", "before", "10.1.1.3"), // of host1 before a reboot
		at("host1", "id1", "gone", "10.1.1.4"),   // etcd does not know yet
		at("host2", "id0", "old", "10.1.2.2"),
		at("host2", "id2", "web", "10.1.2.3"),
		at("host3", "id3", "silent", "10.1.3.2"), // whose host is judged, not its endpoints
	}
	got, _ := n.endpoints(time.Unix(2000, 0))
	if want := []string{"host1,mine,eth0", "host2,web,eth0", "host3,silent,eth0"}; !slices.Equal(ids(got), want) {
		t.Errorf("%v", ids(got))
	}
}

func TestEndpointsUnderAFormerNameOfTheirHostGo(t *testing.T) {
	n := testNames(t)
	n.ground.leases = []*subnet.Lease{{Identity: "id2"}}
	n.all.Values = []*endpoint.Endpoint{
		at("former1", "id1", "mine", "10.1.1.2"),
		at("former2", "id2", "web", "10.1.2.3"),
		at("host1", "id1", "mine", "10.1.1.2"),
		at("host1", "id2", "web", "10.1.2.3"), // which thought that it was host1
		at("host2", "id2", "web", "10.1.2.3"),
	}
	if got, _ := n.endpoints(time.Unix(2000, 0)); !slices.Equal(ids(got), []string{"host2,web,eth0"}) {
		t.Errorf("answered: %v", ids(got))
	}
	n.forget(time.Unix(2000, 0))
	if got := <-n.stale; !slices.Equal(ids(got), []string{"former1,mine,eth0"}) {
		t.Errorf("removed: %v", ids(got))
	}
}

func TestAHostIsDeadOnlyATTLAfterEtcdCouldBeSeen(t *testing.T) {
	n := testNames(t)
	all := map[life]int{{"host1", "id1"}: 1, {"host2", "id2"}: 2, {"host3", "id3"}: 1}
	early, late := n.ground.fresh.Add(time.Second), n.ground.fresh.Add(subnet.HostTTL)

	dead, next := n.judgeHosts(all, early)
	if len(dead) != 0 || !next.Equal(late) {
		t.Errorf("just connected: %v, again %v", dead, next)
	}
	n.dead, next = n.judgeHosts(all, late)
	if len(n.dead) != 1 || n.dead["host3"] == "" || !next.IsZero() {
		t.Errorf("later: %v, again %v", n.dead, next)
	}
	n.ground.fresh = time.Time{} // etcd is away
	delete(n.ground.lives, "id2")
	if dead, next = n.judgeHosts(all, late.Add(time.Hour)); len(dead) != 1 || dead["host3"] == "" || !next.IsZero() {
		t.Errorf("etcd away: %v, again %v", dead, next)
	}
	n.ground.fresh = late.Add(time.Hour) // and back
	if dead, _ = n.judgeHosts(all, n.ground.fresh.Add(time.Second)); len(dead) != 1 {
		t.Errorf("back a second ago: %v", dead)
	}
	n.ground.lives["id3"] = true
	if dead, _ = n.judgeHosts(all, n.ground.fresh.Add(time.Minute)); len(dead) != 1 || dead["host2"] == "" {
		t.Errorf("host3 back, host2 not: %v", dead)
	}
}

func TestNamesOutliveAWipedEtcd(t *testing.T) {
	n := testNames(t)
	web := at("host2", "id2", "web", "10.1.2.3")
	now := time.Unix(5000, 0)
	n.hear(told[endpoint.Endpoint]{records: store.Records[endpoint.Endpoint]{Epoch: 1, Values: []*endpoint.Endpoint{web}}}, now)
	n.hear(told[endpoint.Endpoint]{records: store.Records[endpoint.Endpoint]{Epoch: 2}}, now)
	got, next := n.endpoints(now.Add(time.Second))
	if !slices.Equal(ids(got), []string{"host2,web,eth0"}) || !next.Equal(now.Add(subnet.EpochGrace)) {
		t.Errorf("%v, again %v", ids(got), next)
	}
	moved := at("host2", "id2", "web", "10.1.2.9")
	n.hear(told[endpoint.Endpoint]{records: store.Records[endpoint.Endpoint]{Epoch: 2, Values: []*endpoint.Endpoint{moved}}}, now)
	if got, _ = n.endpoints(now.Add(time.Second)); len(got) != 1 || got[0] != moved {
		t.Errorf("registered again: %v", got)
	}
	n.hear(told[endpoint.Endpoint]{records: store.Records[endpoint.Endpoint]{Epoch: 2}}, now)
	if got, _ = n.endpoints(now.Add(subnet.EpochGrace)); len(got) != 0 {
		t.Errorf("after the grace: %v", ids(got))
	}
}

func TestNothingIsWithdrawnBeforeTheAttachmentsAreKnown(t *testing.T) {
	n := testNames(t)
	n.attach()
	select {
	case own := <-n.own:
		t.Fatalf("published %v", own)
	default:
	}
	n.heardOf.attached, n.had.services, n.had.endpoints = true, true, true
	n.records = []ipam.Record{
		{Attached: true, Network: "flannel", ContainerID: "c1", IfName: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.1.7/24")}, Names: []string{"Web", "not a label"}},
		{Attached: true, Network: "other", ContainerID: "c2", IfName: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.5.7/24")}},
	}
	n.attach()
	first := <-n.own
	if len(first) != 1 || first[0].ID != "host1,c1,eth0" || !slices.Equal(first[0].Names, []string{"web"}) || len(n.notes) != 1 {
		t.Fatalf("%+v, notes %q", first, n.notes)
	}
	n.attach()
	if again := <-n.own; again[0] != first[0] {
		t.Error("an endpoint that did not change got another pointer")
	}
}

func TestAnEditReadsWhatIsThereAndChangesItOnce(t *testing.T) {
	n := testNames(t)
	create := func(have *service.Service) (*service.Service, error) {
		if have != nil {
			return have, nil
		}
		return &service.Service{Tenant: "default", Network: "default", Name: "web", Ports: []service.Port{{Port: 80, Protocol: "tcp"}}}, nil
	}
	for range 2 {
		if err := n.EditService(t.Context(), "default", "default", "web", create); err != nil {
			t.Fatal(err)
		}
	}
	list, err := n.store.List(t.Context(), service.Prefix(""))
	if err != nil || len(list.KVs) != 1 || list.Revision != list.KVs[0].ModRevision {
		t.Fatalf("%+v, %v", list, err)
	}
	refuse := errors.New("no")
	if err := n.EditService(t.Context(), "default", "default", "web", func(*service.Service) (*service.Service, error) { return nil, refuse }); !errors.Is(err, refuse) {
		t.Errorf("refused: %v", err)
	}
	// A record that means nothing can be removed and replaced.
	if _, err := n.store.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: list.KVs[0].Key, Value: []byte("{")}}}); err != nil {
		t.Fatal(err)
	}
	if err := n.EditService(t.Context(), "default", "default", "web", func(have *service.Service) (*service.Service, error) {
		if have == nil || have.Name != "web" || len(have.Ports) != 0 {
			t.Errorf("garbage was read as %+v", have)
		}
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	if kv, err := n.store.Get(t.Context(), list.KVs[0].Key); err != nil || kv.ModRevision != 0 {
		t.Errorf("%+v, %v", kv, err)
	}
	// What a newer version wrote stays.
	put := store.Put{Key: list.KVs[0].Key, Value: []byte(`{"Ports":[{"Port":80,"Protocol":"tcp"}],"Colour":"red"}`)}
	if _, err := n.store.Commit(t.Context(), store.Txn{Put: []store.Put{put}}); err != nil {
		t.Fatal(err)
	}
	if err := n.EditService(t.Context(), "default", "default", "web", func(have *service.Service) (*service.Service, error) {
		want := *have
		want.Headless = true
		return &want, nil
	}); err != nil {
		t.Fatal(err)
	}
	if kv, err := n.store.Get(t.Context(), put.Key); err != nil || string(kv.Value) != `{"Ports":[{"Port":80,"Protocol":"tcp"}],"Headless":true,"Colour":"red"}` {
		t.Errorf("%s, %v", kv.Value, err)
	}
	n.shown.Store(&shown{storeErr: errors.New("nobody listens")})
	err = n.EditService(t.Context(), "default", "default", "web", create)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Status != 503 {
		t.Errorf("etcd away: %v", err)
	}
}

func TestStatusLeavesOutAnUpstreamThatIsThisDaemon(t *testing.T) {
	own, other := netip.MustParseAddrPort("10.1.1.1:53"), netip.MustParseAddrPort("192.0.2.1:53")
	cfg := &config.Config{SubnetFile: t.TempDir() + "/subnet.env", DNS: config.DNS{Domain: "cluster.local", Upstreams: []netip.AddrPort{own, other}}}
	n := newNames(cfg, mem.New(), subnet.Host{Name: "host1", Identity: "id1"}, newBalancer(&kernel{}, slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	n.shown.Store(&shown{at: []netip.Addr{own.Addr()}, zone: n.zones.Build(zone.State{Domain: "cluster.local", Tenant: "default"})})
	if s := n.status(); len(s.Upstreams) != 1 || s.Upstreams[0].Addr != other {
		t.Errorf("%+v", s.Upstreams)
	}
}
