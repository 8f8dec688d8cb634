package wireguard

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld/flanneld/backend/routed"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/subnet"
)

// mostGreeted bounds the handshakes that a new device begins with: each costs
// both ends 0.1 ms or more, and is repeated while a peer does not answer.
const mostGreeted = 512

// sessionLife is how long after a handshake packets may come (REJECT_AFTER_TIME
// of the protocol).
const sessionLife = 180 * time.Second

// entry is a key that the device has or is to have.
type entry struct {
	has *wg.Peer // nil: it has none
	// fresh: there was a session when the device was read, so that it may have
	// found out where the peer is.
	fresh bool

	round   uint // it was last told in
	lease   *subnet.Lease
	allowed []netip.Prefix // sorted
}

// peers takes who is served in one family. Once all families of the device
// have been told, the device is made to have exactly those: what is as it must
// be is not touched. See routed.Kind.
func (d *device) peers(ctx context.Context, t *routed.Tunnel, served iter.Seq[*routed.Side[wg.Key]]) error {
	if t == d.usable[0] {
		d.round++
		d.told = d.told[:0]
	}
	for s := range served {
		e := d.entries[s.Data]
		if e == nil {
			e = &entry{}
			d.entries[s.Data] = e
		}
		if e.round != d.round {
			e.round, e.lease, e.allowed = d.round, s.Lease, e.allowed[:0]
			d.told = append(d.told, e)
		}
		e.allowed = append(e.allowed, s.Subnet)
	}
	if t != d.usable[len(d.usable)-1] {
		return nil
	}
	return d.apply(ctx)
}

// apply writes the difference.
func (d *device) apply(ctx context.Context) error {
	var c wg.Change
	var fresh []*entry // entries behind c.Set
	if len(d.told) < len(d.entries) {
		for k, e := range d.entries {
			if e.round != d.round {
				c.Remove = append(c.Remove, k)
			}
		}
		slices.SortFunc(c.Remove, func(a, b wg.Key) int { return slices.Compare(a[:], b[:]) })
	}
	for k, e := range d.entries {
		if e.round == d.round && !d.fits(e) {
			c.Set = append(c.Set, wg.Peer{Key: k, Preshared: d.opts.PSK, Endpoint: d.endpoint(e.lease), Keepalive: d.opts.Keepalive, Allowed: slices.Clone(e.allowed)})
			fresh = append(fresh, e)
		}
	}
	if len(c.Set)+len(c.Remove) == 0 {
		return nil
	}
	if err := d.greet(ctx, c); err != nil {
		return err
	}
	if err := d.impl.Write(ctx, c); err != nil {
		return err
	}
	d.lost = false
	d.writes += uint64(len(c.Set) + len(c.Remove))
	for i, e := range fresh {
		e.has, e.fresh = &c.Set[i], false
	}
	for _, k := range c.Remove {
		delete(d.entries, k)
	}
	return nil
}

// fits reports whether the device has a peer as it must be.
func (d *device) fits(e *entry) bool {
	h := e.has
	if h == nil || h.Preshared != d.opts.PSK || h.Keepalive != d.opts.Keepalive {
		return false
	}
	slices.SortFunc(e.allowed, netip.Prefix.Compare)
	if !slices.Equal(h.Allowed, e.allowed) {
		return false
	}
	// Behind NAT a peer has another port than it knows, and with two families
	// it may have chosen the other one; the device has found out.
	found := e.fresh && slices.Contains(e.lease.PublicIPs, h.Endpoint.Addr())
	return found || h.Endpoint == d.endpoint(e.lease)
}

// endpoint is where a peer receives. Its port is ours, as flannel's.
func (d *device) endpoint(l *subnet.Lease) netip.AddrPort {
	return netip.AddrPortFrom(d.choose(l.PublicIPs), d.port)
}

// choose picks one of a peer's addresses. With one device for both families
// and no preference it does as flannel: IPv4 if the peer's is public, IPv6 if
// both hosts' are, else IPv4.
func (d *device) choose(publics []netip.Addr) netip.Addr {
	var v4, v6 netip.Addr
	for _, a := range publics {
		if a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	switch {
	case d.opts.Mode == onlyIPv4:
		return v4
	case d.opts.Mode == onlyIPv6:
		return v6
	case d.opts.Mode == separate && !d.tunnels[0].Is4():
		return v6
	case d.opts.Mode == separate, !v6.IsValid():
		return v4
	case !v4.IsValid():
		return v6
	}
	own6 := slices.ContainsFunc(d.publics, func(a netip.Addr) bool { return a.Is6() && isPublic(a) })
	if !isPublic(v4) && isPublic(v6) && own6 {
		return v6
	}
	return v4
}

func isPublic(a netip.Addr) bool { return !a.IsPrivate() && !a.IsLinkLocalUnicast() }

// greet shakes hands with those who have to be told that a session of theirs
// is over, and would find out after 15 s only: everybody if the device was made
// anew with a key that they know, and peers whose key is another now, since they
// may have tried already. Switching keepalives on sends one. Others speak when
// they have something to say: where both ends begin at once, each forgets its
// own handshake over the other's, and the next is after 5 s.
func (d *device) greet(ctx context.Context, c wg.Change) error {
	if d.opts.Keepalive != 0 {
		return nil // that greets too
	}
	former := map[netip.Prefix]bool{}
	for _, k := range c.Remove {
		if h := d.entries[k].has; h != nil {
			for _, n := range h.Allowed {
				former[n] = true
			}
		}
	}
	var hello wg.Change
	for _, p := range c.Set {
		again := func(n netip.Prefix) bool { return former[n] }
		if len(hello.Set) < mostGreeted && d.entries[p.Key].has == nil && (d.lost || slices.ContainsFunc(p.Allowed, again)) {
			p.Keepalive = time.Second
			hello.Set = append(hello.Set, p)
		}
	}
	if len(hello.Set) == 0 {
		return nil
	}
	return d.impl.Write(ctx, hello)
}
