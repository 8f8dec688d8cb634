package zone

import (
	"bytes"
	"net/netip"
	"slices"
)

// reverseName is what a name in in-addr.arpa or ip6.arpa stands for.
type reverseName struct {
	apex  []byte // of its zone: a part of the name
	at    bool   // it is the apex
	addr  netip.Addr
	exact bool // addr is meant
	wrong bool // nothing can be there
}

// networks are those whose reverse names are answered, outermost first.
func networks(list []netip.Prefix) []netip.Prefix {
	var nets []netip.Prefix
	for _, p := range list {
		if p.IsValid() && !p.Addr().Is4In6() {
			nets = append(nets, p.Masked())
		}
	}
	slices.SortFunc(nets, func(a, b netip.Prefix) int {
		if d := a.Bits() - b.Bits(); d != 0 {
			return d
		}
		return a.Addr().Compare(b.Addr())
	})
	return slices.Compact(nets)
}

// reverse reads name, whose n labels begin at at. ours is false unless all
// addresses that have their names at or below it are inside one of nets.
//
// A network whose length is not that of a whole label, say 172.16.0.0/12, has
// a zone for each label that lies wholly inside: 16.172.in-addr.arpa to
// 31.172.in-addr.arpa.
func reverse(nets []netip.Prefix, name []byte, at []uint8) (r reverseName, ours bool) {
	n := len(at)
	if n < 2 || string(label(name, at[n-1])) != "arpa" {
		return r, false
	}
	var (
		raw   [16]byte
		count int // of labels that are parts of an address
		whole int // how many of these an address has
		width int // bits of each
	)
	switch top := label(name, at[n-2]); {
	case bytes.Equal(top, []byte("in-addr")):
		whole, width = 4, 8
		for i := n - 3; i >= 0 && count < whole; i-- {
			octet, ok := parseOctet(label(name, at[i]))
			if !ok {
				break
			}
			raw[count] = octet
			count++
		}
		r.addr = netip.AddrFrom4([4]byte(raw[:4]))
	case bytes.Equal(top, []byte("ip6")):
		whole, width = 32, 4
		for i := n - 3; i >= 0 && count < whole; i-- {
			l := label(name, at[i])
			if len(l) != 1 {
				break
			}
			nibble, ok := hex(l[0])
			if !ok {
				break
			}
			raw[count/2] |= nibble << (4 * (1 - count%2))
			count++
		}
		r.addr = netip.AddrFrom16(raw)
	default:
		return r, false
	}
	for _, p := range nets {
		labels := (p.Bits() + width - 1) / width
		if count < labels || !p.Contains(r.addr) {
			continue
		}
		r.apex = name[at[n-2-labels]:]
		r.at = n-2 == labels
		r.exact = count == whole && n-2 == whole
		r.wrong = n-2 > count
		return r, true
	}
	return r, false
}
