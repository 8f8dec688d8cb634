package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/kernel/host"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/subnet"
)

// Status asks the network's goroutine for its status; see server.Daemon.
func (n *network) Status(ctx context.Context) (api.Status, error) {
	reply := make(chan api.Status, 1)
	select {
	case n.asks <- reply:
	case <-ctx.Done():
		return api.Status{}, ctx.Err()
	}
	select {
	case s := <-reply:
		return s, nil
	case <-ctx.Done():
		return api.Status{}, ctx.Err()
	}
}

// status describes everything; only the network's goroutine calls it.
func (n *network) status(now time.Time) api.Status {
	s := api.Status{
		Version: n.self.Version,
		Node:    n.self.Name,
		Started: n.started,
		Etcd: api.Etcd{
			Endpoints: n.endpoints,
			Connected: n.viewed && n.storeErr == nil,
			Since:     n.storeTurn,
		},
		Notices: slices.Concat(n.kernel.notes, n.names.shown.Load().notes),
		Peers:   []api.Peer{},
	}
	if n.storeErr != nil {
		s.Etcd.Error = n.storeErr.Error()
	}
	if n.embed != nil {
		s.Etcd.Embedded = n.embed.status()
	}
	if n.lease != nil && n.device != nil {
		s.Network = n.networkStatus()
		for i, p := range n.peers.Current() {
			s.Peers = append(s.Peers, n.peerStatus(p, n.known[i].since))
		}
		slices.SortFunc(s.Peers, func(a, b api.Peer) int { return slices.CompareFunc(a.Subnets, b.Subnets, netip.Prefix.Compare) })
	}
	if s.DNS = n.names.status(); n.lease == nil {
		s.DNS = nil
	}
	// Nobody's fault on a host that has no world outside, and not the network's.
	if s.DNS != nil {
		if why := n.names.out.Trouble(); why != "" {
			s.Notices = append(s.Notices, why)
		}
	}
	n.judge(&s, now)
	return s
}

func (n *network) networkStatus() *api.Network {
	info := n.device.Info()
	driver := n.opened.Backend.Type
	if info.Note != "" {
		driver += " (" + info.Note + ")"
	}
	w := &api.Network{
		Name:       "default",
		Subnets:    n.lease.Subnets,
		PublicIPs:  n.lease.PublicIPs,
		Underlay:   n.underlay.Link,
		Driver:     driver,
		Device:     info.Link,
		MTU:        info.MTU,
		Masquerade: n.cfg.IPMasq,
		Filter:     n.kernel.filterName,
		Held:       n.leased,
		Synced:     n.synced,
	}
	w.Networks = networks(n.opened)
	if n.syncErr != nil {
		w.SyncError = n.syncErr.Error()
	}
	return w
}

func (n *network) peerStatus(p *subnet.Lease, known time.Time) api.Peer {
	out := api.Peer{
		Node: p.Node, Subnets: p.Subnets, PublicIPs: p.PublicIPs, Driver: p.Type,
		Known: known, Synced: n.synced, Error: n.unserved[p.Key],
		Probes: n.probes.of(p.Key).status(),
	}
	if x := n.probes.of(p.Key); x != nil {
		out.Plain = x.way == backend.WayPlain
	}
	if p.Identity != "" {
		_, live := n.view.Live(p)
		out.Live = &live
	}
	return out
}

// mostSkipped is how many records that were skipped are told one by one: all
// of a broken script's would hide what else is wrong.
const mostSkipped = 50

// judge sets the verdict and the reasons for it.
func (n *network) judge(s *api.Status, now time.Time) {
	down := func(format string, a ...any) {
		s.Verdict = api.Down
		s.Reasons = append(s.Reasons, fmt.Sprintf(format, a...))
	}
	degraded := func(format string, a ...any) {
		if s.Verdict != api.Down {
			s.Verdict = api.Degraded
		}
		s.Reasons = append(s.Reasons, fmt.Sprintf(format, a...))
	}
	s.Verdict = api.OK
	switch {
	case n.waiting != "":
		down("waiting for %s since %s", n.waiting, since(now, n.waitSince))
	case n.device == nil:
		down("%s", n.lastTrouble)
	case n.syncErr != nil:
		down("the kernel is not as it should be: %v", n.syncErr)
	}
	if n.storeErr != nil && n.viewed {
		degraded("etcd is out of reach since %s, traffic goes on: %v", since(now, n.storeTurn), n.storeErr)
	}
	if n.keepErr != nil {
		degraded("lease: %v", n.keepErr)
	}
	if n.viewed && n.view.ConfigErr != nil && len(n.view.Config.Ranges) > 0 {
		degraded("the configuration in etcd is not used, the former one stays: %v", n.view.ConfigErr)
	}
	for _, key := range slices.Sorted(maps.Keys(n.unserved)) {
		degraded("%s", n.unserved[key])
	}
	for _, p := range n.probes.problems() {
		degraded("%s", p)
	}
	if n.upErr != nil && n.device != nil {
		degraded("the network goes on as it was: %v", n.upErr)
	}
	if n.hostErr != nil {
		degraded("set up this host: %v", n.hostErr)
	}
	if n.offErr != nil {
		degraded("%v", n.offErr)
	}
	if err := n.kernel.containers.trouble(); err != nil {
		degraded("containers are not served as they should be: %v", err)
	}
	if n.cniErr != nil {
		degraded("--cni-install: %v", n.cniErr)
	}
	for _, p := range n.kernel.forward.Problems() {
		degraded("%s", p)
	}
	skipped := slices.Concat(n.view.Problems, n.names.shown.Load().problems)
	for _, p := range skipped[:min(len(skipped), mostSkipped)] {
		degraded("skipped %v", p)
	}
	if more := len(skipped) - mostSkipped; more > 0 {
		degraded("skipped %d more records of etcd", more)
	}
	for _, p := range n.opened.Services {
		if !slices.Contains(n.services(), p) {
			degraded("ServiceNetwork %v has this host's own address in it, %v: this host has no services and no cluster's DNS address; choose a network that no host is in", p, n.underlay.Addrs)
		}
	}
	if err := n.names.shown.Load().trouble; err != nil {
		degraded("%v", err)
	}
	n.judgeServices(s, degraded)
	if s.DNS != nil {
		for _, p := range s.DNS.Problems {
			degraded("names: %s", p)
		}
	}
	if s.Etcd.Embedded != nil && s.Etcd.Embedded.Refusing != "" {
		degraded("embedded etcd takes no writes: %s", s.Etcd.Embedded.Refusing)
	}
}

// judgeServices sets the reasons of connections to services.
func (n *network) judgeServices(s *api.Status, degraded func(format string, a ...any)) {
	balanced := n.balancer.shown.Load()
	if balanced.trouble != nil {
		degraded("%v", balanced.trouble)
	}
	if balanced.frontends > 0 && !host.FiltersBridges("") {
		degraded("services: connections between containers of this host through a service's address are lost, the kernel lacks br_netfilter: modprobe br_netfilter, or boot a kernel that has it")
	}
	for i, p := range balanced.problems {
		if i == mostSkipped {
			degraded("%d more problems of services", len(balanced.problems)-i)
			break
		}
		if p, ok := errors.AsType[*service.Problem](p); ok && p.Endpoint != nil {
			s.Notices = append(s.Notices, p.Error()) // one container's, and the service does without
			continue
		}
		degraded("%v", p)
	}
}

func since(now, t time.Time) string { return now.Sub(t).Round(time.Second).String() }

func joinEndpoints(e []string) string { return strings.Join(e, ", ") }
