package daemon

import (
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// publics are the public addresses of peers in their order. A peer that is
// there as before is not looked at.
type publics struct {
	peers []*subnet.Lease
	ends  []int // of each peer's in addrs
	addrs []netip.Addr
}

// of makes them those of peers. What it returns is valid until the next call.
func (p *publics) of(peers []*subnet.Lease) []netip.Addr {
	front, back := store.Unchanged(p.peers, peers, func(a, b **subnet.Lease) bool { return *a == *b })
	last := len(p.peers) - back // of what changed
	from, to := p.end(front), p.end(last)
	changed := peers[front : len(peers)-back]
	var addrs []netip.Addr
	ends := make([]int, 0, len(changed))
	for _, l := range changed {
		addrs = append(addrs, l.PublicIPs...)
		ends = append(ends, from+len(addrs))
	}
	for i := last; i < len(p.ends); i++ {
		p.ends[i] += from + len(addrs) - to
	}
	p.peers = slices.Replace(p.peers, front, last, changed...)
	p.ends = slices.Replace(p.ends, front, last, ends...)
	p.addrs = slices.Replace(p.addrs, from, to, addrs...)
	return p.addrs
}

// end is where the addresses of the first n peers end.
func (p *publics) end(n int) int {
	if n == 0 {
		return 0
	}
	return p.ends[n-1]
}
