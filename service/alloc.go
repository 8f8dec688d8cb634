package service

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// Node ports are in this range, and no publication is.
const (
	NodePortFirst = 30000
	NodePortLast  = 32767
)

// reserved is how many addresses at the beginning of a service network are
// nobody's virtual address: the network's own, the cluster's DNS (10), and some
// to spare, but in the smallest network that there may be.
func reserved(p netip.Prefix) uint64 {
	if p.Addr().BitLen()-p.Bits() <= 4 {
		return 11
	}
	return 16
}

// ClaimPrefixes are where the claims of all services are below an etcd prefix:
// of virtual addresses, and of node ports.
func ClaimPrefixes(etcdPrefix string) (addresses, nodePorts string) {
	return etcdPrefix + "/vips/", etcdPrefix + "/nodeports/"
}

// Claims are the keys that no two services may hold: one for each virtual
// address and each node port, sorted, each once. They are written together
// with the service, and hold what Claim returns.
func (s *Service) Claims(etcdPrefix string) []string {
	addresses, nodePorts := ClaimPrefixes(etcdPrefix)
	var out []string
	for _, a := range s.VirtualIPs {
		out = append(out, addresses+a.String())
	}
	for _, p := range s.Ports {
		if p.NodePort != 0 && p.NodePort != AutoPort {
			out = append(out, nodePorts+portClaim(p.Protocol, p.NodePort))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func portClaim(protocol string, port uint16) string {
	return protocol + "-" + strconv.Itoa(int(port))
}

// claim is the value of a claim's key.
type claim struct{ Service string } // <tenant>/<network>/<name>

// Claim is the value of every claim of s.
func (s *Service) Claim() []byte {
	b, err := json.Marshal(claim{s.Key("")[len(Prefix("")):]})
	if err != nil { // a string is always encoded
		panic(err)
	}
	return b
}

// Claimant is the key of the service that holds a claim; "" if the claim cannot
// be read, and is nobody's.
func Claimant(etcdPrefix string, kv store.KV) string {
	var c claim
	if json.Unmarshal(kv.Value, &c) != nil || strings.Count(c.Service, "/") != 2 {
		return ""
	}
	return Prefix(etcdPrefix) + c.Service
}

// Chooser chooses the addresses and node ports that a service leaves open.
type Chooser struct {
	Prefix   string         // of etcd
	Networks []netip.Prefix // of virtual addresses, at most one per family
	Hosts    []netip.Addr   // of Networks, that are hosts' own
	// Taken tells whether a claim is held. It is asked only about what may be
	// chosen, not about what the service names itself.
	Taken func(claim string) (bool, error)
	// Random is from 0 to n-1; nil: as math/rand/v2 has it.
	Random func(n uint64) uint64
}

// Choose completes s: a virtual address from each network if it may have some
// and names none, and a node port for each AutoPort. What former, the service
// until now (nil: none), has at a port stays. An address that former does not
// have must be one that could be chosen, and an endpoint that it does not have
// none that connections are led away from. Errors are *FieldError, or Taken's.
func (c Chooser) Choose(s, former *Service) error {
	if former == nil {
		former = &Service{}
	}
	for _, a := range s.VirtualIPs {
		if slices.Contains(former.VirtualIPs, a) {
			continue
		}
		if err := c.check(a); err != nil {
			return err
		}
	}
	if err := c.checkEndpoints(s, former); err != nil {
		return err
	}
	if !s.Headless && s.External == "" && len(s.VirtualIPs) == 0 {
		var err error
		if s.VirtualIPs, err = c.addresses(); err != nil {
			return err
		}
	}
	_, nodePorts := ClaimPrefixes(c.Prefix)
	own := s.Claims(c.Prefix) // Taken need not know of them
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.NodePort != AutoPort {
			continue
		}
		at := slices.IndexFunc(former.Ports, func(o Port) bool {
			return o.Port == p.Port && o.Protocol == p.Protocol && o.NodePort != 0 && !slices.Contains(own, nodePorts+portClaim(o.Protocol, o.NodePort))
		})
		if at >= 0 {
			p.NodePort = former.Ports[at].NodePort
		} else {
			var err error
			if p.NodePort, err = c.nodePort(i, p.Protocol, own); err != nil {
				return err
			}
		}
		own = s.Claims(c.Prefix)
	}
	return nil
}

// check refuses an address that somebody wants to be a virtual one.
func (c Chooser) check(a netip.Addr) error {
	if len(c.Networks) == 0 {
		return noNetwork()
	}
	for _, p := range c.Networks {
		if !p.Contains(a) {
			continue
		}
		first, n := choice(p)
		if n == 0 || a.Less(first) || plus(first, n-1).Less(a) {
			return &FieldError{"VirtualIPs", a.String(), fmt.Sprintf("the first %d addresses of %v, and the last of IPv4, are no service's (%v is the cluster's DNS): take another",
				reserved(p), p, subnet.ClusterDNS(p))}
		}
		if slices.Contains(c.Hosts, a) {
			return &FieldError{"VirtualIPs", a.String(), "is a host's own address: take another, or none to have one chosen"}
		}
		return nil
	}
	return &FieldError{"VirtualIPs", a.String(), "must be in " + join(c.Networks) + ", the network of services"}
}

// checkEndpoints refuses what would be dead behind a virtual address: the
// kernel translates a connection once. Clients of a headless service connect by
// themselves, also to virtual addresses.
func (c Chooser) checkEndpoints(s, former *Service) error {
	if s.Headless {
		return nil
	}
	for _, a := range s.Endpoints {
		if slices.Contains(c.Hosts, a) || !former.Headless && slices.Contains(former.Endpoints, a) {
			continue
		}
		for _, p := range c.Networks {
			if p.Contains(a) {
				return &FieldError{"Endpoints", a.String(), fmt.Sprintf("is inside the network of services %v: list the containers' or servers' own addresses", p)}
			}
		}
	}
	return nil
}

// noNetwork: virtual addresses cannot be had.
func noNetwork() error {
	return &FieldError{"VirtualIPs", "", "there can be none, because no network of services is in use on this host: " +
		"make the service headless, or see flanneld status, and choose ServiceNetwork in the configuration so that no host is in it"}
}

func (c Chooser) addresses() ([]netip.Addr, error) {
	if len(c.Networks) == 0 {
		return nil, noNetwork()
	}
	prefix, _ := ClaimPrefixes(c.Prefix)
	taken := c.Taken
	c.Taken = func(key string) (bool, error) {
		if slices.ContainsFunc(c.Hosts, func(a netip.Addr) bool { return key == prefix+a.String() }) {
			return true, nil
		}
		return taken(key)
	}
	var out []netip.Addr
	for _, p := range c.Networks {
		first, n := choice(p)
		at, found, err := c.free(n, func(i uint64) string { return prefix + plus(first, i).String() })
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, &FieldError{"VirtualIPs", "", fmt.Sprintf("none of the %d addresses for services in %v is free: delete services, or make those headless that need no virtual IP", n, p)}
		}
		out = append(out, plus(first, at))
	}
	return out, nil
}

// nodePort chooses one that is neither taken nor among own.
func (c Chooser) nodePort(i int, protocol string, own []string) (uint16, error) {
	_, prefix := ClaimPrefixes(c.Prefix)
	taken := c.Taken
	c.Taken = func(key string) (bool, error) {
		if slices.Contains(own, key) {
			return true, nil
		}
		return taken(key)
	}
	at, found, err := c.free(NodePortLast-NodePortFirst+1, func(i uint64) string { return prefix + portClaim(protocol, NodePortFirst+uint16(i)) })
	if err == nil && !found {
		err = &FieldError{fmt.Sprintf("Ports[%d].NodePort", i), "", fmt.Sprintf("no port from %d to %d of %s is free: delete services that have one", NodePortFirst, NodePortLast, protocol)}
	}
	return NodePortFirst + uint16(at), err
}

// free is the first of n that is not taken, from a random one on.
func (c Chooser) free(n uint64, key func(uint64) string) (at uint64, found bool, err error) {
	if n == 0 {
		return 0, false, nil
	}
	random := c.Random
	if random == nil {
		random = rand.Uint64N
	}
	start := random(n)
	for i := range n {
		at = (start + i) % n
		if taken, err := c.Taken(key(at)); err != nil || !taken {
			return at, err == nil, err
		}
	}
	return 0, false, nil
}

// choice is the first address of p that a service can have, and how many there
// are.
func choice(p netip.Prefix) (first netip.Addr, n uint64) {
	p = p.Masked()
	n = 1 << min(p.Addr().BitLen()-p.Bits(), 62) // more are of no use
	if p.Addr().Is4() {
		n-- // the broadcast address
	}
	return plus(p.Addr(), reserved(p)), n - min(n, reserved(p))
}

// plus is the nth address after a, in the same /64 of IPv6.
func plus(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	out := netip.AddrFrom16(b)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}

func join(networks []netip.Prefix) string {
	var out []string
	for _, p := range networks {
		out = append(out, p.String())
	}
	return strings.Join(out, " or ")
}
