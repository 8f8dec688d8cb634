package link_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// watched is a host with a monitor on flannel.1 and eth0, and a handle whose
// doing is no news.
type watched struct {
	host
	m   *link.Monitor
	own *link.Handle
	dev link.Link
}

func newWatched(t *testing.T) watched {
	t.Helper()
	w := watched{host: newHost(t)}
	w.ip(t, "addr add 192.168.7.1/24 dev eth0")
	o := &link.Own{}
	var err error
	if w.own, err = link.OpenAt(w.ns.Path()); err == nil {
		err = w.own.Record(o)
	}
	if err == nil {
		err = w.ns.Do(func() (err error) {
			w.m, err = link.NewMonitor(link.Watch{Devices: []string{"flannel.1"}, Underlay: []string{"eth0"}}, o)
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.own.Close()
	})
	eth0, err := w.own.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	w.make(t, eth0.Index)
	w.quiet(t, "making the device")
	return w
}

// make makes flannel.1 as a driver does.
func (w *watched) make(t *testing.T, underlay int) {
	t.Helper()
	v := link.Vxlan{VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.168.7.1"), Link: underlay}
	w.dev = host{w.ns, w.own}.vxlan(t, "flannel.1", v)
	for _, p := range []string{"10.255.0.0/32", "fd00:1:0:2::/128"} {
		if err := w.own.AddAddress(w.dev.Index, netip.MustParsePrefix(p)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.own.LinkByIndex(w.dev.Index); err != nil {
		t.Fatal(err)
	}
}

func (w *watched) quiet(t *testing.T, what string) {
	t.Helper()
	select {
	case c := <-w.m.C:
		t.Errorf("%s: told %+v", what, c)
	case <-time.After(150 * time.Millisecond):
	}
}

func (w *watched) told(t *testing.T, what string, want link.Change) {
	t.Helper()
	select {
	case c := <-w.m.C:
		if c != want {
			t.Errorf("%s: told %+v, want %+v", what, c, want)
		}
	case <-time.After(2 * time.Second):
		t.Errorf("%s: told nothing", what)
	}
}

func (w *watched) peers(t *testing.T, n int, del bool) {
	t.Helper()
	b := w.own.Batch(func(i int, err error) { t.Error(i, err) })
	routes, neighbours, fdbs := entries(w.dev.Index, n, false)
	for i := range routes {
		if del {
			b.DelRoute(routes[i])
			b.DelNeighbour(neighbours[i])
			b.DelFDB(fdbs[i])
		} else {
			b.SetFDB(fdbs[i])
			b.SetNeighbour(neighbours[i])
			b.SetRoute(routes[i])
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestMonitorTellsWhatOthersDidAndNotWhatWeDid(t *testing.T) {
	w := newWatched(t)
	w.peers(t, 5000, false)
	w.quiet(t, "5,000 peers of ours")
	w.peers(t, 10, true)
	w.quiet(t, "removing some of them")
	w.peers(t, 10, false)
	w.quiet(t, "adding them again")

	devices, underlay := link.Change{Devices: true}, link.Change{Underlay: true}
	for _, c := range []struct {
		want link.Change
		run  string
	}{
		{devices, "ip route del 10.0.1.0/24"},
		{devices, "ip route replace 10.0.2.0/24 via 10.0.2.0 dev flannel.1 onlink metric 3"},
		{devices, "ip neigh del 10.0.3.0 dev flannel.1"},
		{devices, "ip neigh replace 10.0.4.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent"},
		{devices, "bridge fdb del 46:00:00:00:00:05 dev flannel.1 dst 172.0.0.6"},
		{devices, "bridge fdb replace 46:00:00:00:00:06 dev flannel.1 dst 172.9.9.9"},
		{devices, "ip route add 10.8.0.0/24 via 192.168.7.9 dev eth0 proto 102"},
		{devices, "ip addr del 10.255.0.0/32 dev flannel.1"},
		{devices, "ip -6 addr del fd00:1:0:2::/128 dev flannel.1"},
		{devices, "ip link set flannel.1 mtu 1280"},
		{devices, "ip link set flannel.1 address 02:00:00:00:00:08"},
		{devices, "ip link set flannel.1 down"},
		{devices, "ip link set flannel.1 up"},
		{devices, "ip link set flannel.1 name other"},
		{devices, "ip link set other name flannel.1"},
		{devices, "ip link del flannel.1"},
		{underlay, "ip addr add 192.168.7.2/24 dev eth0"},
		{underlay, "ip addr del 192.168.7.2/24 dev eth0"},
		{underlay, "ip link set eth0 mtu 1400"},
		{underlay, "ip link set eth0 down"},
		{underlay, "ip link del eth0"},
	} {
		args := fields(c.run)
		netnstest.Run(t, w.ns, args[0], args[1:]...)
		w.told(t, c.run, c.want)
	}
}

func TestMonitorSleepsThroughChurnElsewhere(t *testing.T) {
	w := newWatched(t)
	for _, line := range []string{
		"link add br0 up type bridge", "addr add 10.9.0.1/24 dev br0", "route add 10.200.0.0/16 via 10.9.0.9",
		"route add 10.201.0.0/16 via 192.168.7.9", "route del 10.201.0.0/16",
		"neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev br0 nud permanent", "link del br0",
		"neigh add 192.168.7.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
	} {
		w.ip(t, line)
	}
	w.quiet(t, "others' business")
}

func TestMonitorFollowsADeviceThatWasMadeAgain(t *testing.T) {
	w := newWatched(t)
	eth0, err := w.own.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.own.DeleteLink(w.dev.Index); err != nil {
		t.Fatal(err)
	}
	w.make(t, eth0.Index)
	w.peers(t, 100, false)
	w.quiet(t, "replacing the device ourselves")
	w.ip(t, "route del 10.0.1.0/24")
	w.told(t, "a route on the new one", link.Change{Devices: true})
	w.ip(t, "link set flannel.1 down")
	w.ip(t, "link set flannel.1 up")
	w.told(t, "down and up, which loses the routes", link.Change{Devices: true})
}

func TestMonitorSaysWhenItLostSomething(t *testing.T) {
	w := newHost(t)
	dev := w.vxlan(t, "flannel.1", link.Vxlan{VNI: 1, Port: 8472})
	var m *link.Monitor
	err := w.ns.Do(func() (err error) {
		m, err = link.NewMonitor(link.Watch{Devices: []string{"flannel.1"}}, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody reads yet, and the handle is not one of those that are ignored.
	b := w.h.Batch(func(i int, err error) { t.Error(i, err) })
	for range 2 {
		routes, neighbours, fdbs := entries(dev.Index, 8000, false)
		for i := range routes {
			b.SetFDB(fdbs[i])
			b.SetNeighbour(neighbours[i])
			b.SetRoute(routes[i])
		}
		for i := range routes {
			b.DelFDB(fdbs[i])
			b.DelNeighbour(neighbours[i])
			b.DelRoute(routes[i])
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	select {
	case c := <-m.C:
		if !c.Lost {
			t.Errorf("told %+v", c)
		}
	case <-time.After(5 * time.Second):
		t.Error("told nothing")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMonitorWatchesNamesThatBeginAlike(t *testing.T) {
	h := newHost(t)
	h.ip(t, "link add mesh-0 up type veth peer name other-0")
	var m *link.Monitor
	err := h.ns.Do(func() (err error) {
		m, err = link.NewMonitor(link.Watch{Devices: []string{"mesh-*"}}, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		line string
		told bool
	}{
		{"addr add 10.1.1.0/32 dev mesh-0", true},
		{"addr add 10.1.2.0/32 dev other-0", false},
		{"link add mesh-1 type veth peer name other-1", true},
		{"addr add 10.1.3.0/32 dev mesh-1", true},
		{"route add 10.9.0.0/16 dev mesh-0", true},
		{"link set other-1 mtu 1300", false},
		{"link del mesh-1", true},
	} {
		h.ip(t, c.line)
		got := false
		for quiet := false; !quiet; {
			select {
			case n := <-m.C:
				got = got || n.Devices
			case <-time.After(800 * time.Millisecond):
				quiet = true
			}
		}
		if got != c.told {
			t.Errorf("%s: told %t", c.line, got)
		}
	}
}
