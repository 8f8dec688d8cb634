package routed

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// read compares the kernel with the peers: it finds out what they have, and
// marks the rest for removal if it is ours to remove.
func (w *writer[D]) read() error {
	for _, p := range w.d.peers {
		p.sides[0].has, p.sides[1].has = 0, 0
	}
	if !slices.ContainsFunc(w.d.tables, func(t *table[D]) bool { return t.err == nil }) {
		return nil
	}
	w.d.locate(w.d.peers)
	beside, err := w.besides()
	if err != nil {
		return err
	}
	for _, t := range w.d.tables {
		if t.err != nil {
			continue
		}
		var routes []link.Route
		if t.Index != 0 {
			if routes, err = w.d.h.Routes(link.RouteFilter{Link: t.Index}); err != nil {
				return err
			}
		}
		for _, r := range slices.Concat(routes, beside) {
			if r.Dst.Addr().Is4() == t.Is4() || r.Link == t.Index && !w.shared(t) {
				w.foundRoute(t, r)
			}
		}
		if w.d.kind.Layer2 == nil {
			continue
		}
		neighbours, err := w.d.h.Neighbours(t.Index)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			w.foundNeighbour(t, n)
		}
		fdbs, err := w.d.h.FDBs(t.Index)
		if err != nil {
			return err
		}
		w.foundFDBs(t, fdbs)
	}
	return nil
}

// shared tells whether the other family has the same device.
func (w *writer[D]) shared(t *table[D]) bool {
	return slices.ContainsFunc(w.d.tables, func(o *table[D]) bool { return o != t && o.Index == t.Index })
}

// besides lists the routes of ours that are not on a tunnel's device: those on
// the underlay, and those anywhere else the first time, when an earlier daemon
// may have left them, and where a driver has more interfaces.
func (w *writer[D]) besides() ([]link.Route, error) {
	f := link.RouteFilter{Link: w.d.underlay.Index, Protocol: link.Protocol}
	if w.d.first || w.d.kind.Scattered {
		f.Link = 0
	}
	routes, err := w.d.h.Routes(f)
	return slices.DeleteFunc(routes, func(r link.Route) bool {
		return slices.ContainsFunc(w.d.tables, func(t *table[D]) bool { return t.Index == r.Link && t.err == nil })
	}), err
}

func (w *writer[D]) foundRoute(t *table[D], r link.Route) {
	n := t.Range.Network
	inside := r.Dst.Bits() >= n.Bits() && n.Contains(r.Dst.Addr())
	automatic := r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA
	ours := r.Protocol == link.Protocol && (inside || r.Link == t.Index && !t.Shared)
	if !ours && (automatic || !inside) {
		return
	}
	s := t.served(t.subnets[r.Dst.Addr()])
	if s == nil || s.Subnet != r.Dst || !w.keeps(t, s, r) {
		w.routes = append(w.routes, r)
		return
	}
	switch want := w.d.route(t, s); {
	case r == want:
		s.has |= route
	case inTheWay(r, want):
		w.early = append(w.early, r)
	case r.Metric != want.Metric:
		w.routes = append(w.routes, r)
	} // else setting ours replaces it
}

// keeps tells whether a side is reached at all; while nobody knows which way
// is right, the one that the route takes goes on.
func (w *writer[D]) keeps(t *table[D], s *Side[D], r link.Route) bool {
	if w.d.kind.Direct == ByWay && s.near && !s.direct && t.subnets[s.Subnet.Addr()].way == backend.WayUnknown {
		s.direct = true
		if w.d.route(t, s) != r {
			s.direct = false
		}
	}
	return w.d.reached(s)
}

func (w *writer[D]) foundNeighbour(t *table[D], n link.Neighbour) {
	if !n.Permanent {
		return // the kernel's own business, or about to be replaced
	}
	s := t.tunnelled(t.subnets[n.Addr])
	if s == nil {
		w.neighbours = append(w.neighbours, n)
		return
	}
	if _, want := w.d.layer2(t, s); n == want {
		s.has |= neighbour
	}
}

func (w *writer[D]) foundFDBs(t *table[D], found []link.FDB) {
	want := make(map[link.FDB]*Side[D], len(found))
	for _, p := range w.d.peers {
		if s := &p.sides[t.At]; s.serve && !s.direct {
			f, _ := w.d.layer2(t, s)
			want[f] = s
		}
	}
	for _, f := range found {
		if s := want[f]; s != nil {
			s.has |= fdbEntry
		} else {
			w.fdbs = append(w.fdbs, f)
		}
	}
}

// metric is the route metric of a peer's subnet: its number within the network
// plus one. The kernel's table of next hops hashes the metric but not the
// gateway: with equal metrics all peers would share one chain.
func metric(r subnet.Range, s netip.Addr) uint32 {
	raw := s.As16()
	hi, lo := binary.BigEndian.Uint64(raw[:8]), binary.BigEndian.Uint64(raw[8:])
	down := s.BitLen() - r.SubnetLen
	switch {
	case down >= 64:
		hi, lo = 0, hi>>(down-64)
	case down > 0:
		lo = lo>>down | hi<<(64-down)
		hi >>= down
	}
	if width := r.SubnetLen - r.Network.Bits(); width < 64 {
		hi, lo = 0, lo&(1<<width-1)
	}
	n := lo ^ hi
	for n >= 1<<31 {
		n = n>>31 ^ n&(1<<31-1)
	}
	return uint32(n) + 1
}
