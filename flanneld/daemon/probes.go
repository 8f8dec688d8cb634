package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/probe"
	"github.com/flanneld/flanneld/subnet"
)

// probes is what is known of the ways to the peers, and the lines to the
// prober. All but run belongs to the network's goroutine.
type probes struct {
	log     *slog.Logger
	states  latest[probe.State]
	results chan probe.Result
	listens latest[listening]

	list []*probed // by key
	// turned are the ways that changed since ways was called, by key.
	turned map[string]backend.Way
	said   probe.State
	told   time.Time
	epoch  int
	port   uint16 // of this host's responder
	lines  int    // logged in this minute
	since  time.Time
	alone  string // no peer answers: what to say about it
}

// probed is a peer and what is known of the way to it.
type probed struct {
	lease  *subnet.Lease
	facts  facts
	peer   *probe.Peer
	result probe.Result
	way    backend.Way
}

// listening is what the prober tells of its responder.
type listening struct {
	port uint16
	err  error
}

func newProbes(log *slog.Logger) *probes {
	return &probes{log: log, turned: map[string]backend.Way{}, states: newLatest[probe.State](), results: make(chan probe.Result), listens: newLatest[listening]()}
}

// run is the prober's goroutine.
func (p *probes) run(ctx context.Context) error {
	return probe.New(probe.Options{
		Result: func(r probe.Result) {
			select {
			case p.results <- r:
			case <-ctx.Done():
			}
		},
		Listening: func(port uint16, err error) { p.listens.put(listening{port, err}) },
	}).Run(ctx, p.states)
}

// listening takes the news of this host's responder.
func (p *probes) listening(l listening) {
	if p.port = l.port; l.err != nil {
		p.log.Warn("peers cannot probe TCP to this host", "error", l.err)
	}
}

// few peers may be told of at every change, many at most once a second.
const few = 200

// tellProbes tells the prober whom to probe, if that is something new.
func (n *network) tellProbes(now time.Time) {
	p := n.probes
	peers := n.peers.Current()
	if len(peers) > few && now.Sub(p.told) < time.Second {
		return // the next beat is near
	}
	p.told = now
	s := n.probeState()
	changed := false
	if len(s.Own) > 0 {
		// After an outage of etcd everybody looks dead for a moment.
		sure := n.storeErr == nil && now.Sub(n.storeTurn) > 2*subnet.HostTTL
		changed = p.update(peers, s.Plain, func(l *subnet.Lease) (facts, bool) { return n.factsOf(l, sure) })
	} else if len(p.list) > 0 { // no data path of ours: nothing to probe
		changed = p.update(nil, s.Plain, nil)
	}
	if !changed && reflect.DeepEqual(s, p.said) {
		return
	}
	p.said = s
	for _, x := range p.list {
		s.Peers = append(s.Peers, x.peer)
	}
	p.states.put(s)
}

// probeState is what to tell the prober, but for the peers.
func (n *network) probeState() probe.State {
	info := n.device.Info()
	s := probe.State{
		MTU:        info.MTU,
		Overhead:   n.underlay.MTU - info.MTU,
		Underlay:   probe.Underlay{Link: n.underlay.Link, Index: n.underlay.Index, Addrs: n.underlay.Addrs},
		Tunnel:     probe.Tunnel{Name: tunnelName(n.opened.Backend.Type), Protocol: info.Protocol, Ports: info.Ports},
		FixOffload: n.cfg.FixOffload,
		Plain:      offersPlain(info),
		Epoch:      n.probes.epoch,
	}
	if asked := askedMTU(n.opened.Backend.Raw); asked > 0 {
		s.Overhead = min(asked, n.underlay.MTU) - info.MTU
	}
	if len(links(info)) > 0 {
		for _, own := range n.lease.Subnets {
			s.Own = append(s.Own, own.Addr())
		}
	}
	return s
}

// offersPlain: packets may come without the tunnel that there is.
func offersPlain(i backend.Info) bool { return i.Plain && i.Protocol != 0 }

