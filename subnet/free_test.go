package subnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// nth is the i-th subnet of r.
func nth(r Range, i int) netip.Prefix {
	size := uint(r.Network.Addr().BitLen() - r.SubnetLen)
	a := toUint128(r.SubnetMin).add(uint128{0, uint64(i)}.shl(size))
	return netip.PrefixFrom(fromUint128(a, r.Network.Addr().Is6()), r.SubnetLen)
}

func TestLastFreeSubnetIsFound(t *testing.T) {
	for name, conf := range map[string]string{
		"IPv4":              `{"Network":"10.5.0.0/16"}`,
		"IPv4 of /30":       `{"Network":"10.5.0.0/22","SubnetLen":30}`,
		"IPv6 /64 in a /56": `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/56"}`,
		"IPv6 /112":         `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/104","IPv6SubnetLen":112}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := mustConfig(t, conf)
			r := c.Ranges[0]
			rnd := source(1)
			var taken []netip.Prefix
			seen := map[netip.Prefix]bool{}
			for {
				got, err := c.Free(taken, rnd)
				if errors.Is(err, ErrNoSubnet) {
					break
				}
				if err != nil || len(got) != 1 || !c.Fits(got) || seen[got[0]] || got[0].Bits() != r.SubnetLen ||
					got[0].Addr().Less(r.SubnetMin) || r.SubnetMax.Less(got[0].Addr()) {
					t.Fatalf("after %d: %v, %v", len(taken), got, err)
				}
				seen[got[0]] = true
				taken = append(taken, got[0])
			}
			if want := 1<<(r.SubnetLen-r.Network.Bits()) - 1; len(taken) != want {
				t.Errorf("%d subnets, want %d", len(taken), want)
			}
		})
	}
}

func TestFullNetworkSaysHowToMakeRoom(t *testing.T) {
	c := mustConfig(t, `{"Network":"10.5.0.0/24","SubnetLen":26}`)
	_, err := c.Free(prefixes("10.5.0.0/24"), nil)
	if !errors.Is(err, ErrNoSubnet) || !strings.Contains(err.Error(), "all 3 subnets /26 from 10.5.0.64 to 10.5.0.192 are taken") ||
		!strings.Contains(err.Error(), "remove the leases") {
		t.Errorf("got %v", err)
	}
}

func TestFreeRespectsOtherLengths(t *testing.T) {
	c := mustConfig(t, `{"Network":"10.5.0.0/16","SubnetLen":24}`)
	rnd := source(2)
	for name, tt := range map[string]struct {
		taken string
		left  int
	}{
		"nothing":                     {"", 255},
		"a part of a subnet":          {"10.5.7.128/25", 254},
		"two parts of one":            {"10.5.7.128/25 10.5.7.0/26", 254},
		"several subnets":             {"10.5.8.0/22", 251},
		"nested":                      {"10.5.8.0/22 10.5.9.0/24 10.5.10.0/23 10.5.8.0/22", 251},
		"the first, which is skipped": {"10.5.0.0/24", 255},
		"half":                        {"10.5.128.0/17 10.5.0.0/18", 64},
		"more than the network":       {"10.0.0.0/9", 0},
		"elsewhere":                   {"10.6.0.0/16 192.168.0.0/16 fd00::/8", 255},
		"single addresses":            {"10.5.7.9/32 10.5.7.10/32 10.5.255.255/32", 253},
	} {
		t.Run(name, func(t *testing.T) {
			taken := prefixes(tt.taken)
			n := 0
			for {
				got, err := c.Free(taken, rnd)
				if err != nil {
					break
				}
				for _, p := range taken {
					if got[0].Overlaps(p) {
						t.Fatalf("%v overlaps %v", got[0], p)
					}
				}
				taken = append(taken, got[0])
				n++
			}
			if n != tt.left {
				t.Errorf("%d free, want %d", n, tt.left)
			}
		})
	}
}

func TestFreeIsUniform(t *testing.T) {
	c := mustConfig(t, `{"Network":"10.5.0.0/24","SubnetLen":28}`)
	rnd := source(3)
	taken := prefixes("10.5.0.32/27 10.5.0.128/28 10.5.0.240/28") // 11 of 15 are left
	const draws = 22000
	count := map[netip.Prefix]int{}
	for range draws {
		got, err := c.Free(taken, rnd)
		if err != nil {
			t.Fatal(err)
		}
		count[got[0]]++
	}
	if len(count) != 11 {
		t.Fatalf("%d different subnets, want 11", len(count))
	}
	for p, n := range count {
		if n < 1800 || n > 2200 {
			t.Errorf("%v was drawn %d times, want about 2000", p, n)
		}
	}
}

func TestFreeCountsBeyond64Bits(t *testing.T) {
	c := mustConfig(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8","IPv6SubnetLen":126}`)
	rnd := source(4)
	taken := prefixes("fd00::/9") // so that the upper half is drawn from
	for range 100 {
		got, err := c.Free(taken, rnd)
		if err != nil || !c.Fits(got) || got[0].Overlaps(taken[0]) {
			t.Fatalf("%v, %v", got, err)
		}
	}
}

func TestFreeFindsTheFewThatAreLeftOfMany(t *testing.T) {
	c := mustConfig(t, `{"Network":"10.0.0.0/8","SubnetLen":24}`)
	taken := make([]netip.Prefix, 65000)
	for i := range taken {
		taken[i] = nth(c.Ranges[0], (i*7919)%65535)
	}
	got, err := c.Free(taken, nil)
	if err != nil || !c.Fits(got) || slices.Contains(taken, got[0]) {
		t.Fatalf("%v, %v", got, err)
	}
}

func BenchmarkFree(b *testing.B) {
	c := mustConfig(b, `{"Network":"10.0.0.0/8","SubnetLen":24}`)
	for _, n := range []int{5000, 65000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			taken := make([]netip.Prefix, n)
			for i := range taken {
				taken[i] = nth(c.Ranges[0], (i*7919)%65535)
			}
			for b.Loop() {
				if _, err := c.Free(taken, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
