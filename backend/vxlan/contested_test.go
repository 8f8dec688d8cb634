package vxlan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/subnet"
)

// TestTheElderHasWhatIsContested has two peers claim one thing: that of
// host 10 is served whenever it is there, alone or with that of host 20.
func TestTheElderHasWhatIsContested(t *testing.T) {
	mac := func(elder, later *subnet.Lease) { later.Data = elder.Data }
	network := func(elder, later *subnet.Lease) { later.Subnets = elder.Subnets }
	both := func(elder, later *subnet.Lease) { mac(elder, later); network(elder, later) }
	keys := func(e, l string) func(*subnet.Lease, *subnet.Lease) {
		return func(elder, later *subnet.Lease) { elder.Key, later.Key = e, l }
	}
	created := func(elder, later *subnet.Lease) { elder.Created, later.Created = 7, 8 }
	for name, shape := range map[string][]func(elder, later *subnet.Lease){
		"MAC, key before":          {mac, keys("z", "a"), created},
		"MAC, key after":           {mac, keys("a", "z"), created},
		"MAC, of one age":          {mac, keys("a", "z")},
		"subnet, key before":       {network, keys("z", "a"), created},
		"subnet, key after":        {network, keys("a", "z"), created},
		"MAC, subnet, key before":  {both, keys("z", "a"), created},
		"MAC, subnet, of one age":  {both, keys("a", "z")},
		"of an age beyond the key": {both, keys("lease-9", "lease-10"), created},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAlone(t, "")
			dev := a.mustOpen(t)
			elder, later := leaseOf(10), leaseOf(20)
			for _, f := range shape {
				f(&elder, &later)
			}
			sync := func(want string, peers ...subnet.Lease) {
				t.Helper()
				err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...))
				pe, ok := errors.AsType[*backend.PeerError](err)
				if len(peers) == 2 && (!ok || pe.Peer.Key != later.Key || len(pe.Served) != 0) || len(peers) == 1 && err != nil {
					t.Errorf("got %v", err)
				}
				if got := a.run(t, "bridge fdb show dev flannel.1"); !strings.Contains(got, "dst "+want+" ") || strings.Count(got, "46:00:") != 1 {
					t.Errorf("want %s, have %s", want, got)
				}
				if got := a.run(t, "ip route show dev flannel.1"); strings.Count(got, "onlink") != 1 {
					t.Errorf("routes %s", got)
				}
			}
			const first, second = "192.168.77.10", "192.168.77.20"
			sync(second, later)
			sync(first, elder, later) // whenever it comes
			sync(first, later, elder) // order does not matter
			sync(second, later)
			dev.Forget()
			sync(second, later)
			dev.Forget()
			sync(first, later, elder)
			sync(first, elder)
			sync(first, elder, later)
		})
	}
}

// TestALeaseTakenAnewIsYounger deletes and makes a lease between two Syncs,
// with the same content.
func TestALeaseTakenAnewIsYounger(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	x, y := leaseOf(10), leaseOf(20)
	y.Data, x.Created, y.Created = x.Data, 5, 6
	for _, unserved := range []string{y.Key, x.Key} {
		err := dev.Sync(t.Context(), &a.own, backendtest.Peers(x, y))
		if pe, ok := errors.AsType[*backend.PeerError](err); !ok || pe.Peer.Key != unserved {
			t.Errorf("got %v, want %s unserved", err, unserved)
		}
		x.Created = 7
	}
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(x)); err != nil {
		t.Fatal(err)
	}
	before := dev.(*Device).Writes()
	x.Created = 8
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(x)); err != nil || dev.(*Device).Writes() != before {
		t.Errorf("%v, %d writes for a lease that says the same", err, dev.(*Device).Writes()-before)
	}
}

func TestPeerErrorsTellWhichFamilyIsServed(t *testing.T) {
	a := newAlone(t, "")
	dev := a.mustOpen(t)
	half := leaseOf(10)
	half.Data.V6 = nil
	err := dev.Sync(t.Context(), &a.own, backendtest.Peers(half))
	if pe, ok := errors.AsType[*backend.PeerError](err); !ok || !slices.Equal(pe.Served, half.PublicIPs[:1]) {
		t.Errorf("got %+v", pe)
	}
	a.run(t, "ip route get 10.1.10.1")
}
