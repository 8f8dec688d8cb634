// Package rules says, as plain values, what the host's packet filter must do
// for the pod network. kernel/nft and kernel/iptables make it true.
package rules

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
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
	// Checked are bridges whose ports cannot send from addresses that are not
	// their own: the CNI plugins see to it, and it is not looked at again.
	Checked []string
	// Names are addresses of this host at which it answers DNS. What goes to or
	// comes from UDP port 53 of them is not tracked, nobody is told that the
	// port is closed (while the daemon restarts, a client is to ask again), and
	// Guard leaves port 53 of them alone.
	Names []netip.Addr
	// OffLink are addresses of this host that no interface has: it has routes
	// to them that say so (link.SyncLocal). Nobody is told by ARP where they
	// are, on a link they may be somebody else's (nftables only).
	OffLink []netip.Addr
}

// Equal tells whether r and o ask for the same in the same order.
func (r Rules) Equal(o Rules) bool {
	return r.Masquerade == o.Masquerade &&
		slices.Equal(r.Networks, o.Networks) && slices.Equal(r.Subnets, o.Subnets) &&
		slices.Equal(r.Guard, o.Guard) && slices.Equal(r.Bridges, o.Bridges) && slices.Equal(r.Checked, o.Checked) &&
		slices.Equal(r.Names, o.Names) && slices.Equal(r.OffLink, o.OffLink) && r.Tunnel.equal(o.Tunnel)
}

// EqualButPeers is Equal for two that may differ in Tunnel.Peers.
func (r Rules) EqualButPeers(o Rules) bool {
	r.Tunnel.Peers, o.Tunnel.Peers = nil, nil
	return r.Equal(o)
}

// Clone returns a copy that shares nothing with r.
func (r Rules) Clone() Rules {
	r.Networks = slices.Clone(r.Networks)
	r.Subnets = slices.Clone(r.Subnets)
	r.Guard = slices.Clone(r.Guard)
	r.Bridges = slices.Clone(r.Bridges)
	r.Checked = slices.Clone(r.Checked)
	r.Names = slices.Clone(r.Names)
	r.OffLink = slices.Clone(r.OffLink)
	r.Tunnel.MoreLinks = slices.Clone(r.Tunnel.MoreLinks)
	r.Tunnel.Local = slices.Clone(r.Tunnel.Local)
	r.Tunnel.Ports = slices.Clone(r.Tunnel.Ports)
	r.Tunnel.Peers = slices.Clone(r.Tunnel.Peers)
	return r
}

// OfFamily returns the addresses of one family, sorted, each once.
func OfFamily(addrs []netip.Addr, v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.IsValid() && a.Is4() == v4 {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// Tunnel says which packets of other hosts' pods this host accepts: those that
// come encapsulated, from a peer, over the underlay, and whose inner source the
// routes would send back into the tunnel; and those of Plain. A packet from an
// address of Networks to another that came in any other way (a stranger's, a
// container's that forges its source) is dropped, unless the routes would send
// its answer back there: containers on bridges that nobody told of.
type Tunnel struct {
	// Link is the tunnel's interface; "" if it has none.
	Link string
	// MoreLinks are its other interfaces: flannel has one for each family. A
	// name that ends in * is every name that begins so, here and in Link.
	MoreLinks []string
	// Underlay is the only interface that tunnel packets may arrive on; "": any.
	Underlay string
	// Local are the addresses of this host that peers send them to; a family
	// without any: all. On another, peers do not stop their containers.
	Local []netip.Addr
	// Protocol of the encapsulated packets, 0 if there is no tunnel, and their
	// destination ports, none if the protocol has none. IPPROTO_IPIP is IP in
	// IP of one family: 41 over IPv6. (4 over IPv6 and 41 over IPv4, which are
	// others', are left alone.) Any other counts over both families.
	Protocol uint8
	Ports    []uint16
	// Plain: packets of pods also come over the underlay without a tunnel, from
	// subnets whose route leads to the underlay or into the tunnel: while the
	// way to a peer changes, it and this host go different ways. Who is on the
	// underlay's link can forge the pods of peers then, not those of this host.
	Plain bool
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

// Over returns the protocol of the encapsulated packets over one family.
func (t Tunnel) Over(v4 bool) uint8 {
	if t.Protocol == unix.IPPROTO_IPIP && !v4 {
		return unix.IPPROTO_IPV6
	}
	return t.Protocol
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

// SameHost tells whether two peers are one address, written differently.
func SameHost(a, b netip.Addr) bool { return a.Unmap().WithZone("") == b.Unmap().WithZone("") }

func (t Tunnel) equal(o Tunnel) bool {
	return t.Link == o.Link && slices.Equal(t.MoreLinks, o.MoreLinks) && t.Underlay == o.Underlay && t.Protocol == o.Protocol && t.Plain == o.Plain &&
		slices.Equal(t.Ports, o.Ports) && slices.Equal(t.Local, o.Local) && slices.Equal(t.Peers, o.Peers)
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
