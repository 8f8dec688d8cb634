package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// audit is how often the kernel is read although nobody told of a change.
const audit = 5 * time.Minute

// beat is how often the network looks after itself without being told to:
// what somebody else changed is repaired within this time.
const beat = 5 * time.Second

// seen is what the watch yields: the cluster, or why it cannot be seen.
type seen struct {
	view subnet.View
	err  error
}

// network is the pod network on this host. Everything in it belongs to the
// goroutine of run; others send it values through the channels.
type network struct {
	cfg       *config.Config
	log       *slog.Logger
	self      subnet.Host // without addresses until the underlay is chosen
	started   time.Time
	endpoints []string         // of etcd
	guard     []netip.AddrPort // of the embedded etcd
	embed     *embeddedServer  // nil: none

	views    latest[seen]
	held     latest[subnet.Lease]
	report   latest[error] // the keeper's trouble; nil when over
	moved    <-chan link.Change
	asks     chan chan<- api.Status
	keeper   keeperPorts
	probes   *probes
	names    *names
	balancer *balancer
	balanced balanceNeeds
	notify   func(state string) // systemd

	// turn counts what the names stand on; toldTurn is when they were told.
	// unresolved: what their clients need may not be as it should be.
	turn, toldTurn int
	unresolved     bool
	resolveErr     error

	view      subnet.View
	viewed    bool
	storeErr  error
	storeTurn time.Time // when storeErr last began or ended
	keepErr   error
	forget    bool      // somebody else may have changed the kernel
	relook    bool      // the underlay may have changed
	audited   time.Time // when both were last assumed without being told

	kernel   *kernel
	underlay backend.Underlay
	device   backend.Device
	opened   subnet.Config // what device was opened for
	sole     string        // the backend that others have made room for
	said     subnet.Self   // what the keeper was told last

	lease    *subnet.Lease
	leased   time.Time
	peers    subnet.Peers
	addrs    publics        // of peers, for filter alone
	told     []backend.Peer // for carry alone
	recheck  time.Time
	known    []knownPeer // parallel to peers.Current()
	unserved map[string]string
	synced   time.Time
	syncErr  error
	hostErr  error
	upErr    error // why the present configuration or underlay is not used
	ready    bool
	cniDone  bool
	cniErr   error
	unfixed  bool // what --fix-offload did is undone
	offErr   error

	waiting     string // what for, as last said in the log
	waitSince   time.Time
	waitLogged  bool
	lastTrouble string
}

// keeperPorts lead to the keeper of the lease.
type keeperPorts struct {
	self  latest[subnet.Self]
	views latest[subnet.View]
}

func newNetwork(cfg *config.Config, log *slog.Logger, started time.Time, k *kernel) *network {
	return &network{
		cfg: cfg, log: log, started: started, kernel: k, moved: k.monitor.C, balancer: newBalancer(k, log),
		views: newLatest[seen](), held: newLatest[subnet.Lease](), report: newLatest[error](),
		asks:    make(chan chan<- api.Status),
		keeper:  keeperPorts{newLatest[subnet.Self](), newLatest[subnet.View]()},
		probes:  newProbes(log),
		notify:  systemd(log),
		audited: time.Now(), unserved: map[string]string{},
	}
}

// run owns the network until ctx ends. It returns nil then, or the
// configuration error that ends the daemon.
func (n *network) run(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var recheck <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return n.letGo()
		case s := <-n.views:
			n.see(s)
		case l := <-n.held:
			n.hold(l)
		case n.keepErr = <-n.report:
		case c := <-n.moved:
			n.forget = n.forget || c.Devices || c.Lost
			n.relook = n.relook || c.Underlay || c.Lost
		case l := <-n.probes.listens:
			n.probes.listening(l)
		case r := <-n.probes.results:
			if !n.probes.take(r, time.Now()) {
				continue
			}
		case n.balanced = <-n.balancer.needs:
			n.unresolved = true
			n.checkHost(ctx)
		case <-recheck:
			n.recheck = time.Time{} // set anew by carry, once etcd can be seen
		case <-tick.C:
			n.beat(ctx)
		case reply := <-n.asks:
			reply <- n.status(time.Now())
			continue
		}
		if err := n.step(ctx); err != nil {
			return errors.Join(err, n.letGo())
		}
		n.tell()
		n.tellNames()
		recheck = nil
		if !n.recheck.IsZero() {
			recheck = time.After(time.Until(n.recheck))
		}
	}
}

