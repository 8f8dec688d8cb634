package vxlan

import (
	"context"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
)

// TestMonitorsDoNotHearTheDriver is the loop of a daemon: what Sync writes
// must not make it look again, what others do must.
func TestMonitorsDoNotHearTheDriver(t *testing.T) {
	a := newAlone(t, "")
	own := &link.Own{}
	var m *link.Monitor
	var dev backend.Device
	err := a.ns.Do(func() (err error) {
		if m, err = link.NewMonitor(link.Watch{Devices: []string{"flannel.1", "flannel-v6.1"}, Underlay: []string{"eth0"}}, own); err != nil {
			return err
		}
		dev, err = Driver{routed.Options{Own: own}}.Open(t.Context(), a.cfg, a.u, "identity")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cfg := a.cfg
	peers := manyPeersOf(cfg, 4000)
	quiet := func(what string) {
		t.Helper()
		select {
		case c := <-m.C:
			t.Errorf("%s: told %+v", what, c)
		case <-time.After(300 * time.Millisecond):
		}
	}
	for _, n := range []int{4000, 3000, 4000} {
		if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers[:n]...)); err != nil {
			t.Fatal(err)
		}
		quiet("own writes")
	}
	for _, damage := range []string{"ip route flush dev flannel.1 proto 102", "ip link del flannel-v6.1", "bridge fdb del 46:00:00:00:00:05 dev flannel.1", "ip link set flannel.1 name renamed"} {
		a.run(t, damage)
		select {
		case c := <-m.C:
			if !c.Devices {
				t.Errorf("%s: told %+v", damage, c)
			}
		case <-time.After(2 * time.Second):
			t.Errorf("%s: told nothing", damage)
		}
		for told := true; told; { // a long damage may be told more than once
			select {
			case <-m.C:
			case <-time.After(700 * time.Millisecond):
				told = false
			}
		}
		w := dev.(*Device).Writes()
		dev.Forget()
		if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
			t.Fatal(err)
		}
		if dev.(*Device).Writes() == w {
			t.Errorf("%s: nothing repaired", damage)
		}
		quiet("the repair")
	}
}
