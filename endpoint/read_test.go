package endpoint

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/flanneld/flanneld/store"
)

// FuzzPlain compares the two ways to read a value.
func FuzzPlain(f *testing.F) {
	f.Add([]byte(`{"Host":"h","Identity":"1","Container":"c","IfName":"eth0","Addresses":["10.1.19.3","fd00::3"],"MAC":"0a:58:0a:01:13:03","Namespace":"a","Names":["b","c"],"Labels":{"c":"d","e":""},"Unhealthy":{"x":"y"}}`))
	f.Add([]byte(`{"Host":"h","Identity":"1","Container":"c","IfName":"eth0","Addresses":[],"MAC":"","Labels":{}}`))
	f.Add([]byte(`{"Host":"h","Identity":"1","Container":"c","IfName":"eth0","Addresses":["1",],"MAC":""}`))
	f.Add([]byte(`{"Host":"\\u0041","Identity":"1","Container":"c","IfName":"eth0","Addresses":null,"MAC":"","Labels":{"c":1,}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want value
		p := plain{rest: string(b)}
		if !p.value(&got) {
			return
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("%s was read, and is no JSON: %v", b, err)
		}
		var gotLabels, wantLabels map[string]string
		for _, l := range []struct {
			text string
			into *map[string]string
		}{{p.labels, &gotLabels}, {string(want.Labels), &wantLabels}} {
			if l.text != "" {
				if err := json.Unmarshal([]byte(l.text), l.into); err != nil {
					t.Fatal(err)
				}
			}
		}
		same := got.Host == want.Host && got.Identity == want.Identity && got.Container == want.Container && got.IfName == want.IfName &&
			slices.Equal(got.Addresses, want.Addresses) && got.MAC == want.MAC && got.Namespace == want.Namespace &&
			slices.Equal(got.Names, want.Names) && maps.Equal(gotLabels, wantLabels) && maps.Equal(got.Unhealthy, want.Unhealthy)
		if !same {
			t.Errorf("%s\nread as %+v\nnot as  %+v", b, got, want)
		}
	})
}

func written(t testing.TB, e *Endpoint) store.KV {
	t.Helper()
	value, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return store.KV{Key: e.Key(prefix), Value: value}
}

func TestWhatIsWrittenIsReadWithFewAllocations(t *testing.T) {
	e := made("host1", "0123456789abcdef0123456789abcdef", 1, 0)
	e.MAC, e.Namespace, e.Names = "0a:58:0a:01:13:03", "shop", []string{"web-1", "www"}
	e.Addresses = append(e.Addresses, netip.MustParseAddr("fd00::3"))
	kv := written(t, e)
	if p := (plain{rest: string(kv.Value)}); !p.value(&value{}) {
		t.Errorf("%s is read the slow way", kv.Value)
	}
	r := newReader(prefix)
	n := testing.AllocsPerRun(100, func() {
		if got, err := r.parse(kv); err != nil || !got.Equal(e) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	// The value as text, the endpoint, its addresses, names and their texts.
	if n > 5 {
		t.Errorf("%v allocations", n)
	}
}

func TestWhatEndpointsShareIsThereOnce(t *testing.T) {
	r := newReader(prefix)
	var read [2]*Endpoint
	for i := range read {
		e := made("host1", "id", i, 0)
		e.Namespace = "shop"
		kv := written(t, e)
		var err error
		if read[i], err = r.parse(kv); err != nil {
			t.Fatal(err)
		}
		clear(kv.Value) // nothing of it is kept
		if !read[i].Equal(e) {
			t.Errorf("became %+v", read[i])
		}
	}
	a, b := read[0], read[1]
	if unsafe.StringData(a.Identity) != unsafe.StringData(b.Identity) || unsafe.StringData(a.Namespace) != unsafe.StringData(b.Namespace) {
		t.Error("two texts that are equal")
	}
	a.Labels["version"] = "changed"
	if b.Labels["version"] != "changed" {
		t.Error("two sets of labels that are equal")
	}
}

func TestReaderKeepsNoMoreThanItMay(t *testing.T) {
	r := newReader(prefix)
	for n := range 2 * maxKept {
		if e, err := r.parse(written(t, made("host1", fmt.Sprint("id", n), n, n))); err != nil || e.Labels["version"] != fmt.Sprint(n) || e.Identity != fmt.Sprint("id", n) {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if len(r.texts) > maxKept || len(r.labels) > maxKept {
		t.Errorf("%d texts, %d sets of labels", len(r.texts), len(r.labels))
	}
}
