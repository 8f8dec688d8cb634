// Package ipam gives out the addresses of one host's containers and remembers
// on disk who has which.
//
// One file is one attachment: the reservation of its addresses and the record
// of its endpoint, so that the two cannot disagree. The file's name alone
// tells what is taken: an allocation lists a directory and opens no file,
// however many there are.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Range is part of a subnet out of which addresses are given.
type Range struct {
	Subnet netip.Prefix
	// Start and End are the first and last address given, inclusive.
	Start, End netip.Addr
	// Gateway is never given out.
	Gateway netip.Addr
}

// Set is ranges of one family; an attachment gets one address out of each
// set.
type Set []Range

// Canonical fills in what was left out (invalid addresses) with the subnet's
// first and last host and, as gateway, its first host.
func (r Range) Canonical() (Range, error) {
	if !r.Subnet.IsValid() {
		return r, errors.New(`"subnet" is missing`)
	}
	if r.Subnet.Addr().Is4In6() {
		return r, fmt.Errorf("subnet %s: write it as IPv4", r.Subnet)
	}
	if r.Subnet != r.Subnet.Masked() {
		return r, fmt.Errorf("subnet %s has host bits set: write %s", r.Subnet, r.Subnet.Masked())
	}
	if r.Subnet.Bits() > r.Subnet.Addr().BitLen()-2 {
		return r, fmt.Errorf("subnet %s is too small: it needs room for a gateway and a container", r.Subnet)
	}
	first, last := r.Subnet.Addr().Next(), Last(r.Subnet)
	if last.Is4() {
		last = last.Prev() // the broadcast address
	}
	if !r.Gateway.IsValid() {
		r.Gateway = first
	}
	if !r.Start.IsValid() {
		r.Start = first
	}
	if !r.End.IsValid() {
		r.End = last
	}
	for name, a := range map[string]*netip.Addr{"rangeStart": &r.Start, "rangeEnd": &r.End, "gateway": &r.Gateway} {
		*a = a.Unmap()
		if !r.Subnet.Contains(*a) && name != "gateway" {
			return r, fmt.Errorf("%s %s is outside subnet %s", name, a, r.Subnet)
		}
		if a.Is4() != first.Is4() {
			return r, fmt.Errorf("%s %s is not of subnet %s's family", name, a, r.Subnet)
		}
	}
	r.Start, r.End = maxAddr(r.Start, first), minAddr(r.End, last)
	if r.End.Less(r.Start) {
		return r, fmt.Errorf("rangeStart %s is behind rangeEnd %s", r.Start, r.End)
	}
	return r, nil
}

// CanonicalSets makes every range canonical and refuses sets of mixed
// families and ranges that overlap.
func CanonicalSets(sets []Set) ([]Set, error) {
	out := make([]Set, len(sets))
	var all []Range
	for i, s := range sets {
		if len(s) == 0 {
			return nil, fmt.Errorf("range set %d is empty", i)
		}
		for _, r := range s {
			r, err := r.Canonical()
			if err != nil {
				return nil, fmt.Errorf("range set %d: %w", i, err)
			}
			if len(out[i]) > 0 && out[i][0].Start.Is4() != r.Start.Is4() {
				return nil, fmt.Errorf("range set %d mixes IPv4 and IPv6: make one set of each", i)
			}
			for _, o := range all {
				if r.overlaps(o) {
					return nil, fmt.Errorf("range set %d: range %s-%s overlaps %s-%s", i, r.Start, r.End, o.Start, o.End)
				}
			}
			all = append(all, r)
			out[i] = append(out[i], r)
		}
	}
	return out, nil
}

// Contains tells whether the range may give a.
func (r Range) Contains(a netip.Addr) bool {
	return a.Is4() == r.Start.Is4() && !a.Less(r.Start) && !r.End.Less(a)
}

func (r Range) overlaps(o Range) bool { return r.Contains(o.Start) || o.Contains(r.Start) }

// Size is how many addresses the set can give in all; at most the largest
// int.
func (s Set) Size() int {
	n := 0
	for _, r := range s {
		c := distance(r.Start, r.End)
		if c > maxInt-n-1 {
			return maxInt
		}
		n += c + 1
		if r.Contains(r.Gateway) {
			n--
		}
	}
	return n
}

const maxInt = int(^uint(0) >> 1)

// in returns the range that holds a.
func (s Set) in(a netip.Addr) (Range, bool) {
	i := slices.IndexFunc(s, func(r Range) bool { return r.Contains(a) })
	if i < 0 {
		return Range{}, false
	}
	return s[i], true
}

// next returns the first address after last, going round, that is not taken.
func (s Set) next(last netip.Addr, taken map[netip.Addr]string) (netip.Addr, Range, bool) {
	at := 0
	a := s[0].Start
	if r, ok := s.in(last); ok {
		at = slices.Index(s, r)
		a = last.Next()
	}
	// Each range once, and the one we began in a second time from its start.
	for range len(s) + 1 {
		r := s[at]
		for ; r.Contains(a); a = a.Next() {
			if _, held := taken[a]; !held && a != r.Gateway {
				return a, r, true
			}
		}
		at = (at + 1) % len(s)
		a = s[at].Start
	}
	return netip.Addr{}, Range{}, false
}

// Last is the last address of a prefix: IPv4's broadcast address.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// distance is b-a, at most the largest int; a is not behind b.
func distance(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	n, borrow := [16]byte{}, 0
	for i := 15; i >= 0; i-- {
		d := int(y[i]) - int(x[i]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		n[i] = byte(d)
	}
	v := 0
	for i, d := range n {
		if i < 9 && d != 0 {
			return maxInt
		}
		v = v<<8 | int(d)
	}
	return v
}

func minAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return a
	}
	return b
}
