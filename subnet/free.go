package subnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// ErrNoSubnet: every subnet of the network is taken.
var ErrNoSubnet = errors.New("no free subnet")

// Free chooses a subnet of each family that overlaps nothing in taken,
// each free one with the same probability. Taken prefixes may have any
// length and may overlap each other. When all are taken the error is
// ErrNoSubnet and says how to make room.
func (c Config) Free(taken []netip.Prefix, rnd *rand.Rand) ([]netip.Prefix, error) {
	subnets := make([]netip.Prefix, 0, len(c.Ranges))
	for _, r := range c.Ranges {
		s, err := r.free(taken, rnd)
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, s)
	}
	return subnets, nil
}

// span is a run of subnets by their number in the range, both ends included.
type span struct{ first, last uint128 }

func (r Range) free(taken []netip.Prefix, rnd *rand.Rand) (netip.Prefix, error) {
	v6 := r.Network.Addr().Is6()
	size := uint(r.Network.Addr().BitLen() - r.SubnetLen)
	low := toUint128(r.SubnetMin)
	count := toUint128(r.SubnetMax).sub(low).shr(size).add(one)
	spans := r.spans(taken, low, count, size)
	free := count
	for _, s := range spans {
		free = free.sub(s.last.sub(s.first).add(one))
	}
	if free == (uint128{}) {
		return netip.Prefix{}, fmt.Errorf("%w: all %d subnets /%d from %s to %s are taken; remove the leases of hosts that are gone (they also expire after %s), or configure a larger network or a longer SubnetLen",
			ErrNoSubnet, count.lo, r.SubnetLen, r.SubnetMin, r.SubnetMax, LeaseTTL)
	}
	// The n-th free number is n plus all the taken ones before it.
	n := free.random(rnd)
	for _, s := range spans {
		if n.cmp(s.first) < 0 {
			break
		}
		n = n.add(s.last.sub(s.first).add(one))
	}
	return netip.PrefixFrom(fromUint128(low.add(n.shl(size)), v6), r.SubnetLen), nil
}

// spans are the subnets of r that taken touches, in order and disjoint.
func (r Range) spans(taken []netip.Prefix, low, count uint128, size uint) []span {
	end := count.sub(one)
	var spans []span
	for _, t := range taken {
		if !t.Overlaps(r.Network) {
			continue
		}
		t = t.Masked()
		first := toUint128(t.Addr())
		last := first.add(one.shl(uint(t.Addr().BitLen() - t.Bits())).sub(one))
		if last.cmp(low) < 0 {
			continue
		}
		var s span
		if first.cmp(low) > 0 {
			s.first = first.sub(low).shr(size)
		}
		s.last = last.sub(low).shr(size)
		if s.last.cmp(end) > 0 {
			s.last = end
		}
		if s.first.cmp(end) <= 0 {
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return a.first.cmp(b.first) })
	merged := spans[:0]
	for _, s := range spans {
		if n := len(merged); n > 0 && s.first.cmp(merged[n-1].last) <= 0 {
			if s.last.cmp(merged[n-1].last) > 0 {
				merged[n-1].last = s.last
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// uint128 counts addresses and subnets of either family.
type uint128 struct{ hi, lo uint64 }

// one is a constant in spirit.
var one = uint128{0, 1}

func toUint128(a netip.Addr) uint128 {
	if a.Is4() {
		b := a.As4()
		return uint128{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func fromUint128(u uint128, v6 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], u.hi)
	binary.BigEndian.PutUint64(b[8:], u.lo)
	if !v6 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func (u uint128) add(v uint128) uint128 {
	lo, carry := bits.Add64(u.lo, v.lo, 0)
	hi, _ := bits.Add64(u.hi, v.hi, carry)
	return uint128{hi, lo}
}

func (u uint128) sub(v uint128) uint128 {
	lo, borrow := bits.Sub64(u.lo, v.lo, 0)
	hi, _ := bits.Sub64(u.hi, v.hi, borrow)
	return uint128{hi, lo}
}

func (u uint128) shl(n uint) uint128 {
	if n >= 64 {
		return uint128{u.lo << (n - 64), 0}
	}
	return uint128{u.hi<<n | u.lo>>(64-n), u.lo << n}
}

func (u uint128) shr(n uint) uint128 {
	if n >= 64 {
		return uint128{0, u.hi >> (n - 64)}
	}
	return uint128{u.hi >> n, u.lo>>n | u.hi<<(64-n)}
}

func (u uint128) cmp(v uint128) int {
	if u.hi != v.hi {
		if u.hi < v.hi {
			return -1
		}
		return 1
	}
	if u.lo != v.lo {
		if u.lo < v.lo {
			return -1
		}
		return 1
	}
	return 0
}

// random is below u, which is not zero, every value with the same
// probability. A nil source is the runtime's.
func (u uint128) random(rnd *rand.Rand) uint128 {
	next := rand.Uint64
	if rnd != nil {
		next = rnd.Uint64
	}
	top := u.sub(one)
	mask := uint128{^uint64(0), ^uint64(0)}
	if top.hi == 0 {
		mask = uint128{0, ^uint64(0) >> bits.LeadingZeros64(top.lo)}
	} else {
		mask.hi >>= bits.LeadingZeros64(top.hi)
	}
	for {
		n := uint128{next() & mask.hi, next() & mask.lo}
		if n.cmp(u) < 0 {
			return n
		}
	}
}
