package rules

import (
	"fmt"
	"net/netip"
	"testing"
)

func full() Rules {
	return Rules{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")},
		Masquerade: true,
		Tunnel: Tunnel{Link: "flannel.1", MoreLinks: []string{"flannel-v6.1"}, Underlay: "eth0", Protocol: 17, Ports: []uint16{8472},
			Local: []netip.Addr{netip.MustParseAddr("192.168.77.1")},
			Peers: []netip.Addr{netip.MustParseAddr("192.168.77.2")}},
		Guard:   []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2379")},
		Bridges: []string{"cni0"}, Checked: []string{"cni0"},
		Names: []netip.Addr{netip.MustParseAddr("10.0.0.10")}, OffLink: []netip.Addr{netip.MustParseAddr("10.0.0.10")},
	}
}

func TestEveryDifferenceIsSeenAndCloneSharesNothing(t *testing.T) {
	for name, change := range map[string]func(*Rules){
		"networks":   func(r *Rules) { r.Networks[0] = netip.MustParsePrefix("10.2.0.0/16") },
		"subnets":    func(r *Rules) { r.Subnets = nil },
		"masquerade": func(r *Rules) { r.Masquerade = false },
		"link":       func(r *Rules) { r.Tunnel.Link = "" },
		"more links": func(r *Rules) { r.Tunnel.MoreLinks[0] = "x" },
		"underlay":   func(r *Rules) { r.Tunnel.Underlay = "eth1" },
		"protocol":   func(r *Rules) { r.Tunnel.Protocol = 4 },
		"port":       func(r *Rules) { r.Tunnel.Ports[0]++ },
		"plain":      func(r *Rules) { r.Tunnel.Plain = true },
		"checked":    func(r *Rules) { r.Checked[0] = "cni1" },
		"peers":      func(r *Rules) { r.Tunnel.Peers[0] = r.Tunnel.Peers[0].Next() },
		"bridges":    func(r *Rules) { r.Bridges[0] = "docker0" },
		"local":      func(r *Rules) { r.Tunnel.Local[0] = r.Tunnel.Local[0].Next() },
		"names":      func(r *Rules) { r.Names[0] = r.Names[0].Next() },
		"off link":   func(r *Rules) { r.OffLink[0] = r.OffLink[0].Next() },
		"guard":      func(r *Rules) { r.Guard[0] = netip.MustParseAddrPort("127.0.0.1:2380") },
	} {
		r := full()
		c := r.Clone()
		if !c.Equal(r) {
			t.Fatal("a clone differs")
		}
		change(&c)
		if c.Equal(r) || !r.Equal(full()) {
			t.Errorf("%s: not seen, or shared with the clone", name)
		}
	}
}

func TestEqualButPeersLooksAtAllTheRest(t *testing.T) {
	r := full()
	r.Tunnel.Peers = nil
	if !r.EqualButPeers(full()) {
		t.Error("other peers are seen")
	}
	r.Tunnel.Plain = true
	if r.EqualButPeers(full()) {
		t.Error("another tunnel is not seen")
	}
	if len(full().Tunnel.Peers) == 0 || r.Tunnel.Peers != nil {
		t.Error("peers were changed")
	}
}

func TestIPInIPIsAnotherProtocolOverIPv6(t *testing.T) {
	for protocol, want := range map[uint8][2]uint8{4: {4, 41}, 47: {47, 47}, 17: {17, 17}, 0: {0, 0}} {
		tun := Tunnel{Protocol: protocol}
		if got := [2]uint8{tun.Over(true), tun.Over(false)}; got != want {
			t.Errorf("%d is %v, want %v", protocol, got, want)
		}
	}
}

func TestAddressesOfOneFamilyEachOnce(t *testing.T) {
	all := []netip.Addr{netip.MustParseAddr("fd00::a"), netip.MustParseAddr("10.0.0.10"), {}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.10")}
	for v4, want := range map[bool]string{true: "[10.0.0.1 10.0.0.10]", false: "[fd00::a]"} {
		if got := fmt.Sprint(OfFamily(all, v4)); got != want {
			t.Errorf("IPv4 %v: %s, want %s", v4, got, want)
		}
	}
}

func TestGuardedHere(t *testing.T) {
	local, err := Local()
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"127.0.0.9": true, "::": true, "::ffff:0.0.0.0": true, "203.0.113.77": false} {
		if got := Here(netip.MustParseAddr(addr), local); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}
