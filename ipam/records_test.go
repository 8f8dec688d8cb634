package ipam

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRecordsAreReadWithoutLocks(t *testing.T) {
	dir := t.TempDir()
	if names, err := Networks(filepath.Join(dir, "nothing")); err != nil || len(names) > 0 {
		t.Errorf("without a directory: %v, %v", names, err)
	}
	n, err := Open(dir, "net")
	if err != nil {
		t.Fatal(err)
	}
	r := Record{
		ContainerID: "a", IfName: "eth0", Masquerade: true, Guarded: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")}, Inside: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
	}
	held, err := n.Reserve(r, Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir(), "10.1.2.4,b,eth0"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := n.Records() // while it is locked
	if err != nil || len(got) != 1 || got[0].ContainerID != "a" || !slices.Equal(got[0].Inside, r.Inside) {
		t.Errorf("%+v, %v", got, err)
	}
	k := Key{"a", "eth0"}
	if _, err := n.Try(k); !errors.Is(err, ErrBusy) {
		t.Errorf("somebody works on it: %v", err)
	}
	held.Close()
	again, err := n.Try(k)
	if err != nil || again == nil {
		t.Fatal(again, err)
	}
	again.Close()
	if none, err := n.Try(Key{"x", "eth0"}); none != nil || err != nil {
		t.Errorf("there is no such attachment: %v, %v", none, err)
	}
	if names, err := Networks(dir); err != nil || !slices.Equal(names, []string{"net"}) {
		t.Errorf("networks %v, %v", names, err)
	}
}

func TestUnguardedChangesNothingElse(t *testing.T) {
	n, err := Open(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	for name, finished := range map[string]bool{"a": false, "b": true} {
		k := Key{name, "eth0"}
		held, err := n.Reserve(Record{ContainerID: name, IfName: "eth0", Guarded: true, Labels: map[string]string{"guarded": "true"}}, Request{})
		if err != nil {
			t.Fatal(err)
		}
		want := held.Record
		if want.Guarded = false; finished {
			err, want.Attached = held.Attached(), true
		}
		if err := errors.Join(err, held.Unguarded()); err != nil {
			t.Fatal(err)
		}
		held.Close()
		got, ok, err := n.Peek(k)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if a, b := string(must(got.encode())), string(must(want.encode())); a != b || got.Attached != finished {
			t.Errorf("record %s, want %s", a, b)
		}
		if !finished { // an ADD goes on with it
			held, err := n.Find(k)
			if err != nil || !held.Intact || held.Record.ContainerID != name {
				t.Fatal(held, err)
			}
			if err := held.Attached(); err != nil {
				t.Fatal(err)
			}
			held.Close()
			if r, _, err := n.Peek(k); err != nil || !r.Attached || r.Guarded {
				t.Errorf("%+v, %v", r, err)
			}
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestRewrittenRecordIsFoundByItsNewAddresses(t *testing.T) {
	n, err := Open(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	held, err := n.Reserve(Record{ContainerID: "a", IfName: "eth0", HostLink: "fl0", Labels: map[string]string{"a": "long label that goes"}}, Request{})
	if err != nil {
		t.Fatal(err)
	}
	r := held.Record
	r.Labels, r.Addresses = nil, []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")}
	if err := held.Rewrite(r); err != nil {
		t.Fatal(err)
	}
	if err := held.Attached(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Try(Key{"a", "eth0"}); !errors.Is(err, ErrBusy) {
		t.Errorf("the lock did not last: %v", err)
	}
	held.Close()
	taken, err := n.Taken()
	if err != nil || len(taken) != 1 || !slices.Equal(taken[0].Addresses, []netip.Addr{netip.MustParseAddr("10.1.2.3")}) {
		t.Errorf("taken %+v, %v", taken, err)
	}
	again, err := n.Find(Key{"a", "eth0"})
	if err != nil || again == nil || !again.Intact || !again.Record.Attached || len(again.Record.Labels) > 0 || !slices.Equal(again.Record.Addresses, r.Addresses) {
		t.Fatalf("%+v, %v", again, err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
	if taken, err := n.Taken(); err != nil || len(taken) > 0 {
		t.Errorf("after its release: %+v, %v", taken, err)
	}
}
