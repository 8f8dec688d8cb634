package subnet

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// SubnetsPrefix is the prefix of every lease's key.
func SubnetsPrefix(prefix string) string { return path.Join(prefix, "subnets") + "/" }

// HostsPrefix is the prefix of every host record's key.
func HostsPrefix(prefix string) string { return path.Join(prefix, "hosts") + "/" }

// HostKey is the key of a host's record.
func HostKey(prefix, name string) string { return HostsPrefix(prefix) + name }

// no4 stands for the IPv4 part in the key of a lease that has IPv6 alone.
const no4 = "0.0.0.0-0"

// Key is the key of a lease of subnets (one per family, IPv4 first), spelt
// as flannel spells it: 10.1.19.0-24, 10.1.19.0-24&fd00:1:19::-64 or
// 0.0.0.0-0&fd00:1:19::-64.
func Key(prefix string, subnets []netip.Prefix) string {
	name := make([]byte, 0, 64)
	if len(subnets) > 0 && subnets[0].Addr().Is6() {
		name = append(name, no4...)
	}
	for i, s := range subnets {
		if i > 0 || len(name) > 0 {
			name = append(name, '&')
		}
		name = s.Addr().AppendTo(name)
		name = append(name, '-')
		name = strconv.AppendInt(name, int64(s.Bits()), 10)
	}
	return SubnetsPrefix(prefix) + string(name)
}

// ParseKey is the inverse of Key. It accepts one spelling of each key only:
// two keys never mean the same subnets.
func ParseKey(prefix, key string) ([]netip.Prefix, error) {
	name, ok := strings.CutPrefix(key, SubnetsPrefix(prefix))
	if !ok {
		return nil, fmt.Errorf("key %s is not under %s", clip([]byte(key)), SubnetsPrefix(prefix))
	}
	return parseName(name)
}

func parseName(name string) ([]netip.Prefix, error) {
	const form = "must look like 10.1.19.0-24, 10.1.19.0-24&fd00:1:19::-64 or 0.0.0.0-0&fd00:1:19::-64"
	part4, part6, dual := strings.Cut(name, "&")
	subnets := make([]netip.Prefix, 0, 2)
	if !dual || part4 != no4 {
		p, ok := parsePart(part4)
		if !ok || !p.Addr().Is4() {
			return nil, fmt.Errorf("%s", form)
		}
		subnets = append(subnets, p)
	}
	if dual {
		p, ok := parsePart(part6)
		if !ok || !p.Addr().Is6() {
			return nil, fmt.Errorf("%s", form)
		}
		subnets = append(subnets, p)
	}
	return subnets, nil
}

// parsePart reads one family's part; only the canonical spelling of a masked
// prefix is one.
func parsePart(s string) (netip.Prefix, bool) {
	addr, length, ok := strings.Cut(s, "-")
	if !ok {
		return netip.Prefix{}, false
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Prefix{}, false
	}
	bits, err := strconv.Atoi(length)
	if err != nil || bits < 1 || bits > a.BitLen() || length[0] == '0' || length[0] == '+' {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a, bits)
	if p.Masked().Addr() != a {
		return netip.Prefix{}, false
	}
	if a.Is6() {
		var buf [64]byte
		if string(a.AppendTo(buf[:0])) != addr {
			return netip.Prefix{}, false
		}
	}
	return p, true
}
