package routed

import (
	"context"
	"fmt"
	"iter"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
)

// what is a set of kernel objects of a side.
type what uint8

const (
	fdbEntry what = 1 << iota
	neighbour
	route
)

func (k what) String() string {
	switch k {
	case fdbEntry:
		return "forwarding entry"
	case neighbour:
		return "neighbour"
	default:
		return "route"
	}
}

// needs is everything that a side in the tunnel needs.
func (d *Device[D]) needs() what {
	if d.kind.Layer2 != nil {
		return fdbEntry | neighbour | route
	}
	return route
}

// route is the route that a side must have.
func (d *Device[D]) route(t *table[D], s *Side[D]) link.Route {
	var r link.Route
	switch {
	case s.direct:
		r = plainRoute(t.Tunnel, s)
	case d.kind.Route != nil:
		r = d.kind.Route(t.Tunnel, s)
	}
	if r.Link == 0 {
		r.Link = t.Index
	}
	r.Dst, r.Metric, r.Protocol = s.Subnet, metric(t.Range, s.Subnet.Addr()), link.Protocol
	return r
}

// plainRoute leads to a side without the tunnel.
func plainRoute[D comparable](t *Tunnel, s *Side[D]) link.Route {
	return link.Route{Via: s.Public, Link: t.Underlay}
}

// layer2 are the entries of a side.
func (d *Device[D]) layer2(t *table[D], s *Side[D]) (link.FDB, link.Neighbour) {
	f, n := d.kind.Layer2(t.Tunnel, s)
	f.Link, f.Permanent, n.Link, n.Permanent = t.Index, true, t.Index, true
	return f, n
}

// writer is one Sync's work: what is no longer wanted, and what became of the
// rest.
type writer[D comparable] struct {
	d *Device[D]
	b *link.Batch

	early      []link.Route // to be gone before others are set
	routes     []link.Route
	neighbours []link.Neighbour
	fdbs       []link.FDB

	refs []ref[D] // of the batch's changes, in order
	errs []error  // peers that the kernel refused
	left []error  // what could not be removed or repaired
}

// ref says what a change of the batch is for; peer is nil for removals.
type ref[D comparable] struct {
	peer *peer[D]
	side uint8
	what what
}

// refused takes the kernel's answer.
func (w *writer[D]) refused(i int, err error) {
	r := w.refs[i]
	if r.peer == nil {
		w.left = append(w.left, w.d.wrap(fmt.Errorf("remove %s: %w", r.what, err)))
		return
	}
	s := &r.peer.sides[r.side]
	s.has &^= r.what
	err = fmt.Errorf("set %s of %s: %w", r.what, s.Subnet, err)
	w.errs = append(w.errs, &backend.PeerError{Peer: r.peer.lease, Served: w.d.serves(r.peer), Err: err})
}

// inherit lets changed peers have what their former selves had, and marks the
// rest for removal, as well as what belongs to peers that are served no more.
func (w *writer[D]) inherit(changes []change[D], touched []*peer[D]) {
	for _, p := range touched {
		for i, t := range w.d.tables {
			if s := &p.sides[i]; !s.serve && s.has != 0 {
				w.drop(t, s)
			}
		}
	}
	for _, c := range changes {
		for i, t := range w.d.tables {
			if c.old == nil {
				break
			}
			was := c.old.sides[i]
			if c.new != nil {
				is := &c.new.sides[i]
				if is.near && w.d.kind.Direct == ByWay && c.new.way == backend.WayUnknown {
					is.direct = was.direct
				}
				was.has &^= w.pass(t, &was, is)
			}
			w.drop(t, &was)
		}
	}
}

// pass moves to a new side what is equal in both, and returns it.
func (w *writer[D]) pass(t *table[D], was, is *Side[D]) (moved what) {
	if !is.serve || !w.d.reached(is) {
		return 0
	}
	if !is.direct && w.d.kind.Layer2 != nil && was.has&(fdbEntry|neighbour) != 0 {
		f, n := w.d.layer2(t, is)
		oldF, oldN := w.d.layer2(t, was)
		if f == oldF {
			moved |= fdbEntry
		}
		if n == oldN {
			moved |= neighbour
		}
	}
	if w.d.route(t, is) == w.d.route(t, was) {
		moved |= route
	}
	moved &= was.has
	is.has |= moved
	return moved
}

