package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

// attach makes the record of a container's interface, as the plugins do.
func attach(t *testing.T, dir, network, id, ifName, addr string, labels map[string]string) ipam.Record {
	t.Helper()
	n, err := ipam.Open(dir, network)
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.Reserve(ipam.Record{ContainerID: id, IfName: ifName, Names: []string{"web"}, Labels: labels, Addresses: []netip.Prefix{netip.MustParsePrefix(addr)}}, ipam.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Attached(); err != nil {
		t.Fatal(err)
	}
	return h.Record
}

// labeller is the names of host1, with these containers of the cluster.
func labeller(t *testing.T, endpoints ...*endpoint.Endpoint) *names {
	t.Helper()
	n := editor(t, mem.New(), "")
	n.dir = t.TempDir()
	n.shown.Store(&shown{ground: ground{self: subnet.Host{Name: "host1"}}, state: zone.State{Endpoints: endpoints}})
	return n
}

func TestLabelsOfAContainerOfThisHostChangeItsRecord(t *testing.T) {
	const id = "0123456789abcdef"
	n := labeller(t)
	var list []*endpoint.Endpoint
	for ifName, addr := range map[string]string{"eth0": "10.1.1.2/24", "eth1": "10.1.1.3/24"} {
		list = append(list, endpoint.FromRecord(attach(t, n.dir, "flannel", id, ifName, addr, map[string]string{"app": "old", "tier": "front"}), "host1", "id1"))
	}
	attach(t, n.dir, "other", id, "eth0", "192.168.5.2/24", nil) // of a network that is not ours
	show := *n.shown.Load()
	show.state.Endpoints = append(list, named(at("host2", "id2", "else", "10.1.2.2"), "db"))
	n.shown.Store(&show)

	for i, call := range []string{"web", "WEB", id, id[:12]} {
		want := map[string]string{"app": fmt.Sprint(i), "flanneld.io/weight": "3"}
		got, err := n.Label(t.Context(), call, api.Relabel{Set: want, Remove: []string{"tier", "unknown"}})
		if err != nil || !got.Changed || got.Container != id || !maps.Equal(got.Labels, want) {
			t.Errorf("%s: %+v, %v", call, got, err)
		}
		network, err := ipam.Open(n.dir, "flannel")
		if err != nil {
			t.Fatal(err)
		}
		all, err := network.Records()
		if err != nil || len(all) != 2 || !maps.Equal(all[0].Labels, want) || !maps.Equal(all[1].Labels, want) || !all[0].Attached {
			t.Errorf("%s: %+v, %v", call, all, err)
		}
		for records, err := range ipam.Watch(t.Context(), n.dir) { // what a daemon that starts now publishes
			if err != nil || len(records) != 3 || !maps.Equal(endpoint.FromRecord(records[0], "host1", "id1").Labels, want) || len(records[2].Labels) > 0 {
				t.Errorf("%s: %+v, %v", call, records, err)
			}
			break
		}
		if again, err := n.Label(t.Context(), call, api.Relabel{Set: want}); err != nil || again.Changed {
			t.Errorf("%s again: %+v, %v", call, again, err)
		}
	}
	if _, err := n.Label(t.Context(), "web", api.Relabel{Set: map[string]string{"x": strings.Repeat("x", 20_000)}}); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("much too long: %v", err)
	}
}

func TestContainersThatCannotBeLabelledHereAreNamed(t *testing.T) {
	n := labeller(t,
		named(at("host1", "id1", "aaaaaaaaaaaaaaaa", "10.1.1.2"), "web"), named(at("host1", "id1", "gone", "10.1.1.9"), "gone"),
		named(at("host2", "id2", "bbbbbbbbbbbbbbbb", "10.1.2.2"), "web"), named(at("host2", "id2", "cccccccccccccccc", "10.1.2.3"), "db"))
	for call, tc := range map[string]struct {
		status int
		says   string
	}{
		"web":          {409, "web are 2 containers: aaaaaaaaaaaa on host1, bbbbbbbbbbbb on host2; give the id of one"},
		"db":           {409, "db is attached to host2: run flanneld endpoint label there"},
		"cccccccccccc": {409, "attached to host2"},
		"cccc":         {404, "no container is called cccc"},
		"nobody":       {404, "flanneld endpoint list"},
		"gone":         {404, "container gone on host1 is not attached any more"},
	} {
		_, err := n.Label(t.Context(), call, api.Relabel{Set: map[string]string{"a": "b"}})
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Status != tc.status || !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s: %v", call, err)
		}
	}
	n.shown.Store(&shown{state: zone.State{Partial: true}})
	if _, err := n.Label(t.Context(), "web", api.Relabel{}); err == nil || !strings.Contains(err.Error(), "nothing is known") {
		t.Errorf("etcd unheard of: %v", err)
	}
}

func TestEndpointsSayWhyTheyAreNotReady(t *testing.T) {
	sick := at("host1", "id1", "c2", "10.1.1.3")
	sick.Unhealthy = map[string]string{"web": "connection refused", "api": "HTTP 503"}
	n := labeller(t, at("host1", "id1", "c1", "10.1.1.2"), sick, at("host2", "id2", "c3", "10.1.2.2"))
	show := *n.shown.Load()
	show.state.Dead = map[string]string{"host2": "host2 is not alive"}
	n.shown.Store(&show)
	all, err := n.Endpoints(t.Context())
	var got []string
	for _, e := range all {
		got = append(got, e.NotReady)
	}
	if want := ", unhealthy for api: HTTP 503; unhealthy for web: connection refused, host2 is not alive"; err != nil || strings.Join(got, ", ") != want {
		t.Errorf("%q, %v", got, err)
	}
}
