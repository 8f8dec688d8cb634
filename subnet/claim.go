package subnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld/flanneld/store"
)

// What ends a Keeper, so that callers can branch.
var (
	// ErrTaken: the subnet that this host held is somebody else's now.
	ErrTaken = errors.New("the subnet is held by somebody else")
	// ErrClone: another live host has this host's identity. The cure is
	// NewIdentity, and beginning again.
	ErrClone = errors.New("another live host has the same identity")
)

// InUseError: what must be one host's alone is used by another live host.
type InUseError struct {
	What   string // "public address 192.168.77.13", …
	Mine   string // this host's name
	Other  string // the other's
	Remedy string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s of host %s is in use by the live host %s: %s", e.What, e.Mine, e.Other, e.Remedy)
}

// patience is how long a host that seems alive is given to turn out dead: the
// record of a killed daemon outlives it by a TTL, and the store may be late.
const patience = HostTTL + 2*time.Second

type verdict int

const (
	wait  verdict = iota // until something changes, or at the latest until
	keep                 // the store says the right thing: see that lease lives
	write                // commit
	fail                 // end with err
)

// decision is what a Keeper is to do next about its lease or its record.
type decision struct {
	verdict verdict
	lease   Lease        // keep, write: what to hold. Key and Session as in the store; Session 0 with bound: a new one
	bound   bool         // to a session; else it is a reservation without end
	cond    []store.Cond // write
	drop    []string     // write: keys to delete
	until   time.Time    // wait: zero for no time
	err     error        // fail; wait, write: what to tell meanwhile, nil for nothing
	confirm store.KV     // fail: only if this key still is at this revision
}

// waits remembers since when the things that a decision waits for are there.
// Things that one decision did not ask for are forgotten.
type waits struct{ since, asked map[string]time.Time }

func (w *waits) begin() { w.asked = map[string]time.Time{} }
func (w *waits) end()   { w.since = w.asked }

// first returns when thing was first asked for, in a row and since the
// connection that shows it began.
func (w *waits) first(thing string, v View, now time.Time) time.Time {
	t, ok := w.since[thing]
	if !ok {
		t = now
	}
	if t.Before(v.Fresh) {
		t = v.Fresh
	}
	w.asked[thing] = t
	return t
}

// claimant decides about the lease: pure, given what a Keeper knows.
type claimant struct {
	prefix string
	node   string // name under which the host is registered
	rnd    *rand.Rand
	waits  *waits
	held   Lease       // zero before the first
	epoch  store.Epoch // that held was written in
	// past is every subnet held so far, newest first, and what was held before
	// this process: containers may still run on them, so that a configuration
	// that is changed back gives them back where they are free.
	past []netip.Prefix
}

