package endpoint

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/flanneld/flanneld/store"
)

func BenchmarkParse(b *testing.B) {
	e := made("host1", "0123456789abcdef0123456789abcdef", 1, 0)
	value, err := json.Marshal(e)
	if err != nil {
		b.Fatal(err)
	}
	kv := store.KV{Key: e.Key(prefix), Value: value}
	b.ReportAllocs()
	r := newReader(prefix)
	for b.Loop() {
		if _, err := r.parse(kv); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublisherSeesAView is what a change anywhere in a cluster of
// 100,000 endpoints costs a host that has 100 of them.
func BenchmarkPublisherSeesAView(b *testing.B) {
	var all []*Endpoint
	for host := range 1000 {
		all = append(all, several(fmt.Sprintf("host%d", host), "id", 0, 100)...)
	}
	sortByKey(all)
	r := publishing{Publisher: &Publisher{Prefix: prefix, Host: "host77", Identity: "id"}}
	r.hear(several("host77", "id", 0, 100))
	b.ReportAllocs()
	for b.Loop() {
		r.see(store.Records[Endpoint]{Values: all})
		if wait := r.step(b.Context()); wait != 0 || r.err != nil {
			b.Fatal(wait, r.err)
		}
	}
}
