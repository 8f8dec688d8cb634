package link

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

func openPorts(t testing.TB, n *netns.NS) *Ports {
	t.Helper()
	var p *Ports
	if err := n.Do(func() (err error) { p, err = OpenPorts(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

var testBridge = Bridge{
	Name: "cni0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1450,
	Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.1/24"), netip.MustParsePrefix("fd00:1::1/64")},
}

func TestBridgeIsMadeOnceAndStays(t *testing.T) {
	host := netnstest.New(t)
	p := openPorts(t, host)
	first, err := p.Bridge(testBridge)
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Bridge(testBridge)
	if err != nil {
		t.Fatal(err)
	}
	if first.Index != again.Index || again.MAC.String() != testBridge.MAC.String() || again.MTU != 1450 || !again.Up {
		t.Errorf("first %+v, again %+v", first, again)
	}
	have, err := p.Addresses(first.Index)
	if err != nil || !slices.Contains(have, testBridge.Addresses[0]) || !slices.Contains(have, testBridge.Addresses[1]) {
		t.Errorf("addresses %v %v", have, err)
	}
}

func TestBridgeMACDoesNotDriftWithItsPorts(t *testing.T) {
	host, inside := netnstest.New(t), netnstest.New(t)
	p := openPorts(t, host)
	netnstest.Run(t, host, "ip", "link", "add", "cni0", "type", "bridge") // made by somebody else, without a MAC
	br, err := p.Bridge(testBridge)
	if err != nil {
		t.Fatal(err)
	}
	mac := br.MAC.String()
	if err := p.AddVeth(Veth{Name: "fl0", Bridge: br.Index, Peer: "eth0", PeerNS: inside.FD()}); err != nil {
		t.Fatal(err)
	}
	netnstest.Run(t, host, "ip", "link", "set", "fl0", "address", "02:00:00:00:00:00")
	if br, _ = p.Port("cni0"); br.MAC.String() != mac {
		t.Errorf("MAC was %s, is %s", mac, br.MAC)
	}
}

func TestForeignBridgeAddressIsAnErrorUnlessForced(t *testing.T) {
	host := netnstest.New(t)
	p := openPorts(t, host)
	netnstest.Run(t, host, "ip", "link", "add", "cni0", "type", "bridge")
	netnstest.Run(t, host, "ip", "addr", "add", "10.9.9.1/24", "dev", "cni0")
	_, err := p.Bridge(testBridge)
	if e, ok := errors.AsType[*AddressError](err); !ok || e.Have.String() != "10.9.9.1/24" {
		t.Fatalf("got %v", err)
	}
	forced := testBridge
	forced.Force = true
	br, err := p.Bridge(forced)
	if err != nil {
		t.Fatal(err)
	}
	have, _ := p.Addresses(br.Index)
	if slices.Contains(have, netip.MustParsePrefix("10.9.9.1/24")) || !slices.Contains(have, testBridge.Addresses[0]) {
		t.Errorf("addresses %v", have)
	}
}

func TestLinkOfAnotherKindIsNotTakenForABridge(t *testing.T) {
	host := netnstest.New(t)
	p := openPorts(t, host)
	netnstest.Run(t, host, "ip", "link", "add", "cni0", "type", "veth", "peer", "name", "x")
	if _, err := p.Bridge(testBridge); err == nil || !strings.Contains(err.Error(), `kind "veth"`) {
		t.Errorf("got %v", err)
	}
}

func TestVethIsPluggedInAndConfigured(t *testing.T) {
	host, inside := netnstest.New(t), netnstest.New(t)
	p, in := openPorts(t, host), openPorts(t, inside)
	br, err := p.Bridge(testBridge)
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{0x0a, 0x58, 10, 1, 2, 3}
	v := Veth{Name: "fl0", Alias: "net c1 eth0", Bridge: br.Index, Hairpin: true, MTU: 1400, Peer: "eth0", PeerMAC: mac, PeerNS: inside.FD()}
	if err := p.AddVeth(v); err != nil {
		t.Fatal(err)
	}
	eth0, err := in.Port("eth0")
	if err != nil {
		t.Fatal(err)
	}
	gw4, gw6 := testBridge.Addresses[0].Addr(), testBridge.Addresses[1].Addr()
	want := Inside{
		Index:     eth0.Index,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00:1::3/64")},
		Routes:    []Inroute{{To: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gw4}, {To: netip.MustParsePrefix("::/0"), Gateway: gw6}},
	}
	if err := in.FillIn(want); err != nil {
		t.Fatal(err)
	}
	if err := p.Learn(br.Index, []netip.Addr{want.Addresses[0].Addr(), want.Addresses[1].Addr()}, mac); err != nil {
		t.Fatal(err)
	}
	for _, a := range want.Addresses {
		netnstest.Run(t, host, "ping", "-c1", "-W2", a.Addr().String())
	}
	netnstest.Run(t, inside, "ping", "-c1", "-W2", gw6.String())
	eth0, _ = in.Port("eth0")
	port, err := p.Port("fl0")
	if err != nil {
		t.Fatal(err)
	}
	if eth0.MTU != 1400 || port.MTU != 1400 || eth0.MAC.String() != mac.String() || !port.Hairpin || port.Alias != v.Alias ||
		port.Master != br.Index || port.Peer != eth0.Index || !port.Up || !port.Running {
		t.Errorf("outside %+v\ninside %+v", port, eth0)
	}
	if have, _ := p.Addresses(port.Index); len(have) != 0 {
		t.Errorf("the port has addresses %v", have)
	}
	routes, err := in.Routes(eth0.Index, 0)
	if err != nil || !slices.ContainsFunc(routes, func(r Inroute) bool { return r.To.Bits() == 0 && r.Gateway == gw4 }) ||
		!slices.ContainsFunc(routes, func(r Inroute) bool { return r.To.Bits() == 0 && r.Gateway == gw6 }) {
		t.Errorf("routes %+v %v", routes, err)
	}
	if on, err := p.On(br.Index); err != nil || len(on) != 1 || on[0].Name != "fl0" {
		t.Errorf("ports %+v %v", on, err)
	}
	for range 2 {
		if err := p.Delete("fl0"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.Port("eth0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("eth0 stays: %v", err)
	}
}

func TestAddVethFailsWholeWhenANameIsTaken(t *testing.T) {
	host, inside := netnstest.New(t), netnstest.New(t)
	p := openPorts(t, host)
	netnstest.Run(t, inside, "ip", "link", "add", "eth0", "type", "bridge")
	err := p.AddVeth(Veth{Name: "fl0", Peer: "eth0", PeerNS: inside.FD()})
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("got %v", err)
	}
	if _, err := p.Port("fl0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("fl0 stays: %v", err)
	}
	if err := p.AddVeth(Veth{Name: "fl0", Bridge: 9999, Peer: "eth1", PeerNS: inside.FD()}); err == nil {
		t.Error("plugged into a bridge that is not there")
	}
	if _, err := p.Port("fl0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("fl0 stays: %v", err)
	}
}

func BenchmarkPlugIn(b *testing.B) {
	host := netnstest.New(b)
	p := openPorts(b, host)
	br, err := p.Bridge(testBridge)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		inside := netnstest.New(b)
		b.StartTimer()
		in := openPorts(b, inside)
		if err := p.AddVeth(Veth{Name: "fl0", Bridge: br.Index, Peer: "eth0", PeerNS: inside.FD()}); err != nil {
			b.Fatal(err)
		}
		eth0, err := in.Port("eth0")
		if err != nil {
			b.Fatal(err)
		}
		if err := in.FillIn(Inside{Index: eth0.Index, Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")},
			Routes: []Inroute{{To: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.2.1")}}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := p.Delete("fl0"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
