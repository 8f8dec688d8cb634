package link_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestUnpluggedTellsWhatBridgesLose(t *testing.T) {
	ns := netnstest.New(t)
	sh := func(script string) { t.Helper(); netnstest.Run(t, ns, "sh", "-c", script) }
	sh("ip link add cni0 up type bridge; ip addr add 10.1.2.1/24 dev cni0; ip link add fl0 up master cni0 type veth peer name x0; ip link set x0 up")
	var m *link.Monitor
	if err := ns.Do(func() (err error) {
		if m, err = link.NewMonitor(link.Watch{}, nil); err == nil {
			err = m.WatchBridges([]string{"cni0"})
		}
		return err
	}); err != nil {
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
	const plug = "ip link add fl1 type veth peer name x1; ip link set fl1 master cni0; ip link set fl1 up; ip link set x1 up"
	for _, x := range []struct {
		what, script string
		told         bool
	}{
		{"nothing", "true", false},
		{"a container comes", plug, false},
		{"it goes", "ip link del fl1", false},
		{"another address", "ip addr add 10.9.0.1/24 dev cni0", false},
		{"and it goes", "ip addr del 10.9.0.1/24 dev cni0", true},
		{"a container's own end down", "ip link set x0 down; ip link set x0 up", false},
		{"somebody else's link", "ip link add y0 up type bridge; ip addr add 10.8.0.1/24 dev y0; ip addr del 10.8.0.1/24 dev y0; ip link del y0", false},
		{"gateway's address", "ip addr del 10.1.2.1/24 dev cni0", true},
		{"put back", "ip addr add 10.1.2.1/24 dev cni0", false},
		{"port off", "ip link set fl0 nomaster", true},
		{"port on", "ip link set fl0 master cni0", false},
		{"port down", "ip link set fl0 down", true},
		{"port up", "ip link set fl0 up", false},
		{"bridge down", "ip link set cni0 down", true},
		{"bridge up", "ip link set cni0 up", false},
		{"off and on at once", "ip link set fl0 nomaster; ip link set fl0 master cni0", false},
		{"bridge deleted", "ip link del cni0", true},
		{"made again", "ip link add cni0 up type bridge; ip addr add 10.1.2.1/24 dev cni0; ip link set fl0 master cni0", false},
		{"its address", "ip addr del 10.1.2.1/24 dev cni0", true},
	} {
		sh(x.script)
		told := false
		select {
		case <-m.Unplugged:
			told = true
		case <-time.After(200 * time.Millisecond):
		}
		if told != x.told {
			t.Errorf("%s: told %t", x.what, told)
		}
	}
	select {
	case c := <-m.C:
		t.Errorf("told of devices: %+v", c)
	default:
	}
}

func TestHoldersAndToward(t *testing.T) {
	ns := netnstest.New(t)
	netnstest.Run(t, ns, "sh", "-c", `ip link add a0 up type bridge; ip addr add 10.5.1.9/24 dev a0; ip -6 addr add fd00:5::9/64 dev a0 nodad
		ip addr add 10.9.0.1/16 dev a0; ip route add 10.7.0.0/24 via 10.5.1.1`)
	var p *link.Ports
	if err := ns.Do(func() (err error) { p, err = link.OpenPorts(); return err }); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	a0, err := p.Port("a0")
	if err != nil {
		t.Fatal(err)
	}
	if same, err := p.PortAt(a0.Index); err != nil || same.Name != "a0" {
		t.Errorf("%+v, %v", same, err)
	}
	for _, subnet := range []string{"10.5.1.0/24", "fd00:5::/64"} {
		if got, err := p.Holders(netip.MustParsePrefix(subnet)); err != nil || len(got) != 1 || got[0].Index != a0.Index {
			t.Errorf("holders in %s: %+v, %v", subnet, got, err)
		}
	}
	for to, want := range map[string]int{
		"10.5.1.1/24": a0.Index, "10.5.1.9/24": a0.Index, "fd00:5::1/64": a0.Index, "10.7.0.1/24": 0, "192.0.2.1/24": 0, "10.9.5.1/24": 0,
		"fd00:6::1/64": 0,
	} {
		prefix := netip.MustParsePrefix(to)
		if got, err := p.Toward(prefix.Addr(), prefix.Bits()); err != nil || got != want {
			t.Errorf("toward %s: %d, want %d, %v", to, got, want, err)
		}
	}
}
