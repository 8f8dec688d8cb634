package daemon

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld/flanneld/dns"
	"github.com/flanneld/flanneld/dns/forward"
	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/service/health"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// names tells the cluster who is attached here, and answers questions for the
// names of all. Everything in it belongs to the goroutine of run; others send
// it values through the channels.
type names struct {
	cfg    *config.Config
	log    *slog.Logger
	store  store.Store
	out    *forward.Forwarder
	server *dns.Server
	dir    string // of the attachments' records

	grounds   latest[ground]
	attached  latest[[]ipam.Record]
	heard     latest[told[endpoint.Endpoint]]
	services  latest[told[service.Service]]
	published latest[told[service.Publication]]
	added     latest[told[zone.Name]]
	verdicts  latest[health.Verdicts]
	// To the publisher.
	own    latest[[]*endpoint.Endpoint]
	others latest[store.Records[endpoint.Endpoint]]
	stale  latest[[]*endpoint.Endpoint]
	// To who looks at health, and to who balances.
	checks   latest[[]health.Check]
	balancer *balancer
	// What they cannot do; nil when over.
	publishing latest[error]

	ground      ground
	records     []ipam.Record
	local       []*endpoint.Endpoint // of records, by key
	all         store.Records[endpoint.Endpoint]
	roster      roster               // of those that count; of the ground there is
	kept        []*endpoint.Endpoint // of the epoch before, until grace
	grace       time.Time            // also: until then nobody's endpoints are forgotten
	service     store.Records[service.Service]
	name        store.Records[zone.Name]
	publication store.Records[service.Publication]
	verdict     health.Verdicts
	dead        map[string]string // hosts, and why they count as dead
	notes       []string          // names that were left out
	// storeErr is of the newest of the watches; forgetting how many endpoints
	// are about to be removed.
	storeErr   error
	forgetting int
	trouble    error // of publishing
	zones      zone.Builder
	garbage    garbage
	heardOf    heardOf
	had        heardOf // the same, without trouble

	shown atomic.Pointer[shown] // for others' goroutines; never nil
}

// shown is what others may see of the names. It is immutable.
type shown struct {
	ground ground
	at     []netip.Addr // where the server answers
	zone   *zone.Zone   // nil: it does not yet
	state  zone.State
	// published ports of all hosts; nil: not known yet.
	published []*service.Publication
	problems  []error // records that were skipped
	trouble   error   // what keeps endpoints from being published
	notes     []string
	storeErr  error // etcd is out of reach
}

// heardOf is what was heard of, be it that etcd is out of reach. Sockets open
// when all of it was: a question must not meet half of the names.
type heardOf struct{ attached, endpoints, services, names, published bool }

func (h heardOf) all() bool { return h.attached && h.endpoints && h.services && h.names }

// ground is what names stand on: the network's goroutine tells it. It is
// immutable.
type ground struct {
	self     subnet.Host
	own      []netip.Prefix // this host's subnets
	pods     []netip.Prefix // the pod network
	services []netip.Prefix // of virtual addresses
	inside   []netip.Addr   // hosts' own addresses in services
	cluster  []netip.Addr   // the cluster's DNS addresses
	hosts    map[string]subnet.Host
	lives    map[string]bool // identities of hosts
	leases   []*subnet.Lease
	guarded  []netip.AddrPort // of TCP, that no container may reach
	tunnel   []uint16         // UDP ports of the tunnel
	etcd     []netip.AddrPort // where this host serves or asks it
	nodes    []netip.Addr     // this host's, at which node ports are
	// fresh is when hosts was listed without a break since; zero while etcd is
	// out of reach: nobody counts as dead then who lived before.
	fresh time.Time
}

// told is what a watch yields.
type told[T any] struct {
	records store.Records[T]
	err     error
}

func newNames(cfg *config.Config, st store.Store, self subnet.Host, b *balancer, log *slog.Logger) *names {
	n := &names{
		cfg: cfg, log: log, store: st, dir: ipam.DefaultDir,
		grounds: newLatest[ground](), attached: newLatest[[]ipam.Record](),
		heard: newLatest[told[endpoint.Endpoint]](), services: newLatest[told[service.Service]](), published: newLatest[told[service.Publication]](), added: newLatest[told[zone.Name]](),
		own: newLatest[[]*endpoint.Endpoint](), others: newLatest[store.Records[endpoint.Endpoint]](),
		stale: newLatest[[]*endpoint.Endpoint](), publishing: newLatest[error](),
		checks: newLatest[[]health.Check](), verdicts: newLatest[health.Verdicts](), balancer: b,
	}
	n.ground.self = self
	n.zones.Serial = uint32(time.Now().Unix()) // grows over restarts
	n.shown.Store(&shown{})
	// Until etcd can be asked, this host is what it was before.
	if env, err := subnet.ReadEnv(cfg.SubnetFile); err == nil {
		n.ground.own, n.ground.pods = env.Subnets, env.Networks
	}
	if env, err := subnet.ReadDNSEnv(dnsEnvFile(cfg)); err == nil {
		gateways := answersAt(n.ground.own, nil)
		n.ground.cluster = slices.DeleteFunc(env.Servers, func(a netip.Addr) bool { return slices.Contains(gateways, a) })
	}
	n.out = forward.New(forward.Options{Upstreams: cfg.DNS.Upstreams, Own: n.answers, Log: log})
	n.server = dns.New(dns.Options{Forward: n.out, Log: log})
	return n
}

