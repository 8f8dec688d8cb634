package loop

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestTheLongestSubnetHasAnAddress(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 8285) }
	table := NewTable([]Peer{
		{netip.MustParsePrefix("10.1.2.0/24"), at("192.0.2.2")},
		{netip.MustParsePrefix("10.1.2.128/25"), at("192.0.2.3")},
		{netip.MustParsePrefix("10.2.0.0/16"), at("192.0.2.4")},
		{netip.MustParsePrefix("fd00:1:2::/64"), at("2001:db8::2")},
		{netip.MustParsePrefix("fd00:1:2:0:8000::/65"), at("2001:db8::3")},
		{netip.MustParsePrefix("fd00:1:2::1/128"), at("2001:db8::4")},
	})
	for addr, want := range map[string]string{
		"10.1.2.1": "192.0.2.2", "10.1.2.127": "192.0.2.2", "10.1.2.128": "192.0.2.3", "10.1.2.255": "192.0.2.3",
		"10.2.255.255": "192.0.2.4", "10.1.3.0": "", "10.1.1.255": "", "0.0.0.0": "", "255.255.255.255": "",
		"fd00:1:2::2": "2001:db8::2", "fd00:1:2:0:8000::": "2001:db8::3", "fd00:1:2::1": "2001:db8::4", "fd00:1:3::": "", "::": "",
	} {
		got := table.lookup(addrKey(netip.MustParseAddr(addr)))
		if want == "" {
			if got != nil {
				t.Errorf("%s belongs to somebody", addr)
			}
		} else if got == nil || got.public != addrKey(netip.MustParseAddr(want)) {
			t.Errorf("%s: not %s", addr, want)
		}
	}
}

func TestLookupIsThatOfPrefixes(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	random := func(v6 bool) netip.Addr {
		if v6 {
			return netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(r.IntN(4)), 8: byte(r.Uint32()), 15: byte(r.IntN(4))})
		}
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.Uint32()), byte(r.IntN(4))})
	}
	for range 200 {
		var peers []Peer
		v6 := r.IntN(2) == 0
		for i := range r.IntN(20) {
			a := random(v6)
			p := netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
			public := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			peers = append(peers, Peer{p, netip.AddrPortFrom(public, 1)})
		}
		table := NewTable(peers)
		for range 100 {
			a := random(v6)
			var best *Peer
			for i := range peers {
				if p := &peers[i]; p.Subnet.Contains(a) && (best == nil || p.Subnet.Bits() >= best.Subnet.Bits()) {
					best = p
				}
			}
			got := table.lookup(addrKey(a))
			if (got == nil) != (best == nil) || got != nil && got.public != addrKey(best.Public.Addr()) {
				t.Fatalf("%s of %v: got %v, want %v", a, peers, got, best)
			}
		}
	}
}
