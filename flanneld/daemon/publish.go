package daemon

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/dns"
	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
)

var _ server.Publications = (*names)(nil)

// Publications implements server.Publications.
func (n *names) Publications(context.Context) ([]server.PublicationState, error) {
	show := n.shown.Load()
	if show.published == nil {
		return nil, errUnheard()
	}
	out := make([]server.PublicationState, len(show.published))
	for i, p := range show.published {
		out[i].Publication = p
		out[i].Containers, out[i].LeftOut = behind(p, show.state)
	}
	return out, nil
}

// behind counts the containers of a publication.
func behind(p *service.Publication, s zone.State) (all, leftOut int) {
	for _, e := range s.Endpoints {
		if !p.Selects(e) {
			continue
		}
		all++
		if s.Dead[e.Host] != "" {
			leftOut++
		}
	}
	return all, leftOut
}

// EditPublication implements server.Publications.
func (n *names) EditPublication(ctx context.Context, of *service.Publication, change func(*service.Publication) (*service.Publication, error)) error {
	none := &service.Publication{Tenant: of.Tenant, Host: of.Host, Protocol: of.Protocol, Port: of.Port}
	k := kind[service.Publication]{parse: service.ParsePublication, marshal: (*service.Publication).Marshal}
	return edit(ctx, n, of.Key(n.cfg.Etcd.Prefix), none, k, change)
}

// CheckPublication implements server.Publications.
func (n *names) CheckPublication(_ context.Context, p *service.Publication) (notes []string, err error) {
	show := n.shown.Load()
	g := show.ground
	known := map[string]bool{}
	for name := range g.hosts {
		known[name] = true
	}
	for _, l := range g.leases {
		if l.Node != "" {
			known[l.Node] = true
		}
	}
	switch {
	case len(known) == 0:
		return nil, api.Unavailable("the hosts are not known yet: flanneld status tells what it waits for")
	case !known[p.Host]:
		return nil, api.Invalid("host", p.Host, "there is none of that name, only "+strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	if use := n.uses(g, p); use != "" {
		return nil, api.Invalid("port", fmt.Sprintf("%d/%s", p.Port, p.Protocol), "flanneld needs it on "+p.Host+" for "+use+": publish another")
	}
	if all, _ := behind(p, show.state); all == 0 {
		notes = append(notes, fmt.Sprintf("no container of network %s is called %s now: the port leads there as soon as there is one", p.Network, p.Target))
	}
	if who := listens(g, p.Host, p.Protocol, p.Port); who != "" {
		notes = append(notes, fmt.Sprintf("%s listens on port %d/%s of %s: connections to it go to %s instead while that is there", who, p.Port, p.Protocol, p.Host, p.Target))
	}
	return notes, nil
}

// uses says what flanneld itself needs the port of a host for, as far as it is
// known here; "": nothing.
func (n *names) uses(g ground, p *service.Publication) string {
	self := p.Host == g.self.Name
	h := g.hosts[p.Host]
	etcd := func(at netip.AddrPort) bool {
		a := at.Addr().Unmap()
		return at.Port() == p.Port && (slices.Contains(h.PublicIPs, a) || self && (a.IsLoopback() || a.IsUnspecified()))
	}
	switch {
	case p.Protocol == "udp" && slices.Contains(g.tunnel, p.Port):
		return "the tunnel"
	case p.Protocol != "sctp" && p.Port == dnsPort && !n.cfg.DNS.Off:
		return "the DNS"
	case p.Protocol == "tcp" && (slices.ContainsFunc(h.Guard, etcd) || slices.ContainsFunc(g.etcd, etcd)):
		return "etcd"
	case p.Protocol == "tcp" && self && p.Port == n.cfg.Healthz.Port():
		return "health checks (--healthz-port)"
	}
	return ""
}

// listens names the program that has the port of this host; "" if there is
// none, or if the host is another.
func listens(g ground, host, protocol string, port uint16) string {
	if host != g.self.Name || protocol == "sctp" {
		return ""
	}
	for _, a := range append(slices.Clone(g.nodes), netip.AddrFrom4([4]byte{127, 0, 0, 1})) {
		if who := dns.Holder(protocol, netip.AddrPortFrom(a, port)); who != "" {
			return who
		}
	}
	return ""
}

// NodePortNotes implements server.Names: of this host.
func (n *names) NodePortNotes(s *service.Service) (notes []string) {
	g := n.shown.Load().ground
	for _, p := range s.Ports {
		if p.NodePort == 0 || p.NodePort == service.AutoPort {
			continue
		}
		if who := listens(g, g.self.Name, p.Protocol, p.NodePort); who != "" {
			notes = append(notes, fmt.Sprintf("%s listens on port %d/%s of %s: connections to it go to service %s instead while that is there", who, p.NodePort, p.Protocol, g.self.Name, s.Name))
		}
	}
	return notes
}
