package daemon

import (
	"context"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/subnet"
)

// filter makes the packet filter right for peers.
func (n *network) filter(ctx context.Context, peers []*subnet.Lease) error {
	return n.kernel.sync(ctx, n.rules(peers))
}

// rules is what the packet filter must do. It is valid until it is called
// again.
func (n *network) rules(peers []*subnet.Lease) rules.Rules {
	info := n.device.Info()
	r := rules.Rules{
		Masquerade: n.cfg.IPMasq,
		Tunnel: rules.Tunnel{
			Link: info.Link, MoreLinks: info.MoreLinks, Underlay: n.underlay.Link,
			Protocol: info.Protocol, Ports: info.Ports, Plain: info.Plain,
			Local: slices.Concat(n.underlay.Addrs, n.underlay.PublicIPs),
		},
		Bridges:  containerBridges(),
		Guard:    n.guards(),
		Networks: networks(n.opened),
	}
	if n.kernel.filterName == nftables { // else the plugins have no guard on ports
		r.Checked = []string{bridgeName}
	}
	if n.lease != nil {
		r.Subnets = n.lease.Subnets
	}
	if n.lease != nil && !n.cfg.DNS.Off {
		r.OffLink = n.clusterDNS()
		r.Names = answersAt(n.lease.Subnets, r.OffLink)
	}
	r.Tunnel.Peers = n.addrs.of(peers)
	return r
}

// containerBridges are the interfaces that containers are behind, whatever
// their addresses: the plugins' and Docker's.
func containerBridges() []string { return []string{bridgeName, "docker0", "br-*"} }

// guards are the addresses of embedded etcd servers that no container may
// reach: this host's, and those that live hosts tell of. What another host
// says must not close ports of containers, or of every host.
func (n *network) guards() []netip.AddrPort {
	const most = 4 // of a host: two families, and one change of port
	out := slices.Clone(n.guard)
	for _, h := range n.view.Hosts {
		for _, g := range h.Guard[:min(most, len(h.Guard))] {
			a := g.Addr()
			if !a.IsUnspecified() && !a.IsLoopback() && !slices.ContainsFunc(networks(n.opened), func(p netip.Prefix) bool { return p.Contains(a) }) {
				out = append(out, g)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// published is what other hosts are told to guard: what they can reach.
func published(guard []netip.AddrPort, public []netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for _, g := range guard {
		switch a := g.Addr(); {
		case a.IsLoopback():
		case a.IsUnspecified():
			for _, p := range public {
				out = append(out, netip.AddrPortFrom(p, g.Port()))
			}
		default:
			out = append(out, g)
		}
	}
	return out
}
