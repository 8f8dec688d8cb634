// Package rules says, as plain values, what the host's packet filter must do
// for the pod network. kernel/nft and kernel/iptables make it true.
package rules

import (
	"context"
	"errors"
	"net/netip"
	"slices"
)

// ErrNotSupported says that this kernel (or host) lacks what a Filter needs.
// What wraps it names the thing that is missing.
var ErrNotSupported = errors.New("packet filter not supported")

// Rules is the whole of it. The zero value asks for nothing.
type Rules struct {
	// Networks are the pod network's address spaces, one per family.
	Networks []netip.Prefix
	// Subnets are this host's own parts of Networks; empty before the lease.
	Subnets []netip.Prefix
	// Masquerade traffic that leaves Networks (random-fully; not for
	// multicast), and what non-pod sources of this host send into the tunnel.
	Masquerade bool
	Tunnel     Tunnel
	// Guard are TCP services that no container may reach (etcd), anywhere. If
	// the address is one of this host, loopback or unspecified, the port is
	// guarded on every address of this host: a container may try its gateway.
	Guard []netip.AddrPort
	// Bridges are interfaces whose traffic counts as containers' for Guard,
	// whatever its source: containers of an earlier network, of Docker. A name
	// that ends in * is every name that begins so. Underlay and lo never are.
	Bridges []string
}

// Equal tells whether r and o ask for the same in the same order.
func (r Rules) Equal(o Rules) bool {
	return r.Masquerade == o.Masquerade &&
		slices.Equal(r.Networks, o.Networks) && slices.Equal(r.Subnets, o.Subnets) &&
		slices.Equal(r.Guard, o.Guard) && slices.Equal(r.Bridges, o.Bridges) && r.Tunnel.equal(o.Tunnel)
}

// Clone returns a copy that shares nothing with r.
func (r Rules) Clone() Rules {
	r.Networks = slices.Clone(r.Networks)
	r.Subnets = slices.Clone(r.Subnets)
	r.Guard = slices.Clone(r.Guard)
	r.Bridges = slices.Clone(r.Bridges)
	r.Tunnel.MoreLinks = slices.Clone(r.Tunnel.MoreLinks)
	r.Tunnel.Local = slices.Clone(r.Tunnel.Local)
	r.Tunnel.Peers = slices.Clone(r.Tunnel.Peers)
	return r
}

// Tunnel says which encapsulated packets this host accepts.
type Tunnel struct {
	// Link is the tunnel's interface; "" if it has none.
	Link string
	// MoreLinks are its other interfaces: flannel has one for each family.
	MoreLinks []string
	// Underlay is the only interface that tunnel packets may arrive on; "": any.
	Underlay string
	// Local are the addresses of this host that peers send them to; a family
	// without any: all. On another, peers do not stop their containers.
	Local []netip.Addr
	// Protocol of the encapsulated packets, 0 if there is no tunnel, and their
	// destination port, 0 if the protocol has none.
	Protocol uint8
	Port     uint16
	// Peers are the underlay addresses that may send them, and to which this
	// host forwards none but from the underlay: masqueraded, a container's own
	// would come from a peer. Order is free.
	Peers []netip.Addr
}

// Links returns all interfaces of the tunnel.
func (t Tunnel) Links() []string {
	if t.Link == "" {
		return t.MoreLinks
	}
	return append([]string{t.Link}, t.MoreLinks...)
}

// LocalOf returns the addresses of Local that are of one family, each once.
func (t Tunnel) LocalOf(v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range t.Local {
		if a = a.Unmap().WithZone(""); a.IsValid() && a.Is4() == v4 && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (t Tunnel) equal(o Tunnel) bool {
	return t.Link == o.Link && slices.Equal(t.MoreLinks, o.MoreLinks) && t.Underlay == o.Underlay && t.Protocol == o.Protocol && t.Port == o.Port &&
		slices.Equal(t.Local, o.Local) && slices.Equal(t.Peers, o.Peers)
}

// Filter is one way to program the kernel. Owned by one goroutine.
type Filter interface {
	// Sync makes the kernel's rules equal to r: whole state, idempotent. It
	// notices when somebody else changed or flushed them, cheaply (no program
	// run, no listing) when nobody did, and writes only when something
	// differs; a few changed peers cost a few elements.
	Sync(ctx context.Context, r Rules) error
	// Remove takes away everything of ours and nothing else.
	Remove(ctx context.Context) error
}
