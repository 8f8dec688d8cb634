package ipam

import (
	"net/netip"
	"strings"
	"testing"
)

func rng(subnet, start, end, gw string) Range {
	r := Range{Subnet: netip.MustParsePrefix(subnet)}
	for i, a := range []*netip.Addr{&r.Start, &r.End, &r.Gateway} {
		if s := []string{start, end, gw}[i]; s != "" {
			*a = netip.MustParseAddr(s)
		}
	}
	return r
}

func TestCanonicalFillsInFirstLastAndGateway(t *testing.T) {
	for name, c := range map[string]struct {
		in   Range
		want string
	}{
		"IPv4":            {rng("10.1.2.0/24", "", "", ""), "10.1.2.1-10.1.2.254 gw 10.1.2.1"},
		"smallest":        {rng("10.1.2.4/30", "", "", ""), "10.1.2.5-10.1.2.6 gw 10.1.2.5"},
		"IPv6":            {rng("fd00:1::/64", "", "", ""), "fd00:1::1-fd00:1::ffff:ffff:ffff:ffff gw fd00:1::1"},
		"all given":       {rng("10.1.2.0/24", "10.1.2.10", "10.1.2.20", "10.1.2.254"), "10.1.2.10-10.1.2.20 gw 10.1.2.254"},
		"edges excluded":  {rng("10.1.2.0/24", "10.1.2.0", "10.1.2.255", ""), "10.1.2.1-10.1.2.254 gw 10.1.2.1"},
		"gateway outside": {rng("10.1.2.0/24", "", "", "10.9.9.9"), "10.1.2.1-10.1.2.254 gw 10.9.9.9"},
	} {
		r, err := c.in.Canonical()
		if got := r.Start.String() + "-" + r.End.String() + " gw " + r.Gateway.String(); err != nil || got != c.want {
			t.Errorf("%s: got %s %v, want %s", name, got, err, c.want)
		}
	}
}

func TestWrongRangesAreRefused(t *testing.T) {
	for want, sets := range map[string][]Set{
		"is empty":                         {{}},
		`"subnet" is missing`:              {{Range{}}},
		"host bits set: write 10.1.2.0/24": {{rng("10.1.2.3/24", "", "", "")}},
		"too small":                        {{rng("10.1.2.0/31", "", "", "")}},
		"rangeStart 10.1.3.1 is outside":   {{rng("10.1.2.0/24", "10.1.3.1", "", "")}},
		"rangeEnd 10.1.1.1 is outside":     {{rng("10.1.2.0/24", "", "10.1.1.1", "")}},
		"is behind rangeEnd":               {{rng("10.1.2.0/24", "10.1.2.9", "10.1.2.8", "")}},
		"not of subnet":                    {{rng("10.1.2.0/24", "", "", "fd00::1")}},
		"mixes IPv4 and IPv6":              {{rng("10.1.2.0/24", "", "", ""), rng("fd00::/64", "", "", "")}},
		"overlaps":                         {{rng("10.1.2.0/24", "", "", "")}, {rng("10.1.0.0/16", "", "", "")}},
	} {
		if _, err := CanonicalSets(sets); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSizeCountsWhatCanBeGiven(t *testing.T) {
	for want, s := range map[int][]Range{
		253:    {rng("10.1.2.0/24", "", "", "")},
		254:    {rng("10.1.2.0/24", "", "", "10.9.9.9")},
		12:     {rng("10.1.2.0/24", "10.1.2.2", "10.1.2.11", ""), rng("10.1.3.0/24", "10.1.3.254", "", ""), rng("10.1.4.0/24", "10.1.4.7", "10.1.4.7", "")},
		maxInt: {rng("fd00::/64", "", "", "")},
	} {
		sets, err := CanonicalSets([]Set{s})
		if err != nil {
			t.Fatal(err)
		}
		if got := sets[0].Size(); got != want {
			t.Errorf("%v: got %d, want %d", s, got, want)
		}
	}
}

func TestLastIsTheBroadcastAddress(t *testing.T) {
	for in, want := range map[string]string{"10.1.2.0/24": "10.1.2.255", "10.1.2.4/30": "10.1.2.7", "0.0.0.0/0": "255.255.255.255", "fd00::/127": "fd00::1"} {
		if got := Last(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func FuzzNextStaysInsideAndIsFree(f *testing.F) {
	f.Add([]byte{10, 1, 2, 0}, uint8(28), uint16(7), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, bits uint8, takenBits uint16, last uint8) {
		if len(b) != 4 || bits < 28 || bits > 30 {
			return
		}
		p, _ := netip.AddrFrom4([4]byte(b)).Prefix(int(bits))
		r, err := Range{Subnet: p}.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		taken, free, hint := map[netip.Addr]string{}, 0, netip.Addr{}
		i := 0
		for a := r.Start; r.Contains(a); a = a.Next() {
			switch {
			case takenBits>>i&1 == 1:
				taken[a] = "x"
			case a != r.Gateway:
				free++
			}
			if i == int(last) {
				hint = a
			}
			i++
		}
		a, _, ok := Set{r}.next(hint, taken)
		if ok != (free > 0) {
			t.Fatalf("free %d, found %t", free, ok)
		}
		if _, held := taken[a]; ok && (held || a == r.Gateway || !r.Contains(a)) {
			t.Fatalf("%s of %v is not to be given", a, r)
		}
	})
}
