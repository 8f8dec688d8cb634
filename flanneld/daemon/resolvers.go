package daemon

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/metrics"
	"github.com/flanneld/flanneld/subnet"
)

// serverOptions are where the local API and the health checks are served, and
// for what.
func (n *network) serverOptions() server.Options {
	o := server.Options{
		Socket: api.Socket, Healthz: n.cfg.Healthz, Domain: n.cfg.DNS.Domain,
		Names: n.names, Publications: n.names, Endpoints: n.names,
	}
	m := metrics.Sources{Version: n.self.Version}
	if !n.cfg.DNS.Off {
		m.DNS, m.Forward = n.names.server.Stats, n.names.out.Stats
	}
	o.Metrics = metrics.Handler(m)
	return o
}

// answersAt are the addresses at which a host answers: its gateways, and the
// cluster's.
func answersAt(own []netip.Prefix, cluster []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, p := range own {
		out = append(out, subnet.Gateway(p))
	}
	return append(out, cluster...)
}

// tellNames hands the names what they stand on, if that is something new.
func (n *network) tellNames() {
	if n.lease == nil || n.turn == n.toldTurn {
		return
	}
	n.toldTurn = n.turn
	g := ground{
		self: n.self, own: n.lease.Subnets, pods: networks(n.opened), services: n.services(), cluster: n.clusterDNS(),
		hosts: n.view.Hosts, lives: map[string]bool{}, leases: n.view.Leases, nodes: n.underlay.Addrs,
	}
	for _, h := range n.view.Hosts {
		g.lives[h.Identity] = true
	}
	g.inside = hostsInside(g.services, n.view.Leases, n.view.Hosts)
	if info := n.device.Info(); info.Protocol == unix.IPPROTO_UDP {
		g.tunnel = info.Ports
	}
	g.etcd = slices.Clone(n.guard)
	g.guarded = published(n.guards(), n.underlay.Addrs)
	for _, e := range n.endpoints {
		_, host, _ := strings.Cut(e, "://")
		if at, err := netip.ParseAddrPort(host); err == nil { // else it is a name
			g.etcd = append(g.etcd, at)
		}
	}
	if n.storeErr == nil {
		g.fresh = n.view.Fresh
	}
	n.names.grounds.put(g)
}

// hostsInside are the addresses of hosts that are in these networks.
func hostsInside(networks []netip.Prefix, leases []*subnet.Lease, hosts map[string]subnet.Host) (out []netip.Addr) {
	add := func(addrs []netip.Addr) {
		for _, a := range addrs {
			if a = a.Unmap(); slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
				out = append(out, a)
			}
		}
	}
	for _, l := range leases {
		add(l.PublicIPs)
	}
	for _, h := range hosts {
		add(h.PublicIPs)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// clusterDNS are the addresses at which every host answers names for itself:
// those of the service networks that this host's underlay is not in.
func (n *network) clusterDNS() []netip.Addr {
	var out []netip.Addr
	if n.cfg.DNS.Off {
		return nil
	}
	for _, p := range n.services() {
		out = append(out, subnet.ClusterDNS(p))
	}
	return out
}

// services are the service networks that this host's underlay is not in.
func (n *network) services() []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(n.opened.Services), func(p netip.Prefix) bool {
		return slices.ContainsFunc(n.underlay.Addrs, p.Contains)
	})
}

// resolvers keeps dns.env as it should be, and the cluster's DNS addresses this
// host's own.
func (n *network) resolvers() error {
	cluster := n.clusterDNS()
	_, err := n.kernel.handle.SyncLocal(cluster)
	_, routeErr := n.kernel.handle.SyncServices(n.balanced.networks, n.serviceLinks(), sources(n.lease.Subnets))
	err = errors.Join(err, routeErr)
	path := dnsEnvFile(n.cfg)
	if n.cfg.DNS.Off {
		if gone := os.Remove(path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			return errors.Join(err, gone)
		}
		return err
	}
	want := subnet.DNSEnv{
		Servers: cluster, Domain: n.cfg.DNS.Domain,
		Search:  subnet.PodSearch(n.cfg.DNS.Domain, endpoint.DefaultNetwork, ""),
		Options: []string{"ndots:2", "timeout:3", "attempts:3"},
	}
	if len(cluster) == 0 {
		want.Servers = answersAt(n.lease.Subnets, nil)
	}
	if have, readErr := subnet.ReadDNSEnv(path); readErr == nil && have.Equal(want) {
		return err
	}
	return errors.Join(err, subnet.WriteDNSEnv(path, want))
}

// serviceLinks are those that the route of services may lead over: its packets are
// all translated or refused before. It is the underlay, and the tunnel where that
// does not take it (it has no IPv6).
func (n *network) serviceLinks() []int {
	out := []int{n.underlay.Index}
	if len(n.balanced.networks) == 0 {
		return out
	}
	for _, name := range links(n.device.Info()) {
		if l, err := n.kernel.handle.LinkByName(name); err == nil {
			out = append(out, l.Index)
		}
	}
	return out
}

// sources are where this host's own packets to services come from: its gateways
// or, while there is no bridge yet, the tunnel's addresses.
func sources(own []netip.Prefix) []netip.Addr {
	out := answersAt(own, nil)
	for _, p := range own {
		out = append(out, p.Addr())
	}
	return out
}

// dnsEnvFile is beside subnet.env.
func dnsEnvFile(cfg *config.Config) string {
	return filepath.Join(filepath.Dir(cfg.SubnetFile), subnet.DNSEnvFile)
}
