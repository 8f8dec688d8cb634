package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

// publisher is the names of host1 beside host2, which embeds etcd, and host3,
// which has a lease only.
func publisher(t *testing.T) *names {
	t.Helper()
	n := editor(t, mem.New(), "10.0.0.0/24")
	n.cfg.DNS.Off = false
	n.cfg.Healthz = netip.MustParseAddrPort("127.0.0.1:10256")
	two := netip.MustParseAddr("192.0.2.2")
	show := &shown{
		ground: ground{
			self:  subnet.Host{Name: "host1", Identity: "id1"},
			nodes: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			hosts: map[string]subnet.Host{
				"host1": {Name: "host1", PublicIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
				"host2": {Name: "host2", PublicIPs: []netip.Addr{two}, Guard: []netip.AddrPort{netip.AddrPortFrom(two, 2379)}},
			},
			leases: []*subnet.Lease{{Node: "host1"}, {Node: "host3"}, {}},
			tunnel: []uint16{8472},
			etcd:   []netip.AddrPort{netip.AddrPortFrom(two, 2379), netip.MustParseAddrPort("127.0.0.1:2380")},
		},
		state: zone.State{
			Dead:      map[string]string{"host3": "host3 is not alive"},
			Endpoints: []*endpoint.Endpoint{named(at("host1", "id1", "c1", "10.1.1.2"), "web"), named(at("host3", "id3", "c3", "10.1.3.2"), "web")},
		},
	}
	n.shown.Store(show)
	return n
}

func named(e *endpoint.Endpoint, names ...string) *endpoint.Endpoint {
	e.Names = names
	return e
}

func publication(host, protocol string, port uint16, target string) *service.Publication {
	return &service.Publication{Tenant: "default", Host: host, Protocol: protocol, Port: port, Network: "default", Target: target, TargetPort: 80}
}

func TestPortsThatAHostNeedsItselfAreNotPublished(t *testing.T) {
	n := publisher(t)
	for p, says := range map[*service.Publication]string{
		publication("host1", "tcp", 8080, "web"):  "",
		publication("host2", "tcp", 8080, "web"):  "",
		publication("host3", "tcp", 8080, "web"):  "",
		publication("host9", "tcp", 8080, "web"):  `host "host9": there is none of that name, only host1, host2, host3`,
		publication("Host1", "tcp", 8080, "web"):  "only host1",
		publication("host3", "udp", 8472, "web"):  "for the tunnel",
		publication("host3", "tcp", 8472, "web"):  "",
		publication("host2", "tcp", 53, "web"):    "for the DNS",
		publication("host2", "udp", 53, "web"):    "for the DNS",
		publication("host2", "tcp", 2379, "web"):  "needs it on host2 for etcd",
		publication("host2", "udp", 2379, "web"):  "",
		publication("host1", "tcp", 2379, "web"):  "",
		publication("host1", "tcp", 2380, "web"):  "needs it on host1 for etcd",
		publication("host2", "tcp", 2380, "web"):  "",
		publication("host1", "tcp", 10256, "web"): "health checks",
		publication("host2", "tcp", 10256, "web"): "",
	} {
		_, err := n.CheckPublication(t.Context(), p)
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", p, err)
		}
		if e, ok := errors.AsType[*api.Error](err); err != nil && (!ok || e.Status != 400) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	n.cfg.DNS.Off = true
	if _, err := n.CheckPublication(t.Context(), publication("host2", "udp", 53, "web")); err != nil {
		t.Errorf("without DNS: %v", err)
	}
	n.shown.Store(&shown{})
	if _, err := n.CheckPublication(t.Context(), publication("host1", "tcp", 80, "web")); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Errorf("too early: %v", err)
	}
}

func TestPublicationsAreMadeWithANoteOfWhatMaySurprise(t *testing.T) {
	n := publisher(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	self := fmt.Sprintf("(process %d) listens on port %d/tcp of host1: connections to it go to web", os.Getpid(), port)
	for p, says := range map[*service.Publication]string{
		publication("host1", "tcp", 8080, "nobody"):       "no container of network default is called nobody now",
		publication("host1", "tcp", 8080, "web"):          "",
		publication("host1", "tcp", port, "web"):          self,
		publication("host1", "udp", port, "web"):          "",
		publication("host1", "sctp", port, "web"):         "",
		publication("host2", "tcp", port, "web"):          "",
		publication("host2", "tcp", port, "0123456789ab"): "is called 0123456789ab now",
	} {
		notes, err := n.CheckPublication(t.Context(), p)
		if err != nil || len(notes) != min(len(says), 1) || len(notes) > 0 && !strings.Contains(notes[0], says) {
			t.Errorf("%+v: %q, %v", p, notes, err)
		}
	}
}

func TestPublicationsAreStoredAndListed(t *testing.T) {
	n := publisher(t)
	if _, err := n.Publications(t.Context()); err == nil {
		t.Error("listed before etcd was heard of")
	}
	p := publication("host1", "udp", 5353, "web")
	set := func(to *service.Publication) error {
		return n.EditPublication(t.Context(), p, func(have *service.Publication) (*service.Publication, error) { return to, nil })
	}
	if err := set(p); err != nil {
		t.Fatal(err)
	}
	for got, err := range service.WatchPublished(t.Context(), n.store, "") {
		if err != nil || len(got.Values) != 1 || got.Values[0].Key("") != "/published/default/host1/udp-5353" || got.Values[0].Target != "web" {
			t.Fatalf("%+v, %v", got, err)
		}
		show := *n.shown.Load()
		show.published = got.Values
		n.shown.Store(&show)
		break
	}
	list, err := n.Publications(t.Context())
	if err != nil || len(list) != 1 || list[0].Port != 5353 || list[0].Containers != 2 || list[0].LeftOut != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	// One that nobody can read is replaced, or removed.
	key := p.Key("")
	if _, err := n.store.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte("{")}}}); err != nil {
		t.Fatal(err)
	}
	if err := set(p); err != nil {
		t.Error(err)
	}
	if err := set(nil); err != nil {
		t.Error(err)
	}
	if kv, err := n.store.Get(t.Context(), key); err != nil || kv.ModRevision != 0 {
		t.Errorf("left %+v, %v", kv, err)
	}
}

func TestWithoutDNSOnlyLookupsAreRefused(t *testing.T) {
	n := editor(t, mem.New(), "10.0.0.0/24")
	n.cfg.DNS = config.DNS{Off: true}
	if _, err := n.Lookup(t.Context(), "web", 1); err == nil || !strings.Contains(err.Error(), "--no-dns") {
		t.Error(err)
	}
	if _, err := n.Services(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := put(t, n, "web", nil); err != nil {
		t.Error(err)
	}
}
