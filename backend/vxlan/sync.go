package vxlan

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Sync makes the kernel carry traffic to exactly these peers. See
// backend.Device. With nothing changed it neither writes nor reads; after
// changes it writes at most three objects for each changed peer and family.
func (d *Device) Sync(ctx context.Context, own subnet.Lease, peers []subnet.Lease) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Equal(d.own, own.Subnets) { // what is valid depends on it
		d.own, d.peers, d.unread = slices.Clone(own.Subnets), nil, true
		for _, t := range d.tunnels {
			t.reset()
		}
	}
	changes := d.update(peers)
	if !d.unread && !d.retry && changes == nil {
		return errors.Join(d.peerErrs...)
	}
	touched := d.claim(changes)
	d.peerErrs = d.report()
	if d.retry || d.unread {
		touched = d.peers
	}
	w := &writer{d: d}
	w.b = d.h.Batch(w.refused)
	known := !d.unread
	d.unread = true // until this ends well
	if known {
		d.bypass(touched)
		w.inherit(changes, touched)
	} else {
		if err := d.ensure(); err != nil {
			w.left = append(w.left, fmt.Errorf("vxlan: %w", err))
		}
		if err := w.read(); err != nil {
			return errors.Join(append([]error{fmt.Errorf("vxlan: %w", err)}, d.peerErrs...)...)
		}
	}
	if err := w.apply(touched); err != nil {
		return errors.Join(append([]error{fmt.Errorf("vxlan: %w", err)}, d.peerErrs...)...)
	}
	if len(w.left) == 0 && !d.swept { // not before traffic has its new way
		if err := d.sweep(); err != nil {
			w.left = append(w.left, fmt.Errorf("vxlan: remove a former configuration's device: %w", err))
		} else {
			d.swept = true
		}
	}
	d.unread, d.first, d.retry = len(w.left) > 0, false, len(w.errs) > 0
	return errors.Join(slices.Concat(d.peerErrs, w.errs, w.left)...)
}

// bypass decides which of the peers are reached without the tunnel.
func (d *Device) bypass(peers []*peer) {
	if !d.opts.DirectRouting {
		return
	}
	for _, p := range peers {
		for i := range d.tunnels {
			s := &p.sides[i]
			if !s.serve || s.has != 0 {
				continue
			}
			path, err := d.h.RouteTo(s.public)
			s.direct = err == nil && path.Link == d.underlay.Index && !path.Via.IsValid() && !path.Local
		}
	}
}

// route is the route that a side must have.
func (d *Device) route(t *tunnel, s *side) link.Route {
	r := link.Route{Dst: s.subnet, Via: s.subnet.Addr(), Link: t.index, OnLink: true, Metric: metric(t.rng, s.subnet.Addr()), Protocol: link.Protocol}
	if s.direct {
		r.Via, r.Link, r.OnLink = s.public, d.underlay.Index, false
	}
	return r
}

func (t *tunnel) fdb(s *side) link.FDB {
	return link.FDB{MAC: s.mac, Dst: s.public, Link: t.index, Permanent: true}
}

func (t *tunnel) neighbour(s *side) link.Neighbour {
	return link.Neighbour{Addr: s.subnet.Addr(), MAC: s.mac, Link: t.index, Permanent: true}
}

// writer is one Sync's work: what is no longer wanted, and what became of the
// rest.
type writer struct {
	d *Device
	b *link.Batch

	early      []link.Route // to be gone before others are set
	routes     []link.Route
	neighbours []link.Neighbour
	fdbs       []link.FDB

	refs []ref   // of the batch's changes, in order
	errs []error // peers that the kernel refused
	left []error // what could not be removed or repaired
}

// ref says what a change of the batch is for; peer is nil for removals.
type ref struct {
	peer *peer
	side uint8
	what what
}

// refused takes the kernel's answer.
func (w *writer) refused(i int, err error) {
	r := w.refs[i]
	if r.peer == nil {
		w.left = append(w.left, fmt.Errorf("vxlan: remove %s: %w", r.what, err))
		return
	}
	s := &r.peer.sides[r.side]
	s.has &^= r.what
	err = fmt.Errorf("set %s of %s: %w", r.what, s.subnet, err)
	w.errs = append(w.errs, &backend.PeerError{Peer: r.peer.lease, Served: w.d.serves(r.peer), Err: err})
}

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

// inherit lets changed peers have what their former selves had, and marks the
// rest for removal, as well as what belongs to peers that are served no more.
func (w *writer) inherit(changes []change, touched []*peer) {
	for _, p := range touched {
		for i, t := range w.d.tunnels {
			if s := &p.sides[i]; !s.serve && s.has != 0 {
				w.drop(t, s)
			}
		}
	}
	for _, c := range changes {
		for i, t := range w.d.tunnels {
			if c.old == nil {
				break
			}
			was := c.old.sides[i]
			if c.new != nil {
				is := &c.new.sides[i]
				was.has &^= w.pass(t, &was, is)
			}
			w.drop(t, &was)
		}
	}
}

