package subnet

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/store"
)

// EpochGrace is how long leases that vanished with an epoch of the store stay
// in the data path: the time in which everybody registers again.
const EpochGrace = 60 * time.Second

// Peers decides which leases the data path carries. The zero value is ready.
// It belongs to one goroutine.
type Peers struct {
	seen    bool
	epoch   store.Epoch
	current []*Lease
	// view is what Update saw last, mine are those of it that were own's.
	view, mine []*Lease
	own        Lease
	// kept are the leases of a former epoch that are still carried, by key.
	kept map[string]keptLease
}

type keptLease struct {
	lease *Lease
	until time.Time
}

// Current is what Update returned last.
func (p *Peers) Current() []*Lease { return p.current }

// Update returns the leases to carry, in the order of their keys: all in v
// but own, and for EpochGrace those that vanished together with the former
// epoch, unless somebody else has their place or their holder another. It is
// to be called again at recheck (zero: no need). While the store cannot be
// reached it is not to be called, so that nothing is withdrawn. The slice is
// valid until the next call: thousands of leases change one at a time.
func (p *Peers) Update(v View, own Lease, now time.Time) (peers []*Lease, recheck time.Time) {
	if p.seen && p.epoch != v.Epoch {
		p.keep(now.Add(EpochGrace))
	}
	p.seen, p.epoch = true, v.Epoch
	p.recognise(v.Leases, own)
	peers = slices.Grow(p.current[:0], len(v.Leases)+len(p.kept))
	for _, l := range v.Leases {
		if !slices.Contains(p.mine, l) {
			peers = append(peers, l)
		}
	}
	if len(p.kept) > 0 {
		recheck = p.drop(v, own, now)
		for _, k := range p.kept {
			peers = append(peers, k.lease)
		}
		slices.SortFunc(peers, func(a, b *Lease) int { return strings.Compare(a.Key, b.Key) })
	}
	p.current = peers
	return peers, recheck
}

// recognise makes mine those of leases that are own's. Only at those that
// changed is looked again: their contents are all over the memory.
func (p *Peers) recognise(leases []*Lease, own Lease) {
	if own.Key != p.own.Key || !slices.Equal(own.PublicIPs, p.own.PublicIPs) || !slices.Equal(own.Subnets, p.own.Subnets) {
		p.view, p.mine, p.own = nil, nil, own
	}
	front, back := store.Unchanged(p.view, leases, func(a, b **Lease) bool { return *a == *b })
	for _, l := range leases[front : len(leases)-back] {
		if ownLease(l, &p.own) && !slices.Contains(p.mine, l) {
			p.mine = append(p.mine, l)
		}
	}
	if gone := p.view[front : len(p.view)-back]; len(gone) > 0 && len(p.mine) > 0 {
		p.mine = slices.DeleteFunc(p.mine, func(l *Lease) bool { return slices.Contains(gone, l) && !slices.Contains(leases, l) })
	}
	p.view = leases
}

// keep remembers everything that is carried now.
func (p *Peers) keep(until time.Time) {
	p.kept = make(map[string]keptLease, len(p.current))
	for _, l := range p.current {
		p.kept[l.Key] = keptLease{l, until}
	}
}

// drop forgets what is not to be kept any longer and returns when to look
// again.
func (p *Peers) drop(v View, own Lease, now time.Time) (recheck time.Time) {
	present := newOccupied(append(slices.Clip(v.Leases), &own))
	for key, k := range p.kept {
		if !now.Before(k.until) || present.excludes(k.lease) {
			delete(p.kept, key)
			continue
		}
		if recheck.IsZero() || k.until.Before(recheck) {
			recheck = k.until
		}
	}
	return recheck
}

// ownLease says whether l is this host's: a tunnel to oneself leads nowhere.
func ownLease(l, own *Lease) bool {
	return l.Key == own.Key || sharesAddress(l.PublicIPs, own.PublicIPs) || overlapsAny(l.Subnets, own.Subnets)
}

func sharesAddress(a, b []netip.Addr) bool {
	for _, x := range a {
		if slices.Contains(b, x) {
			return true
		}
	}
	return false
}

func overlapsAny(a, b []netip.Prefix) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				return true
			}
		}
	}
	return false
}

// occupied answers whether a lease has lost its place to those present.
type occupied struct {
	subnets []netip.Prefix // in order, disjoint
	holders map[string]bool
}

func newOccupied(leases []*Lease) occupied {
	o := occupied{holders: make(map[string]bool, 2*len(leases))}
	for i := range leases {
		o.subnets = append(o.subnets, leases[i].Subnets...)
		for _, name := range holders(leases[i]) {
			o.holders[name] = true
		}
	}
	slices.SortFunc(o.subnets, netip.Prefix.Compare)
	return o
}

// holders are the names by which the holder of l is known.
func holders(l *Lease) []string {
	names := make([]string, 0, 3)
	if l.Identity != "" {
		names = append(names, l.Identity)
	}
	for _, ip := range l.PublicIPs {
		names = append(names, ip.String())
	}
	return names
}

func (o occupied) excludes(l *Lease) bool {
	if slices.ContainsFunc(holders(l), func(name string) bool { return o.holders[name] }) {
		return true
	}
	for _, s := range l.Subnets {
		// Neighbours in a list of disjoint prefixes are all that can overlap.
		i, _ := slices.BinarySearchFunc(o.subnets, s, netip.Prefix.Compare)
		for _, j := range []int{i - 1, i} {
			if j >= 0 && j < len(o.subnets) && o.subnets[j].Overlaps(s) {
				return true
			}
		}
	}
	return false
}
