package routed

import (
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/subnet"
)

func TestMetricsAreDistinctAndNeverZero(t *testing.T) {
	for network, bits := range map[string]int{"10.0.0.0/8": 24, "10.1.0.0/16": 30, "fd00:1::/48": 64, "fd00::/32": 64, "fd00::/64": 96} {
		r := subnet.Range{Network: netip.MustParsePrefix(network), SubnetLen: bits}
		seen := map[uint32]netip.Addr{}
		for i := range 1 << min(14, bits-r.Network.Bits()) {
			raw := r.Network.Addr().AsSlice()
			for bit := range 14 { // bit of i → bit of the subnet's number
				if i>>bit&1 == 1 {
					at := bits - 1 - bit
					raw[at/8] |= 1 << (7 - at%8)
				}
			}
			a, _ := netip.AddrFromSlice(raw)
			m := metric(r, a)
			if m != uint32(i)+1 {
				t.Fatalf("%s in %s: metric %d, want %d", a, network, m, i+1)
			}
			if other, ok := seen[m]; ok {
				t.Fatalf("%s and %s both have metric %d", a, other, m)
			}
			seen[m] = a
		}
	}
	huge := subnet.Range{Network: netip.MustParsePrefix("::/0"), SubnetLen: 128}
	for _, a := range []string{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "8000::", "::ffff:ffff"} {
		if m := metric(huge, netip.MustParseAddr(a)); m == 0 || m > 1<<31 {
			t.Errorf("metric of %s is %d", a, m)
		}
	}
}
