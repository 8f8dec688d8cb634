package plugin

import (
	"bufio"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/subnet"
)

// space is the address space of a network: the sets that containers get their
// addresses out of.
type space struct {
	sets []ipam.Set
	// inside are the prefixes that are the network's own.
	inside []netip.Prefix
	mtu    int // 0: not told
	// leased are the subnets that file, subnet.env, tells; none if the
	// configuration names ranges.
	leased []netip.Prefix
	file   string
}

// space reads the ranges from the configuration, or the subnet from
// subnet.env.
func (c *config) space() (space, error) {
	sets, err := c.ranges()
	if err != nil {
		return space{}, err
	}
	if len(sets) > 0 {
		s := space{sets: sets}
		for _, set := range sets {
			for _, r := range set {
				s.inside = append(s.inside, r.Subnet)
			}
		}
		return s, nil
	}
	path := c.IPAM.SubnetFile
	if path == "" {
		path = defaultSubnetFile
	}
	env, err := subnet.ReadEnv(path)
	if errors.Is(err, fs.ErrNotExist) {
		return space{}, failf(types.ErrTryAgainLater, "network %s has no subnet yet: %s is missing; flanneld writes it when it has a lease: start flanneld, or wait for it", c.Name, path)
	}
	if err == nil && len(env.Subnets) == 0 {
		err = errors.New(path + " names no FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET: restart flanneld, which writes it")
	}
	if err != nil {
		return space{}, failf(types.ErrTryAgainLater, "network %s: %v", c.Name, err)
	}
	s := space{mtu: env.MTU, inside: env.Networks, leased: env.Subnets, file: path}
	for _, p := range env.Subnets {
		s.sets = append(s.sets, ipam.Set{{Subnet: p}})
	}
	if s.sets, err = ipam.CanonicalSets(s.sets); err != nil {
		return space{}, failf(types.ErrTryAgainLater, "network %s: %s: %v", c.Name, path, err)
	}
	return s, nil
}

// resolvConf reads a file such as /etc/resolv.conf.
func resolvConf(path string) (types.DNS, error) {
	var dns types.DNS
	f, err := os.Open(path)
	if err != nil {
		return dns, failf(types.ErrInvalidNetworkConfig, "ipam.resolvConf: %v", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = slices.Clone(fields[1:])
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return dns, failf(types.ErrIOFailure, "ipam.resolvConf %s: %v", path, err)
	}
	return dns, nil
}

// prevResult is what an ADD returned, in the present version; nil if the
// engine did not hand it back.
func (c *config) prevResult() (*types100.Result, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return nil, nil
	}
	return parseResult(c.CNIVersion, c.PrevResult)
}

func netIP(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); a.Is4() && size == 128 {
		bits -= 96
	}
	p := netip.PrefixFrom(a, bits)
	return p, ok && p.IsValid()
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// validAttachments is the list of a GC.
func (c *config) validAttachments() ([]ipam.Key, error) {
	raw := c.Valid
	if raw == nil {
		raw = c.ValidLegacy
	}
	if raw == nil {
		return nil, failf(types.ErrInvalidNetworkConfig, `"cni.dev/valid-attachments" is missing: without it everything would be removed`)
	}
	var list []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, failf(types.ErrDecodingFailure, `"cni.dev/valid-attachments": %v`, err)
	}
	keys := make([]ipam.Key, 0, len(list))
	for _, a := range list {
		keys = append(keys, ipam.Key{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return keys, nil
}