// see takes a newer view, or the news that the store cannot be reached.
func (n *network) see(s seen) {
	if (s.err == nil) != (n.storeErr == nil) || n.storeTurn.IsZero() {
		n.storeTurn = time.Now()
		if s.err != nil {
			n.log.Warn("etcd is out of reach, the data path goes on as it is", "error", s.err, "endpoints", n.endpoints)
		} else if n.storeErr != nil {
			n.log.Info("etcd is back")
		}
	}
	n.storeErr = s.err
	n.turn++
	if s.err != nil {
		return
	}
	n.logProblems(s.view)
	n.view, n.viewed = s.view, true
	n.keeper.views.put(s.view)
}

// hold takes the lease that the keeper registered.
func (n *network) hold(l subnet.Lease) {
	if n.lease == nil {
		n.leased = time.Now()
		n.log.Info("lease held", "subnets", l.Subnets, "public_ips", l.PublicIPs)
	} else if !slices.Equal(n.lease.Subnets, l.Subnets) {
		n.leased = time.Now()
		n.log.Warn("subnet changed: containers that run keep their former addresses until they are started again",
			"subnets", l.Subnets, "former", n.lease.Subnets)
	}
	n.lease = &l
	n.turn++
	n.unresolved = true
}

// beat is the work that nobody asked for: look for drift that no event told.
func (n *network) beat(ctx context.Context) {
	n.notify("WATCHDOG=1")
	n.unresolved = true
	n.checkHost(ctx)
	n.kernel.containers.beat()
	if time.Since(n.audited) >= audit {
		n.audited, n.forget, n.relook = time.Now(), true, true
	}
	if time.Since(n.waitSince) > beat-time.Second {
		n.sayWait()
	}
}

// step makes the kernel and the files equal to what is known, as far as it
// is known. It is called after every change and on every beat; when nothing
// differs it does nothing. An error it returns ends the daemon.
func (n *network) step(ctx context.Context) error {
	if !n.viewed {
		n.wait("etcd at " + joinEndpoints(n.endpoints))
		return nil
	}
	if len(n.view.Config.Ranges) == 0 {
		if errors.Is(n.view.ConfigErr, subnet.ErrNoConfig) {
			n.wait(n.view.ConfigErr.Error())
			n.sayWait() // an admin who forgot it should not wait for the hint
			return nil
		}
		if n.embed != nil {
			// Only through the etcd in this process can it be corrected.
			n.wait(fmt.Sprintf("a configuration that can be used; %s: %v", subnet.ConfigKey(n.cfg.Etcd.Prefix), n.view.ConfigErr))
			n.sayWait()
			return nil
		}
		return n.view.ConfigErr
	}
	n.upErr = n.bringUp(ctx)
	if n.upErr != nil && n.lease == nil {
		if IsConfig(n.upErr) && n.embed == nil {
			return n.upErr
		}
		n.trouble(n.upErr)
		return nil
	}
	if n.lease == nil {
		// The rules stand and the device receives before the lease tells anybody.
		n.wait("a lease")
		err := n.filter(ctx, n.view.Leases)
		n.trouble(err)
		if err == nil {
			n.say()
		}
		return nil
	}
	n.wait("")
	n.carry(ctx)
	return nil
}

