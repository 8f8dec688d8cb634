package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

// failing is a store that fails at reads, or at commits.
type failing struct {
	store.Store
	get, commit error
}

func (f *failing) Get(ctx context.Context, key string) (store.KV, error) {
	if f.get != nil {
		return store.KV{}, f.get
	}
	return f.Store.Get(ctx, key)
}

func (f *failing) Commit(ctx context.Context, x store.Txn) (int64, error) {
	if f.commit != nil {
		return 0, f.commit
	}
	return f.Store.Commit(ctx, x)
}

func TestOnlyACommitThatIsNotConfirmedMayHaveBeenMade(t *testing.T) {
	gone := errors.New("nobody listens")
	for says, st := range map[string]*failing{
		"etcd could not be read, nothing was changed: nobody listens":                   {get: gone},
		"it may have been made all the same: look before you try again: nobody listens": {commit: gone},
	} {
		st.Store = mem.New()
		if _, err := put(t, editor(t, st, "10.0.0.0/24"), "web", nil, "10.0.0.20"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %s", err, says)
		}
	}
	// Refused once, because somebody was faster; then etcd is gone.
	st := &failing{Store: mem.New()}
	n := editor(t, &racing{Store: st, before: func() {
		if _, err := put(t, editor(t, st.Store, "10.0.0.0/24"), "web", nil, "10.0.0.20"); err != nil {
			t.Error(err)
		}
		st.get = gone
	}}, "10.0.0.0/24")
	if _, err := put(t, n, "web", nil, "10.0.0.21"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
}

func TestClaimsThatAreLostAreWrittenAgainThoughNothingChanges(t *testing.T) {
	st := mem.New()
	n := editor(t, st, "10.0.0.0/24")
	if _, err := put(t, n, "web", nodePort("tcp", 30080), "10.0.0.20"); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(claimed(t, st))
	if _, err := st.Commit(t.Context(), store.Txn{Delete: []string{"/nodeports/tcp-30080", "/vips/10.0.0.20"}}); err != nil {
		t.Fatal(err)
	}
	same := func(result error) func(*service.Service) (*service.Service, error) {
		return func(have *service.Service) (*service.Service, error) { return have, result }
	}
	record := func() int64 {
		kv, err := st.Get(t.Context(), "/services/default/default/web")
		if err != nil {
			t.Fatal(err)
		}
		return kv.ModRevision
	}
	was := record()
	if err := n.EditService(t.Context(), "default", "default", "web", same(server.ErrDryRun)); err != nil || len(claimed(t, st)) != 0 {
		t.Errorf("only to see: %v, %v", err, claimed(t, st))
	}
	for range 2 {
		if err := n.EditService(t.Context(), "default", "default", "web", same(nil)); err != nil || fmt.Sprint(claimed(t, st)) != before || record() != was {
			t.Errorf("%v, %v, before %s", err, claimed(t, st), before)
		}
	}
	list, err := st.List(t.Context(), "/")
	if err != nil || list.Revision != was+2 { // the loss, the repair
		t.Errorf("revision %d, made at %d, %v", list.Revision, was, err)
	}
	// An address that is not in the network any more is no reason to refuse it,
	// nor is a service without any.
	n = editor(t, st, "")
	if err := n.EditService(t.Context(), "default", "default", "web", same(nil)); err != nil {
		t.Error(err)
	}
}

func TestEndpointInTheNetworkOfServicesIsRefusedWithTheCure(t *testing.T) {
	n := editor(t, mem.New(), "10.0.0.0/16")
	_, err := alter(t, n, "web", func(*service.Service) *service.Service {
		return &service.Service{Tenant: "default", Network: "default", Name: "web", Ports: nodePort("tcp", 0), Endpoints: []netip.Addr{netip.MustParseAddr("10.0.0.30")}}
	})
	if f, ok := errors.AsType[*service.FieldError](err); !ok || f.Field != "Endpoints" || f.Value != "10.0.0.30" || !strings.Contains(f.Remedy, "own addresses") {
		t.Error(err)
	}
}

func TestProgramOfThisHostAtANodePortIsNoted(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	n := editor(t, mem.New(), "10.0.0.0/24")
	n.shown.Store(&shown{ground: ground{self: subnet.Host{Name: "host1"}}})
	notes := n.NodePortNotes(&service.Service{Name: "web", Ports: []service.Port{{Port: 80, Protocol: "tcp", NodePort: port}, {Port: 81, Protocol: "tcp"}, {Port: 82, Protocol: "tcp", NodePort: service.AutoPort}}})
	if len(notes) != 1 || !strings.Contains(notes[0], fmt.Sprintf("listens on port %d/tcp of host1: connections to it go to service web instead", port)) {
		t.Errorf("%q", notes)
	}
}

func TestAServiceGetsANewAddressForOneThatIsOutsideOfTheNetwork(t *testing.T) {
	st := mem.New()
	if _, err := put(t, editor(t, st, "10.0.0.0/24"), "web", nil, "10.0.0.20"); err != nil {
		t.Fatal(err)
	}
	made, err := alter(t, editor(t, st, "10.9.0.0/24"), "web", func(have *service.Service) *service.Service {
		want := *have
		want.VirtualIPs = nil
		return &want
	})
	if err != nil || len(made.VirtualIPs) != 1 || !netip.MustParsePrefix("10.9.0.0/24").Contains(made.VirtualIPs[0]) {
		t.Fatalf("%+v, %v", made, err)
	}
	if got, want := fmt.Sprint(claimed(t, st)), fmt.Sprintf("map[vips/%v:web]", made.VirtualIPs[0]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