// run answers until ctx ends.
func (n *names) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	prefix, self := n.cfg.Etcd.Prefix, n.ground.self
	g.Go(func() error {
		for r, err := range ipam.Watch(ctx, n.dir) {
			if err != nil {
				n.log.Warn("attachments of this host are seen late or not at all", "error", err)
			}
			if r == nil {
				continue // nothing could be read yet, and nothing is withdrawn
			}
			n.attached.put(r)
		}
		return nil
	})
	g.Go(func() error { return follow(n.heard, endpoint.Watch(ctx, n.store, prefix)) })
	g.Go(func() error { return follow(n.services, service.Watch(ctx, n.store, prefix)) })
	g.Go(func() error { return follow(n.published, service.WatchPublished(ctx, n.store, prefix)) })
	g.Go(func() error { return follow(n.added, zone.WatchNames(ctx, n.store, prefix)) })
	g.Go(func() error {
		p := endpoint.Publisher{Store: n.store, Prefix: prefix, Host: self.Name, Identity: self.Identity, Report: n.publishing.put}
		return p.Run(ctx, n.own, n.others)
	})
	g.Go(func() error {
		f := endpoint.Forgetter{Store: n.store, Prefix: prefix, Host: self.Name}
		return f.Run(ctx, n.stale)
	})
	g.Go(func() error { return n.balancer.run(ctx) })
	g.Go(func() error {
		c := health.Checker{}
		return c.Run(ctx, n.checks, n.verdicts.put)
	})
	if !n.cfg.DNS.Off {
		g.Go(func() error { return n.out.Run(ctx) })
		g.Go(func() error { return n.server.Run(ctx) })
	}
	g.Go(func() error { return n.reload(ctx) })
	g.Go(func() error { return n.serve(ctx) })
	return g.Wait()
}

// reload does at SIGHUP what admins expect of it, which here is little: files
// are followed anyway.
func (n *names) reload(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			n.log.Info("SIGHUP: resolv.conf is read again")
			n.out.Reload()
		}
	}
}

// follow hands every newer state to one who may skip some.
func follow[T any](to latest[told[T]], from iter.Seq2[store.Records[T], error]) error {
	for r, err := range from {
		to.put(told[T]{r, err})
	}
	return nil
}

// serve owns the state.
func (n *names) serve(ctx context.Context) error {
	var recheck <-chan time.Time
	sweep := time.NewTicker(30 * time.Second)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n.ground = <-n.grounds:
			n.roster = roster{} // it decides who counts
			n.attach()
			n.forget(time.Now())
		case <-sweep.C:
			n.forget(time.Now())
			continue
		case n.records = <-n.attached:
			n.heardOf.attached = true
			n.attach()
		case t := <-n.heard:
			n.hear(t, time.Now())
		case t := <-n.services:
			n.heardOf.services = true
			if n.storeErr = t.err; t.err == nil {
				n.service, n.had.services = t.records, true
				n.attach() // what is looked at depends on it
			}
		case t := <-n.published:
			n.heardOf.published = true
			if n.storeErr = t.err; t.err == nil {
				n.publication, n.had.published = t.records, true
			}
		case n.verdict = <-n.verdicts:
			n.attach()
		case t := <-n.added:
			n.heardOf.names = true
			if n.storeErr = t.err; t.err == nil {
				n.name, n.had.names = t.records, true
			}
		case n.trouble = <-n.publishing:
			if n.trouble != nil {
				n.log.Warn("endpoints of this host not published, trying again", "error", n.trouble)
			}
		case <-recheck:
		}
		recheck = nil
		if next := n.answer(time.Now()); !next.IsZero() {
			recheck = time.After(time.Until(next))
		}
	}
}