// carry syncs everything that depends on the lease: peers, rules, files.
func (n *network) carry(ctx context.Context) {
	now := time.Now()
	var errs []error
	if n.storeErr == nil {
		_, n.recheck = n.peers.Update(n.view, *n.lease, now)
	}
	if n.forget {
		n.device.Forget()
		n.forget = false
	}
	peers := n.peers.Current()
	// The filter lets a peer's packets in before the peer is told to send.
	errs = append(errs, n.filter(ctx, peers))
	n.unserved = map[string]string{}
	n.told = n.probes.ways(n.told, peers)
	if err := splitPeerErrors(n.device.Sync(ctx, n.lease, n.told), n.unserved); err != nil {
		errs = append(errs, err)
	} else {
		n.synced = now
		errs = append(errs, n.dropFormer(ctx))
		n.offErr = n.fixOffload()
	}
	// The rest can wait until packets have their way.
	n.known = track(n.known, peers, now)
	n.tellProbes(now)
	if n.unresolved {
		n.resolveErr = n.resolvers()
		n.unresolved = false
	}
	errs = append(errs, n.resolveErr, n.writeEnv(), subnet.KeepIdentity(config.StateDir, n.self.Identity))
	n.syncErr = errors.Join(errs...)
	n.trouble(errors.Join(n.upErr, n.syncErr))
	n.say()
	if n.syncErr == nil && !n.ready {
		n.ready = true
		info := n.device.Info()
		n.log.Info("network ready", "subnets", n.lease.Subnets, "device", info.Link, "mtu", info.MTU,
			"peers", len(peers), "took", time.Since(n.started).Round(time.Millisecond))
		n.notify("READY=1")
	}
	if n.ready && n.cfg.CNIInstall && !n.cniDone {
		n.cniDone = n.installCNI(ctx)
	}
}

// knownPeer is since when a lease is carried.
type knownPeer struct {
	key   string
	since time.Time
}

// track notes since when each peer is known. Both lists are in the order of
// keys: this runs on every change, among thousands.
func track(former []knownPeer, peers []*subnet.Lease, now time.Time) []knownPeer {
	known := make([]knownPeer, len(peers))
	for i, p := range peers {
		key := p.Key
		for len(former) > 0 && former[0].key < key {
			former = former[1:]
		}
		known[i] = knownPeer{key, now}
		if len(former) > 0 && former[0].key == key {
			known[i] = former[0]
		}
	}
	return known
}

// writeEnv keeps subnet.env as it should be.
func (n *network) writeEnv() error {
	want := subnet.Env{MTU: n.device.Info().MTU, IPMasq: n.cfg.IPMasq}
	for i, r := range n.opened.Ranges {
		if i < len(n.lease.Subnets) {
			want.Networks = append(want.Networks, r.Network)
			want.Subnets = append(want.Subnets, n.lease.Subnets[i])
		}
	}
	have, err := subnet.ReadEnv(n.cfg.SubnetFile)
	if err == nil && have.Equal(want) {
		return nil
	}
	if err := subnet.WriteEnv(n.cfg.SubnetFile, want); err != nil {
		return err
	}
	return nil
}

// letGo ends cleanly: traffic goes on.
func (n *network) letGo() error {
	n.notify("STOPPING=1")
	if n.device == nil {
		return nil
	}
	return n.device.Close()
}

// tell keeps systemd's status line current.
func (n *network) tell() {
	if n.waiting != "" {
		n.notify("STATUS=waiting for " + n.waiting)
	} else if n.ready {
		n.notify("STATUS=network ready")
	}
}

// wait notes what the network waits for; "" for nothing.
func (n *network) wait(what string) {
	if what != n.waiting {
		n.waiting, n.waitSince, n.waitLogged = what, time.Now(), false
	}
}

// sayWait logs once what the network waits for, and why if the keeper knows.
func (n *network) sayWait() {
	if n.waiting == "" || n.waitLogged {
		return
	}
	n.waitLogged = true
	if n.keepErr != nil {
		n.log.Info("waiting", "for", n.waiting, "error", n.keepErr)
		return
	}
	n.log.Info("waiting", "for", n.waiting)
}

// trouble logs an error when it begins, changes and ends.
func (n *network) trouble(err error) {
	switch {
	case !store.Turned(&n.lastTrouble, err):
	case err != nil:
		n.log.Error("network not as it should be, trying again", "error", err)
	default:
		n.log.Info("network as it should be again")
	}
}

// logProblems logs records that are newly skipped.
func (n *network) logProblems(v subnet.View) {
	was := map[string]bool{}
	for _, p := range n.view.Problems {
		was[p.Error()] = true
	}
	for _, p := range v.Problems {
		if !was[p.Error()] {
			n.log.Warn("record in etcd skipped", "error", p)
		}
	}
	if v.ConfigErr != nil && len(v.Config.Ranges) > 0 && (n.view.ConfigErr == nil || n.view.ConfigErr.Error() != v.ConfigErr.Error()) {
		n.log.Warn("new configuration not used, the former one stays", "error", v.ConfigErr)
	}
}
