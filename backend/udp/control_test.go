package udp

import (
	"maps"
	"net/netip"
	"testing"
)

func TestATableIsReadAsItWasWritten(t *testing.T) {
	peers := map[netip.Prefix]netip.Addr{
		netip.MustParsePrefix("10.1.2.0/24"):  netip.MustParseAddr("192.0.2.2"),
		netip.MustParsePrefix("fd00:1::/64"):  netip.MustParseAddr("2001:db8::1"),
		netip.MustParsePrefix("10.1.3.64/26"): netip.MustParseAddr("192.0.2.3"),
	}
	b := encodeTable(maps.All(peers))
	if len(b) != 4+recordLen*3 {
		t.Fatalf("%d bytes", len(b))
	}
	if _, err := decodeTable(b[4:], 8285); err != nil {
		t.Error(err)
	}
}

func FuzzTable(f *testing.F) {
	f.Add(encodeTable(maps.All(map[netip.Prefix]netip.Addr{
		netip.MustParsePrefix("10.1.2.0/24"): netip.MustParseAddr("192.0.2.2"),
	}))[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if table, err := decodeTable(b, 8285); (table == nil) == (err == nil) {
			t.Errorf("table %v, error %v", table, err)
		}
	})
}
