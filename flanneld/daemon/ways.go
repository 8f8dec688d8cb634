package daemon

import (
	"slices"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// ways makes told, what it returned last, the peers with the way that is known
// to work.
func (p *probes) ways(told []backend.Peer, leases []*subnet.Lease) []backend.Peer {
	if len(p.turned) > few {
		told = told[:0]
	}
	for key, way := range p.turned {
		i, ok := slices.BinarySearchFunc(told, key, func(x backend.Peer, key string) int { return strings.Compare(x.Lease.Key, key) })
		if ok {
			told[i].Way = way
		}
	}
	clear(p.turned)
	front, back := store.Unchanged(told, leases, func(a *backend.Peer, b **subnet.Lease) bool { return a.Lease == *b })
	var changed []backend.Peer
	var list []*probed
	for i, l := range leases[front : len(leases)-back] {
		if i == 0 {
			at, _ := p.find(l.Key)
			list = p.list[at:]
		}
		for len(list) > 0 && list[0].lease.Key < l.Key {
			list = list[1:]
		}
		way := backend.WayUnknown
		if len(list) > 0 && list[0].lease.Key == l.Key {
			way = list[0].way
		}
		changed = append(changed, backend.Peer{Lease: l, Way: way})
	}
	return slices.Replace(told, front, len(told)-back, changed...)
}

// turn makes way that to a peer.
func (p *probes) turn(x *probed, way backend.Way) {
	if way != x.way {
		x.way, p.turned[x.lease.Key] = way, way
	}
}