// tunnelName is how people write a backend's name.
func tunnelName(backend string) string {
	if backend == "wireguard" {
		return "WireGuard"
	}
	return strings.ToUpper(backend)
}

// askedMTU is the option "MTU" of the configuration's Backend, which means
// that of the underlay for every driver; 0: none.
func askedMTU(raw json.RawMessage) int {
	var o struct{ MTU int } // in whatever case
	if json.Unmarshal(raw, &o) != nil {
		return 0
	}
	return o.MTU
}

// facts are what may change about a peer without its lease.
type facts struct {
	service     uint16
	plain, down bool
}

// factsOf says what the prober is to know of a lease's holder; false: it is
// not to be probed. sure: who has no record under hosts/ is down.
func (n *network) factsOf(l *subnet.Lease, sure bool) (facts, bool) {
	switch {
	case len(n.unserved) > 0 && n.unserved[l.Key] != "":
		return facts{}, false // said already
	case l.Identity == "":
		// flannel's host-gw has no address that could answer.
		return facts{}, l.Type != "host-gw"
	}
	h, ok := n.view.Live(l)
	return facts{service: h.Probe, plain: h.Plain, down: !ok && sure}, true
}

// probePeer is a lease as the prober knows it.
func probePeer(l *subnet.Lease, f facts) *probe.Peer {
	out := &probe.Peer{Key: l.Key, Name: l.Node, Public: l.PublicIPs, Service: f.service, Plain: f.plain, Down: f.down}
	if out.Name == "" && len(l.PublicIPs) > 0 {
		out.Name = l.PublicIPs[0].String()
	}
	for _, s := range l.Subnets {
		out.Addrs = append(out.Addrs, s.Addr())
	}
	return out
}

// update makes the list that of these leases, which are sorted by key, and
// says whether the prober is to know. Where nothing changes it costs a few
// comparisons for each.
func (p *probes) update(leases []*subnet.Lease, own bool, factsOf func(*subnet.Lease) (facts, bool)) (changed bool) {
	old := p.list
	p.list = make([]*probed, 0, len(leases))
	for _, l := range leases {
		for len(old) > 0 && old[0].lease.Key < l.Key {
			p.turn(old[0], backend.WayUnknown)
			old, changed = old[1:], true
		}
		f, ok := factsOf(l)
		if !ok {
			continue
		}
		var x *probed
		if len(old) > 0 && old[0].lease.Key == l.Key {
			x, old = old[0], old[1:]
		} else {
			x = &probed{}
		}
		if x.lease != l || x.facts != f {
			x.lease, x.facts = l, f
			if peer := probePeer(l, f); x.peer == nil || !reflect.DeepEqual(x.peer, peer) {
				x.peer, changed = peer, true
			}
		}
		p.turn(x, probe.Way(own, x.peer, x.result.Plain()))
		p.list = append(p.list, x)
	}
	for _, x := range old {
		p.turn(x, backend.WayUnknown)
	}
	return changed || len(old) > 0
}

func (p *probes) find(key string) (int, bool) {
	return slices.BinarySearchFunc(p.list, key, func(x *probed, key string) int { return strings.Compare(x.lease.Key, key) })
}

// of returns what is known of a lease, nil if it is not probed.
func (p *probes) of(key string) *probed {
	i, ok := p.find(key)
	if !ok {
		return nil
	}
	return p.list[i]
}