// attach makes endpoints of this host's attachments, those whose addresses are
// of the pod network, and has them published.
func (n *names) attach() {
	if !n.heardOf.attached || len(n.ground.own) == 0 {
		return // nothing is withdrawn because it is not known yet
	}
	local := []*endpoint.Endpoint{}
	n.notes = nil
	for _, r := range n.records {
		r.Addresses = slices.DeleteFunc(slices.Clone(r.Addresses), func(a netip.Prefix) bool {
			return !slices.ContainsFunc(n.ground.own, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
		})
		if len(r.Addresses) == 0 {
			continue // of another network
		}
		if e := endpoint.FromRecord(r, n.ground.self.Name, n.ground.self.Identity); e != nil {
			local = append(local, e)
		}
		n.notes = append(n.notes, endpoint.Notes(r)...)
	}
	slices.SortFunc(local, compareEndpoints)
	n.examine(local)
	for i, e := range local { // what did not change keeps its pointer
		if at, ok := slices.BinarySearchFunc(n.local, e, compareEndpoints); ok && reflect.DeepEqual(n.local[at], e) {
			local[i] = n.local[at]
		}
	}
	n.local = local
	if n.had.services && n.had.endpoints { // else it is not known who is well
		n.own.put(local)
	}
}

// examine has the health of this host's endpoints looked at, and notes what is
// known of it.
func (n *names) examine(local []*endpoint.Endpoint) {
	if !n.had.services || !n.had.endpoints {
		return // who was well before is well
	}
	checks := health.Checks(n.service.Values, local, n.all.Values)
	n.checks.put(checks)
	sick := n.verdict.Unhealthy(checks)
	for _, e := range local {
		e.Unhealthy = sick[e.Key("")]
	}
}

// hear takes what the cluster knows. After a change of epoch everybody
// registers again: what vanished stays an answer meanwhile.
func (n *names) hear(t told[endpoint.Endpoint], now time.Time) {
	n.heardOf.endpoints = true
	if n.storeErr = t.err; t.err != nil {
		return
	}
	if n.all.Epoch != 0 && n.all.Epoch != t.records.Epoch {
		n.kept, n.grace = n.all.Values, now.Add(subnet.EpochGrace)
	}
	first := !n.had.endpoints
	n.all, n.had.endpoints = t.records, true
	n.others.put(t.records)
	if first {
		n.attach()
	}
}

// answer has the server answer from the present state, and returns when that
// changes by itself; zero: it does not.
func (n *names) answer(now time.Time) (next time.Time) {
	endpoints, next := n.endpoints(now)
	n.garbage.fit(len(endpoints))
	var again time.Time
	if n.dead, again = n.judgeHosts(n.roster.lives, now); next.IsZero() || !again.IsZero() && again.Before(next) {
		next = again
	}
	n.balance(endpoints)
	at := answersAt(n.ground.own, n.ground.cluster)
	show := &shown{
		ground: n.ground, published: n.publication.Values, at: at, notes: n.notes, storeErr: n.storeErr, trouble: n.trouble,
		problems: slices.Concat(n.all.Problems, n.service.Problems, n.name.Problems, n.publication.Problems),
		state: zone.State{
			Domain: n.cfg.DNS.Domain, Tenant: endpoint.DefaultTenant, TTL: n.cfg.DNS.TTL,
			Networks: slices.Concat(n.ground.pods, n.ground.services), Nameservers: at,
			Local: n.ground.self.Name, PreferLocal: n.cfg.DNS.PreferLocal,
			Endpoints: endpoints, Services: n.service.Values, Names: n.name.Values, Dead: n.dead,
			Partial: !n.had.endpoints || !n.had.services || !n.had.names,
		},
	}
	if len(n.ground.own) > 0 && n.heardOf.all() {
		show.zone = n.zones.Build(show.state)
		if !n.cfg.DNS.Off {
			n.server.Serve([]dns.View{{Name: endpoint.DefaultNetwork, Addrs: at, Sources: n.ground.pods, Zone: show.zone}})
		}
	}
	n.shown.Store(show)
	return next
}

// balance has connections to services go to these endpoints, as soon as all
// that decides where is known.
func (n *names) balance(endpoints []*endpoint.Endpoint) {
	told := len(n.ground.nodes) > 0 // by the network: what a former daemon left says less
	if !told || !n.heardOf.attached || !n.had.endpoints || !n.had.services || !n.had.published {
		return
	}
	n.balancer.states.put(service.State{
		Tenant: endpoint.DefaultTenant, Host: n.ground.self.Name,
		Networks: n.ground.services, Hosts: n.ground.inside, Guarded: n.ground.guarded, Pods: n.ground.pods, Subnets: n.ground.own, Nodes: n.ground.nodes,
		Services: n.service.Values, Endpoints: endpoints, Published: n.publication.Values, Dead: n.dead,
	})
}

// answers reports whether a name server is this daemon.
func (n *names) answers(server netip.AddrPort) bool {
	return server.Port() == dnsPort && slices.Contains(n.shown.Load().at, server.Addr().Unmap())
}

const dnsPort = 53
