package zone

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
)

// listing is a store that has one snapshot and keeps what a real one does.
type listing struct {
	store.Store
	kvs []store.KV
}

func (l *listing) Watch(_ context.Context, _ string, parse func(store.KV) any) iter.Seq2[store.Snapshot, error] {
	return func(yield func(store.Snapshot, error) bool) {
		p := store.NewParsing(parse)
		p.Take(l.kvs, nil)
		yield(store.Snapshot{KVs: l.kvs}, nil)
		runtime.KeepAlive(l)
	}
}

// TestMemoryOfAnEndpoint: from etcd's answer to the zone.
func TestMemoryOfAnEndpoint(t *testing.T) {
	const n, most = 50_000, 720
	before := heap()
	l := &listing{kvs: make([]store.KV, 0, n)}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)})
		id := fmt.Sprintf("%x", sha256.Sum256(a.AsSlice()))
		e := endpoint.Endpoint{Tenant: "default", Network: "default", Host: fmt.Sprintf("host%04d", i/300), Identity: fmt.Sprintf("%032x", i/300), Container: id, IfName: "eth0",
			Addresses: []netip.Addr{a}, MAC: fmt.Sprintf("0a:58:0a:%02x:%02x:%02x", 128+i>>16, i>>8&255, i&255), Names: []string{fmt.Sprintf("n%06d", i)}}
		e.ID = e.Host + "," + id + ",eth0"
		value, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		l.kvs = append(l.kvs, store.KV{Key: strings.Clone(e.Key("/coreos.com/network")), Value: value, ModRevision: int64(i + 2), CreateRevision: int64(i + 2)})
	}
	slices.SortFunc(l.kvs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	for r, err := range endpoint.Watch(t.Context(), l, "/coreos.com/network") {
		if err != nil || len(r.Values) != n {
			t.Fatal(err, len(r.Values), r.Problems[:1])
		}
		read := heap()
		var b Builder
		z := b.Build(State{Domain: "cluster.local", Tenant: "default", Networks: prefixes("10.0.0.0/8"), Endpoints: r.Values})
		built := heap()
		t.Logf("%d bytes for what is read, %d for the zone", (read-before)/n, (built-read)/n)
		if got := ask(z, "n000007.default.cluster.local", typeA); got != "10.128.0.7" {
			t.Error(got)
		}
		if built-before > most*n {
			t.Errorf("%d bytes for each endpoint", (built-before)/n)
		}
		if f := os.Getenv("HEAP_PROFILE"); f != "" {
			w, _ := os.Create(f)
			_ = pprof.Lookup("heap").WriteTo(w, 0)
			w.Close()
		}
	}
}
