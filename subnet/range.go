package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// rangeFields are the configuration's fields of one family.
type rangeFields struct {
	v6                        bool
	prefix                    string // of the fields' names
	network, length, min, max json.RawMessage
}

// reserved is what no pod network may touch, and why.
func reserved() []struct{ net, what string } {
	return []struct{ net, what string }{
		{"0.0.0.0/8", "the unspecified network"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"}, {"255.255.255.255/32", "broadcast"},
		{"::/8", "unspecified, loopback and IPv4-mapped addresses"}, {"fe80::/10", "link-local"}, {"ff00::/8", "multicast"},
	}
}

// minNetworkBits keeps a slip of the pen from taking over the routing table.
const minNetworkBits = 8

func (f rangeFields) parse() (Range, error) {
	var r Range
	var err error
	if r.Network, err = f.parseNetwork(); err != nil {
		return r, err
	}
	if r.SubnetLen, err = f.parseLength(r.Network); err != nil {
		return r, err
	}
	size := uint(r.Network.Addr().BitLen() - r.SubnetLen)
	first := toUint128(r.Network.Addr())
	// The first subnet is skipped: an interface with the network's own
	// address as its address confuses broadcasts.
	low := fromUint128(first.add(one.shl(size)), f.v6)
	high := fromUint128(first.add(one.shl(uint(r.Network.Addr().BitLen()-r.Network.Bits()))).sub(one.shl(size)), f.v6)
	if r.SubnetMin, err = f.parseEdge("SubnetMin", f.min, r, low); err != nil {
		return r, err
	}
	if r.SubnetMax, err = f.parseEdge("SubnetMax", f.max, r, high); err != nil {
		return r, err
	}
	if r.SubnetMax.Less(r.SubnetMin) {
		return r, &ConfigError{f.prefix + "SubnetMax", r.SubnetMax.String(),
			fmt.Sprintf("must not be below %sSubnetMin, %s; swap or remove them", f.prefix, r.SubnetMin)}
	}
	return r, nil
}

func (f rangeFields) parseNetwork() (netip.Prefix, error) {
	name, example, family := f.prefix+"Network", "10.5.0.0/16", "IPv4"
	if f.v6 {
		example, family = "fd00:5::/48", "IPv6"
	}
	bad := func(format string, args ...any) (netip.Prefix, error) {
		return netip.Prefix{}, &ConfigError{name, clip(f.network), fmt.Sprintf(format, args...) + fmt.Sprintf("; set e.g. {%q:%q}", name, example)}
	}
	if absent(f.network) {
		f.network = nil
		if !f.v6 {
			return bad("is missing (for IPv6 alone set \"EnableIPv4\":false)")
		}
		return bad("is missing although EnableIPv6 is true")
	}
	var s string
	p, err := netip.Prefix{}, json.Unmarshal(f.network, &s)
	if err == nil {
		p, err = netip.ParsePrefix(s)
	}
	if err != nil || p.Addr().Is6() != f.v6 || p.Addr().Is4In6() {
		return bad("must be an %s network in CIDR notation", family)
	}
	p = p.Masked()
	if p.Bits() < minNetworkBits {
		return bad("must be a /%d or smaller", minNetworkBits)
	}
	for _, r := range reserved() {
		if p.Overlaps(netip.MustParsePrefix(r.net)) {
			return bad("overlaps %s (%s)", r.net, r.what)
		}
	}
	if longest := p.Addr().BitLen() - 4; p.Bits() > longest {
		return bad("is too small for four subnets, must be a /%d or larger", longest)
	}
	return p, nil
}

// parseLength: a subnet has room for a tunnel and a bridge address, and the
// network for at least four subnets, as in flannel.
func (f rangeFields) parseLength(network netip.Prefix) (int, error) {
	low, high, def := network.Bits()+2, network.Addr().BitLen()-2, 24
	if f.v6 {
		def = 64
	}
	def = max(def, low)
	// flannel takes 0 for "not set".
	if absent(f.length) || string(f.length) == "0" {
		return def, nil
	}
	var n int
	if err := json.Unmarshal(f.length, &n); err != nil || n < low || n > high {
		return 0, &ConfigError{f.prefix + "SubnetLen", clip(f.length),
			fmt.Sprintf(`must be between %d and %d; set e.g. {"%sSubnetLen":%d}`, low, high, f.prefix, def)}
	}
	return n, nil
}

// parseEdge reads SubnetMin or SubnetMax. The unspecified address means
// "not set", as in flannel.
func (f rangeFields) parseEdge(name string, raw json.RawMessage, r Range, def netip.Addr) (netip.Addr, error) {
	if absent(raw) {
		return def, nil
	}
	name = f.prefix + name
	bad := func(what string) (netip.Addr, error) {
		return netip.Addr{}, &ConfigError{name, clip(raw), fmt.Sprintf("%s; set e.g. {%q:%q} or remove it", what, name, def)}
	}
	var s string
	a, err := netip.Addr{}, json.Unmarshal(raw, &s)
	if err == nil {
		a, err = netip.ParseAddr(s)
	}
	switch {
	case err != nil || a.Zone() != "" || a.Is6() != f.v6:
		return bad("must be the first address of a subnet")
	case a.IsUnspecified():
		return def, nil
	case !r.Network.Contains(a):
		return bad("must be inside the network " + r.Network.String())
	case netip.PrefixFrom(a, r.SubnetLen).Masked().Addr() != a:
		return bad(fmt.Sprintf("must be the first address of a /%d", r.SubnetLen))
	}
	return a, nil
}