// take takes a result and says whether packets are to go another way now.
func (p *probes) take(r probe.Result, now time.Time) (moved bool) {
	x := p.of(r.Key)
	if x == nil {
		return false // gone meanwhile
	}
	was, is := x.result.Worst(), r.Worst()
	x.result = r
	if was.Verdict != is.Verdict && (was.Verdict.Bad() || is.Verdict.Bad()) {
		if !p.tellAlone() {
			p.tell(r.Name, is, now)
		}
	}
	way := probe.Way(p.said.Plain, x.peer, r.Plain())
	moved = way != x.way
	switch {
	case !moved:
	case way == backend.WayPlain && x.way == backend.WayUnknown: // nothing per peer at the start
		p.log.Debug("host is reached without the tunnel", "peer", r.Name)
	case way == backend.WayPlain && p.mayLog(now):
		p.log.Info("host is reached without the tunnel", "peer", r.Name)
	case x.way == backend.WayPlain && p.mayLog(now):
		p.log.Info("host is reached through the tunnel again", "peer", r.Name, "reason", plainReason(r.Plain()))
	}
	p.turn(x, way)
	return moved
}

// plainReason says why a peer is not reached without the tunnel.
func plainReason(p probe.Plain) string {
	if p == probe.PlainElsewhere {
		return "it is no longer on the same link"
	}
	return "packets without it do not arrive"
}

// mayLog bounds the lines about peers: where all are gone at once the first
// few say it.
func (p *probes) mayLog(now time.Time) bool {
	const most, within = 10, time.Minute
	if now.Sub(p.since) > within {
		p.since, p.lines = now, 0
	}
	if p.lines++; p.lines == most {
		p.log.Warn("the ways to more peers have changed: see flanneld status")
	}
	return p.lines < most
}

// tellAlone logs once that no peer answers, and says whether that is so: then
// there is nothing to say about single ones.
func (p *probes) tellAlone() bool {
	_, why := probe.Alone(p.said, p.seen())
	if why != "" && why != p.alone {
		p.log.Warn("no peer answers", "problem", why)
	}
	p.alone = why
	return why != ""
}

// seen yields what is known of each peer.
func (p *probes) seen() iter.Seq[probe.Result] {
	return func(yield func(probe.Result) bool) {
		for _, x := range p.list {
			r := x.result
			if len(r.Paths) == 0 { // not looked at yet
				for _, a := range x.peer.Addrs {
					r.Paths = append(r.Paths, probe.Path{Addr: a, Verdict: probe.Unknown})
				}
			}
			if !yield(r) {
				return
			}
		}
	}
}

// tell logs a change for better or worse.
func (p *probes) tell(name string, is probe.Path, now time.Time) {
	switch {
	case !p.mayLog(now):
	case is.Verdict.Bad():
		p.log.Warn("tunnel to a peer does not work as it should", "peer", name, "problem", is.Message)
	default:
		p.log.Info("tunnel to a peer is no longer in trouble", "peer", name, "verdict", is.Verdict, "rtt", is.RTT)
	}
}

// problems are the messages for people, the first few of them. Where no peer
// answers one says it for all.
func (p *probes) problems() []string {
	const most = 3
	var out []string
	alone, why := probe.Alone(p.said, p.seen())
	if why != "" {
		out = append(out, why)
	}
	bad := 0
	for _, x := range p.list {
		r := probe.Result{Paths: slices.DeleteFunc(slices.Clone(x.result.Paths), func(w probe.Path) bool {
			return w.Verdict == probe.Unreachable && (w.Addr.Is4() && alone[0] || w.Addr.Is6() && alone[1])
		})}
		worst := r.Worst()
		if !worst.Verdict.Bad() {
			continue
		}
		if bad++; bad <= most {
			out = append(out, worst.Message)
		}
	}
	if bad > most {
		out = append(out, fmt.Sprintf("the tunnels to %d more peers do not work as they should either: flanneld status lists them", bad-most))
	}
	return out
}

// status is what the API tells of the ways to a peer.
func (x *probed) status() []api.Probe {
	if x == nil {
		return nil
	}
	var out []api.Probe
	for _, w := range x.result.Paths {
		out = append(out, api.Probe{
			Addr: w.Addr, Verdict: string(w.Verdict), Message: w.Message, RTT: w.RTT, MTU: w.MTU,
			TCP: string(w.TCP), Plain: string(w.Plain), Looked: w.At,
		})
	}
	return out
}