// drop marks for removal what the kernel has of a side, except what another
// peer's setting replaces.
func (w *writer[D]) drop(t *table[D], s *Side[D]) {
	heir := t.tunnelled(t.subnets[s.Subnet.Addr()])
	if s.has&route != 0 {
		owner := t.served(t.subnets[s.Subnet.Addr()])
		switch r := w.d.route(t, s); {
		case owner != nil && owner.Subnet == s.Subnet && w.d.reached(owner):
			if inTheWay(r, w.d.route(t, owner)) {
				w.early = append(w.early, r)
			}
		default:
			w.routes = append(w.routes, r)
		}
	}
	if s.has&(fdbEntry|neighbour) != 0 {
		f, n := w.d.layer2(t, s)
		if s.has&neighbour != 0 && heir == nil {
			w.neighbours = append(w.neighbours, n)
		}
		if s.has&fdbEntry != 0 && t.tunnelled(t.data[s.Data]) == nil {
			w.fdbs = append(w.fdbs, f)
		}
	}
	s.has = 0
}

// inTheWay tells whether a route must go before another takes its place, for a
// moment without any: IPv6 refuses a gateway, even an onlink one, that another
// link's route leads to, and there it is inside the subnet itself.
func inTheWay(is, want link.Route) bool {
	return is.Link != want.Link && want.Via.Is6() && want.Dst.Contains(want.Via)
}

// served is p's side of this tunnel; nil if it is not served.
func (t *table[D]) served(p *peer[D]) *Side[D] {
	if p == nil {
		return nil
	}
	return &p.sides[t.At]
}

// tunnelled is served, and nil also for a side that bypasses the tunnel.
func (t *table[D]) tunnelled(p *peer[D]) *Side[D] {
	if s := t.served(p); s != nil && !s.direct {
		return s
	}
	return nil
}

// tell lets the driver make what it needs for those that are served.
func (w *writer[D]) tell(ctx context.Context) {
	if w.d.kind.Peers == nil {
		return
	}
	for i, t := range w.d.tables {
		if t.err != nil {
			continue
		}
		served := func(yield func(*Side[D]) bool) {
			for _, p := range w.d.peers {
				if s := &p.sides[i]; s.serve && !s.direct && !yield(s) {
					return
				}
			}
		}
		if err := w.d.kind.Peers(ctx, t.Tunnel, iter.Seq[*Side[D]](served)); err != nil {
			w.left = append(w.left, w.d.wrap(err))
		}
	}
}

// apply sets what is missing of the peers, then removes what is marked. A
// packet finds the neighbour and the forwarding entry before the route, and no
// route once they are gone.
func (w *writer[D]) apply(peers []*peer[D]) error {
	before := w.d.needs() &^ route
	if before != 0 {
		w.eachServed(peers, func(p *peer[D], i int, t *table[D], s *Side[D]) {
			if s.direct || s.has&before == before {
				return
			}
			f, n := w.d.layer2(t, s)
			if s.has&fdbEntry == 0 {
				w.note(p, i, fdbEntry)
				w.b.SetFDB(f)
			}
			if s.has&neighbour == 0 {
				w.note(p, i, neighbour)
				w.b.SetNeighbour(n)
			}
		})
		if err := w.b.Flush(); err != nil { // refusals are known now
			return err
		}
	}
	for _, r := range w.early {
		w.note(nil, 0, route)
		w.b.DelRoute(r)
	}
	w.eachServed(peers, func(p *peer[D], i int, t *table[D], s *Side[D]) {
		if s.has&route == 0 && (s.direct || s.has&before == before) {
			w.note(p, i, route)
			w.b.SetRoute(w.d.route(t, s))
		}
	})
	for _, r := range w.routes {
		w.note(nil, 0, route)
		w.b.DelRoute(r)
	}
	for _, n := range w.neighbours {
		w.note(nil, 0, neighbour)
		w.b.DelNeighbour(n)
	}
	for _, f := range w.fdbs {
		w.note(nil, 0, fdbEntry)
		w.b.DelFDB(f)
	}
	return w.b.Flush()
}

func (w *writer[D]) eachServed(peers []*peer[D], f func(p *peer[D], i int, t *table[D], s *Side[D])) {
	for _, p := range peers {
		for i, t := range w.d.tables {
			if s := &p.sides[i]; s.serve && w.d.reached(s) && t.err == nil {
				f(p, i, t, s)
			}
		}
	}
}

// note says what the change about to be added is for, and believes in it
// until it is refused.
func (w *writer[D]) note(p *peer[D], side int, k what) {
	w.refs = append(w.refs, ref[D]{p, uint8(side), k})
	if p != nil {
		p.sides[side].has |= k
	}
}
