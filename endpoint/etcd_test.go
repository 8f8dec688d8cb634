package endpoint_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/storetest"
)

const prefix = "/coreos.com/network"

func open(t *testing.T, url string) *etcd.Store {
	t.Helper()
	st, err := etcd.New(etcd.Options{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func latest[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
}

// daemon publishes what is attached below dir, as a host of its own does. It
// returns when all of it has stopped.
func daemon(t *testing.T, url, dir string) (stop func()) {
	t.Helper()
	st := open(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	own, views := make(chan []*endpoint.Endpoint, 1), make(chan store.Records[endpoint.Endpoint], 1)
	running.Go(func() {
		for records, err := range ipam.Watch(ctx, dir) {
			if err != nil {
				t.Error(err)
			}
			var list []*endpoint.Endpoint
			for _, r := range records {
				list = append(list, endpoint.FromRecord(r, "host1", "id1"))
			}
			latest(own, list)
		}
	})
	running.Go(func() {
		for v, err := range endpoint.Watch(ctx, st, prefix) {
			if err == nil {
				latest(views, v)
			}
		}
	})
	running.Go(func() {
		p := endpoint.Publisher{Store: st, Prefix: prefix, Host: "host1", Identity: "id1"}
		if err := p.Run(ctx, own, views); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); running.Wait() }
}

// attach is an ADD.
func attach(t *testing.T, n *ipam.Network, id string) {
	t.Helper()
	h, err := n.Reserve(ipam.Record{ContainerID: id, IfName: "eth0", Names: []string{"web-" + id}}, ipam.Request{Sets: []ipam.Set{{{
		Subnet: netip.MustParsePrefix("10.1.19.0/24"), Start: netip.MustParseAddr("10.1.19.2"), End: netip.MustParseAddr("10.1.19.254")}}}})
	if err == nil {
		err = h.Attached()
		h.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestADDIsSeenByAnotherHost goes the whole way: record, etcd, another host's
// view; with a restart of the daemon and the loss of etcd's data.
func TestADDIsSeenByAnotherHost(t *testing.T) {
	url, server := storetest.Etcd(t)
	dir := t.TempDir()
	n, err := ipam.Open(dir, "flannel")
	if err != nil {
		t.Fatal(err)
	}
	peer := open(t, url)
	seen := make(chan []string, 1)
	var watch sync.WaitGroup
	defer watch.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch.Go(func() {
		for v, err := range endpoint.Watch(ctx, peer, prefix) {
			if err == nil {
				var names []string
				for _, e := range v.Values {
					names = append(names, e.Names...)
				}
				latest(seen, names)
			}
		}
	})
	await := func(want ...string) {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			select {
			case got := <-seen:
				if slices.Equal(got, want) {
					return
				}
			case <-limit:
				t.Fatalf("the peer does not see %q", want)
			}
		}
	}
	stop := daemon(t, url, dir)
	defer func() { stop() }()
	var names []string
	var took []time.Duration
	for i := range 20 {
		id := fmt.Sprintf("c%02d", i)
		names = append(names, "web-"+id)
		begin := time.Now()
		attach(t, n, id)
		await(names...)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took[1:])
	t.Logf("from ADD to the peer's view: median %v, most %v", took[10], took[19])

	before, err := peer.List(t.Context(), endpoint.Prefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	stop = daemon(t, url, dir)
	attach(t, n, "d")
	names = append(names, "web-d")
	await(names...)
	after, err := peer.List(t.Context(), endpoint.Prefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	if after.Revision != before.Revision+1 {
		t.Errorf("the restart wrote more than the new record: revision %d, then %d", before.Revision, after.Revision)
	}
	server.Wipe()
	await(names...)
	if again, err := peer.List(t.Context(), endpoint.Prefix(prefix)); err != nil || len(again.KVs) != len(names) {
		t.Errorf("after the loss of the data: %d keys, %v", len(again.KVs), err)
	}
}