// remember makes l what is held. s is what was said when it was written.
func (c *claimant) remember(l Lease, epoch store.Epoch, s Self) {
	if c.held.Key == "" {
		c.past = s.Previous
	}
	if c.held.Key != l.Key {
		all, _ := ParseKey(c.prefix, l.Key)
		for _, p := range c.past {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
		c.past = all
	}
	c.held, c.epoch = l, epoch
}

// relation is what a lease is to this host.
type relation int

const (
	foreign  relation = iota
	mine              // my identity, my address
	unmarked          // my address, no identity: flannel ran here
	former            // my address, another identity: I before a reboot, or somebody
	moved             // my identity, another address: I before a move, or a clone
)

func relate(l *Lease, s Self) relation {
	switch here := sharesAddress(l.PublicIPs, s.Host.PublicIPs); {
	case here && l.Identity == s.Host.Identity:
		return mine
	case here && l.Identity == "":
		return unmarked
	case here:
		return former
	case l.Identity != "" && l.Identity == s.Host.Identity:
		return moved
	}
	return foreign
}

// decide is the whole of rules by which a host takes and keeps its lease.
func (c *claimant) decide(v View, s Self, now time.Time) decision {
	c.waits.begin()
	defer c.waits.end()
	if len(v.Config.Ranges) == 0 {
		return decision{} // the daemon says what is wrong with it
	}
	for _, r := range v.Config.Ranges {
		if !slices.ContainsFunc(s.Host.PublicIPs, func(ip netip.Addr) bool { return ip.Is6() == r.Network.Addr().Is6() }) {
			return decision{err: fmt.Errorf("network %s: this host has no public address of that family", r.Network)}
		}
	}
	if c.held.Key != "" {
		return c.decideHeld(v, s, now)
	}
	return c.decideNew(v, s, now)
}

// decideNew is for a host that holds nothing yet in this process.
func (c *claimant) decideNew(v View, s Self, now time.Time) decision {
	var found [moved + 1][]Lease
	for l := range v.all() {
		if r := relate(l, s); r != foreign {
			found[r] = append(found[r], *l)
		}
	}
	for _, l := range slices.Concat(found[mine], found[unmarked]) {
		if v.usable(l, s) {
			return c.hold(v, s, l, others(found[mine], l))
		}
	}
	drop := slices.Concat(found[mine], found[unmarked])
	for _, l := range slices.Concat(found[former], found[moved]) {
		state, d := c.holderOf(v, s, l, now)
		switch {
		case state == unsure:
			return d
		case state == alive:
			continue
		case v.usable(l, s):
			d = c.hold(v, s, l, drop)
			d.cond = append(d.cond, v.hostsUnchanged(c.prefix))
			return d
		}
		drop = append(drop, l)
	}
	d := c.create(v, s, s.Previous, drop)
	if len(found[former])+len(found[moved]) > 0 {
		d.cond = append(d.cond, v.hostsUnchanged(c.prefix))
	}
	return d
}

// decideHeld is for a host that has a lease, as far as it knows.
func (c *claimant) decideHeld(v View, s Self, now time.Time) decision {
	sameEpoch := v.Epoch == c.epoch
	if sameEpoch && v.Revision < c.held.Revision {
		return decision{} // older than the lease
	}
	l, there := v.find(c.held.Key)
	own := others(v.related(s, mine), l)
	// The key says all that is held: a family that was not enabled may be now.
	all, _ := ParseKey(c.prefix, c.held.Key)
	held := Lease{Key: c.held.Key, Subnets: v.Config.enabled(all)}
	if !v.Config.Fits(held.Subnets) {
		if there && relate(&l, s) == mine {
			own = append(own, l)
		}
		return c.create(v, s, slices.Concat(all, c.past), own)
	}
	if other, ok := v.holderOver(held, s); ok && (!there || other.Created < l.Created) {
		return c.taken(other)
	}
	switch {
	case !there:
		return c.again(v, s, held.Subnets, own)
	case len(l.PublicIPs) == 0 && l.Identity == "": // unreadable: nobody's
		return c.hold(v, s, l, own)
	case sameEpoch && l.Revision == c.held.Revision: // as this Keeper wrote it
		return c.hold(v, s, l, own)
	}
	switch relate(&l, s) {
	case mine, unmarked:
		return c.hold(v, s, l, own)
	case moved:
		return c.contested(v, s, l, now)
	case former:
		if !sameEpoch { // what a backup remembers from before a reboot
			return c.contested(v, s, l, now)
		}
	}
	return c.taken(l)
}

// contested: the key that this host held bears its former address or
// identity. Whoever wrote it is alive, or it is to be written again.
func (c *claimant) contested(v View, s Self, l Lease, now time.Time) decision {
	switch state, d := c.holderOf(v, s, l, now); state {
	case unsure:
		if d.verdict == fail {
			return c.taken(l)
		}
		return d
	case alive:
		return c.taken(l)
	}
	d := c.hold(v, s, l, nil)
	d.cond = append(d.cond, v.hostsUnchanged(c.prefix))
	return d
}

// life is what is known of the holder of a lease that might be this host's.
type life int

const (
	dead   life = iota
	alive       // and none of this host's business
	unsure      // the decision says what to do
)

// holderOf finds out whether the holder of a former or moved lease lives.
func (c *claimant) holderOf(v View, s Self, l Lease, now time.Time) (life, decision) {
	moved := l.Identity == s.Host.Identity
	elsewhere, here := v.hostsOf(l.Identity, s)
	rivals := here
	if moved {
		rivals = elsewhere
	} else if len(here) == 0 && len(elsewhere) > 0 {
		return alive, decision{} // it has left this address and will say so
	}
	if len(rivals) == 0 {
		// Absent: that counts a TTL after the connection began.
		if sure := v.Fresh.Add(HostTTL); now.Before(sure) {
			return unsure, decision{until: sure, err: fmt.Errorf("lease %s is held by %s: waiting whether it is alive", l.Key, describe(l))}
		}
		return dead, decision{}
	}
	h, rec := rivals[0].host, rivals[0]
	if end := c.waits.first(l.Key+" "+h.Identity+" "+h.Instance, v, now).Add(patience); now.Before(end) {
		return unsure, decision{until: end, err: fmt.Errorf("lease %s is held by %s, which seems to be alive: waiting whether it is", l.Key, describe(l))}
	}
	confirm := store.KV{Key: HostKey(c.prefix, h.Name), ModRevision: rec.revision}
	if moved {
		return unsure, decision{verdict: fail, confirm: confirm, err: fmt.Errorf("%w: %s, which holds %s", ErrClone, describe(l), l.Key)}
	}
	return unsure, decision{verdict: fail, confirm: confirm, err: &InUseError{
		What: "public address " + joinAddrs(s.Host.PublicIPs), Mine: s.Host.Name, Other: h.Name + " (which holds " + l.Key + ")",
		Remedy: "give each host an address of its own, or name the right one with --public-ip",
	}}
}

// hold makes l this host's, in place.
func (c *claimant) hold(v View, s Self, l Lease, drop []Lease) decision {
	want := c.lease(s)
	want.Key, want.Revision, want.Created, want.Session, want.value = l.Key, l.Revision, l.Created, l.Session, l.value
	want.Subnets = v.Config.enabled(l.Subnets)
	if relate(&l, s) == former {
		want.Session = 0 // leave the session to whom it was
	}
	// A key without session is an administrator's reservation; one that
	// cannot be read is none.
	readable := len(l.PublicIPs) > 0
	d := decision{verdict: keep, lease: want, bound: l.Session != 0 || !readable, drop: keys(drop)}
	if !readable || !want.says(l) || len(drop) > 0 {
		d.verdict = write
	}
	d.cond = []store.Cond{{Key: l.Key, ModRevision: l.Revision}}
	return d
}

// again registers what was held, exactly as it was.
func (c *claimant) again(v View, s Self, held []netip.Prefix, own []Lease) decision {
	want := c.lease(s)
	want.Subnets, want.Key = held, Key(c.prefix, held)
	if i := slices.IndexFunc(own, func(l Lease) bool { return l.Key == want.Key }); i >= 0 {
		return c.hold(v, s, own[i], others(own, own[i]))
	}
	return decision{verdict: write, lease: want, bound: true, drop: keys(own), cond: c.unchanged(v, want.Key)}
}

// create takes a subnet of each family: the preferred one where nobody else
// has it, else a free one.
func (c *claimant) create(v View, s Self, preferred []netip.Prefix, drop []Lease) decision {
	dropped := keys(drop)
	taken := v.taken(func(l *Lease) bool { return slices.Contains(dropped, l.Key) })
	for _, ip := range s.Host.PublicIPs {
		taken = append(taken, netip.PrefixFrom(ip, ip.BitLen()))
	}
	for _, l := range drop { // what still fits of an old lease stays
		preferred = append(slices.Clip(preferred), l.Subnets...)
	}
	want := c.lease(s)
	for _, r := range v.Config.Ranges {
		i := slices.IndexFunc(preferred, func(p netip.Prefix) bool {
			return r.holds(p) && !overlapsAny([]netip.Prefix{p}, taken)
		})
		if i >= 0 {
			want.Subnets = append(want.Subnets, preferred[i])
			continue
		}
		free, err := r.free(taken, c.rnd)
		if err != nil && c.held.Key != "" {
			return decision{err: fmt.Errorf("lease %s is not of the configured network any more: %w", c.held.Key, err)}
		}
		if err != nil {
			return decision{verdict: fail, err: err}
		}
		want.Subnets = append(want.Subnets, free)
	}
	want.Key = Key(c.prefix, want.Subnets)
	if i := slices.Index(dropped, want.Key); i >= 0 {
		return c.hold(v, s, drop[i], others(drop, drop[i]))
	}
	return decision{verdict: write, lease: want, bound: true, cond: c.unchanged(v, want.Key), drop: dropped}
}

// lease is what this host says about itself.
func (c *claimant) lease(s Self) Lease {
	return Lease{PublicIPs: s.Host.PublicIPs, Type: s.Type, Data: s.Data, Node: c.node, Identity: s.Host.Identity}.canonical()
}

// unchanged: nobody has taken anything since v was listed.
func (c *claimant) unchanged(v View, key string) []store.Cond {
	return []store.Cond{{Key: SubnetsPrefix(c.prefix), Prefix: true, ModRevision: v.Revision}, {Key: key}}
}

func (c *claimant) taken(by Lease) decision {
	return decision{verdict: fail, confirm: store.KV{Key: by.Key, ModRevision: by.Revision},
		err: fmt.Errorf("%w: %s, which this host held, is now %s's (%s)", ErrTaken, c.held.Key, describe(by), by.Key)}
}