// pass moves to a new side what is equal in both, and returns it.
func (w *writer) pass(t *tunnel, was, is *side) (moved what) {
	if !is.serve {
		return 0
	}
	if !is.direct && t.fdb(is) == t.fdb(was) {
		moved |= fdbEntry
	}
	if !is.direct && t.neighbour(is) == t.neighbour(was) {
		moved |= neighbour
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
func (w *writer) drop(t *tunnel, s *side) {
	heir := t.tunnelled(t.subnets[s.subnet.Addr()])
	if s.has&route != 0 {
		owner := t.served(t.subnets[s.subnet.Addr()])
		switch r := w.d.route(t, s); {
		case owner != nil && owner.subnet == s.subnet:
			if s.direct && !owner.direct && !t.v4() {
				w.early = append(w.early, r)
			}
		default:
			w.routes = append(w.routes, r)
		}
	}
	if s.has&neighbour != 0 && heir == nil {
		w.neighbours = append(w.neighbours, t.neighbour(s))
	}
	if s.has&fdbEntry != 0 && t.tunnelled(t.macs[s.mac]) == nil {
		w.fdbs = append(w.fdbs, t.fdb(s))
	}
	s.has = 0
}

// served is p's side of this tunnel; nil if it is not served.
func (t *tunnel) served(p *peer) *side {
	if p == nil {
		return nil
	}
	return &p.sides[t.at]
}

// tunnelled is served, and nil also for a side that bypasses the tunnel.
func (t *tunnel) tunnelled(p *peer) *side {
	if s := t.served(p); s != nil && !s.direct {
		return s
	}
	return nil
}

// apply sets what is missing of the peers, then removes what is marked. A
// packet finds the neighbour and the forwarding entry before the route, and no
// route once they are gone.
func (w *writer) apply(peers []*peer) error {
	w.eachServed(peers, func(p *peer, i int, t *tunnel, s *side) {
		if s.direct {
			return
		}
		if s.has&fdbEntry == 0 {
			w.note(p, i, fdbEntry)
			w.b.SetFDB(t.fdb(s))
		}
		if s.has&neighbour == 0 {
			w.note(p, i, neighbour)
			w.b.SetNeighbour(t.neighbour(s))
		}
	})
	if err := w.b.Flush(); err != nil { // refusals are known now
		return err
	}
	for _, r := range w.early {
		w.note(nil, 0, route)
		w.b.DelRoute(r)
	}
	w.eachServed(peers, func(p *peer, i int, t *tunnel, s *side) {
		if s.has&route == 0 && (s.direct || s.has == fdbEntry|neighbour) {
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

func (w *writer) eachServed(peers []*peer, f func(p *peer, i int, t *tunnel, s *side)) {
	for _, p := range peers {
		for i, t := range w.d.tunnels {
			if s := &p.sides[i]; s.serve && t.err == nil {
				f(p, i, t, s)
			}
		}
	}
}

// note says what the change about to be added is for, and believes in it
// until it is refused.
func (w *writer) note(p *peer, side int, k what) {
	w.refs = append(w.refs, ref{p, uint8(side), k})
	if p != nil {
		p.sides[side].has |= k
	}
}

// read compares the kernel with the peers: it finds out what they have, and
// marks the rest for removal if it is ours to remove.
func (w *writer) read() error {
	for _, p := range w.d.peers {
		p.sides[0].has, p.sides[1].has = 0, 0
	}
	if !slices.ContainsFunc(w.d.tunnels, func(t *tunnel) bool { return t.err == nil }) {
		return nil
	}
	w.d.bypass(w.d.peers)
	beside, err := w.besides()
	if err != nil {
		return err
	}
	for _, t := range w.d.tunnels {
		if t.err != nil {
			continue
		}
		routes, err := w.d.h.Routes(link.RouteFilter{Link: t.index})
		if err != nil {
			return err
		}
		for _, r := range routes {
			w.foundRoute(t, r)
		}
		for _, r := range beside {
			if r.Dst.Addr().Is4() == t.v4() {
				w.foundRoute(t, r)
			}
		}
		neighbours, err := w.d.h.Neighbours(t.index)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			w.foundNeighbour(t, n)
		}
		fdbs, err := w.d.h.FDBs(t.index)
		if err != nil {
			return err
		}
		for _, f := range fdbs {
			w.foundFDB(t, f)
		}
	}
	return nil
}

// besides lists the routes of ours that are not on a tunnel's device: those on
// the underlay, and the first time those that an earlier daemon left anywhere.
func (w *writer) besides() ([]link.Route, error) {
	f := link.RouteFilter{Link: w.d.underlay.Index, Protocol: link.Protocol}
	if w.d.first {
		f.Link = 0
	}
	routes, err := w.d.h.Routes(f)
	return slices.DeleteFunc(routes, func(r link.Route) bool {
		return slices.ContainsFunc(w.d.tunnels, func(t *tunnel) bool { return t.index == r.Link })
	}), err
}

func (w *writer) foundRoute(t *tunnel, r link.Route) {
	n := t.rng.Network
	inside := r.Dst.Bits() >= n.Bits() && n.Contains(r.Dst.Addr())
	automatic := r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA
	ours := r.Protocol == link.Protocol && (inside || r.Link == t.index)
	if !ours && (automatic || !inside) {
		return
	}
	s := t.served(t.subnets[r.Dst.Addr()])
	if s == nil || s.subnet != r.Dst {
		w.routes = append(w.routes, r)
		return
	}
	switch want := w.d.route(t, s); {
	case r == want:
		s.has |= route
	case r.Link != want.Link && !t.v4():
		// IPv6 refuses a gateway that another link's route leads to.
		w.early = append(w.early, r)
	case r.Metric != want.Metric:
		w.routes = append(w.routes, r)
	} // else setting ours replaces it
}

func (w *writer) foundNeighbour(t *tunnel, n link.Neighbour) {
	s := t.tunnelled(t.subnets[n.Addr])
	switch {
	case !n.Permanent: // the kernel's own business, or about to be replaced
	case s == nil:
		w.neighbours = append(w.neighbours, n)
	case n == t.neighbour(s):
		s.has |= neighbour
	}
}

func (w *writer) foundFDB(t *tunnel, f link.FDB) {
	if s := t.tunnelled(t.macs[f.MAC]); s != nil && f == t.fdb(s) {
		s.has |= fdbEntry
	} else {
		w.fdbs = append(w.fdbs, f)
	}
}
