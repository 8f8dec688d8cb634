package vxlan

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
)

// peer is another host's lease, parsed.
type peer struct {
	lease subnet.Lease
	sides [2]side // as Device.tunnels
	err   error   // what is wrong with the lease itself
	clash error   // what another peer has already
}

// side is a peer in one family.
type side struct {
	subnet netip.Prefix
	public netip.Addr // of the peer's underlay
	mac    link.MAC
	valid  bool // the fields above are good
	serve  bool // and nobody else has claimed any of it
	direct bool // reached without the tunnel
	has    what // what the kernel has of it, as far as is known
}

// what is a set of kernel objects of a side.
type what uint8

const (
	fdbEntry what = 1 << iota
	neighbour
	route
)

// same reports whether two leases say the same to this driver. Renewal changes
// nothing.
func same(a, b *subnet.Lease) bool {
	return a.Key == b.Key && a.Created == b.Created && a.Type == b.Type &&
		bytes.Equal(a.Data.V4, b.Data.V4) && bytes.Equal(a.Data.V6, b.Data.V6) &&
		slices.Equal(a.PublicIPs, b.PublicIPs) && slices.Equal(a.Subnets, b.Subnets)
}

// change is what became of one key: old is nil for a new peer, new for one
// that is gone.
type change struct{ old, new *peer }

// update takes the new leases, parses those that are new or say something
// else, and returns the changes; nil if nothing changed.
func (d *Device) update(leases []subnet.Lease) []change {
	if len(leases) == len(d.peers) {
		i := 0
		for i < len(leases) && same(&d.peers[i].lease, &leases[i]) {
			i++
		}
		if i == len(leases) {
			return nil
		}
	}
	for i := 1; i < len(leases); i++ {
		if leases[i].Key < leases[i-1].Key {
			leases = slices.SortedFunc(slices.Values(leases), func(a, b subnet.Lease) int { return strings.Compare(a.Key, b.Key) })
			break
		}
	}
	old := d.peers
	d.peers = make([]*peer, 0, len(leases))
	var changes []change
	var block []peer // allocated many at a time
	for i := range leases {
		l := &leases[i]
		if i > 0 && l.Key == leases[i-1].Key {
			continue
		}
		for len(old) > 0 && old[0].lease.Key < l.Key {
			changes = append(changes, change{old: old[0]})
			old = old[1:]
		}
		var before *peer
		if len(old) > 0 && old[0].lease.Key == l.Key {
			before, old = old[0], old[1:]
			if same(&before.lease, l) {
				d.peers = append(d.peers, before)
				continue
			}
		}
		if len(block) == 0 {
			block = make([]peer, max(1, min(256, len(leases)-i-len(old))))
		}
		p := &block[0]
		block = block[1:]
		d.parse(l, p)
		d.peers = append(d.peers, p)
		changes = append(changes, change{before, p})
	}
	for _, p := range old {
		changes = append(changes, change{old: p})
	}
	return changes
}

// parse reads a lease into p, which is zero.
func (d *Device) parse(l *subnet.Lease, p *peer) {
	p.lease = *l
	if l.Type != Type {
		p.err = fmt.Errorf("backend type %q is not %s: give both hosts one configuration", clip(l.Type), Type)
		return
	}
	for i, t := range d.tunnels {
		s := &p.sides[i]
		at := slices.IndexFunc(l.Subnets, func(n netip.Prefix) bool { return n.Addr().Is4() == t.v4() })
		if at < 0 {
			continue // a host of the other family only
		}
		s.subnet = l.Subnets[at]
		if err := d.check(t, l, s); err != nil {
			p.err = errors.Join(p.err, err)
			continue
		}
		s.valid = true
	}
}

// check fills in a side and says what is wrong with it.
func (d *Device) check(t *tunnel, l *subnet.Lease, s *side) (err error) {
	n := t.rng.Network
	if !s.subnet.IsValid() || s.subnet != s.subnet.Masked() || !n.Contains(s.subnet.Addr()) || s.subnet.Bits() <= n.Bits() {
		return fmt.Errorf("subnet %s is no part of the network %s", s.subnet, n)
	}
	for _, own := range d.own {
		if own.Overlaps(s.subnet) {
			return fmt.Errorf("subnet %s overlaps this host's %s", s.subnet, own)
		}
	}
	for _, ip := range l.PublicIPs {
		if ip.Is4() == t.v4() {
			s.public = ip
		}
	}
	switch ip := s.public; {
	case !ip.IsValid():
		return fmt.Errorf("no public IP of the family of %s", s.subnet)
	case ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || ip.Zone() != "":
		return fmt.Errorf("public IP %s is no host's address", ip)
	case slices.Contains(d.underlay.PublicIPs, ip) || slices.Contains(d.underlay.Addrs, ip):
		return fmt.Errorf("public IP %s is this host's own", ip)
	case n.Contains(ip):
		return fmt.Errorf("public IP %s is inside the network %s itself", ip, n)
	}
	raw := l.Data.V4
	if !t.v4() {
		raw = l.Data.V6
	}
	s.mac, err = parseData(raw, d.opts.VNI, t.mac)
	return err
}

// claim decides who is served after changes. Where two peers claim one subnet
// or MAC, the elder has it: whoever comes later with what is another's takes
// nothing away. It returns the peers whose kernel objects may have to change.
func (d *Device) claim(changes []change) []*peer {
	clash := d.contested
	for _, c := range changes {
		if c.old != nil {
			d.release(c.old)
		}
	}
	for _, c := range changes {
		if c.new != nil && !clash {
			clash = d.take(c.new) != nil
		}
	}
	if !clash {
		touched := make([]*peer, 0, len(changes))
		for _, c := range changes {
			if c.new != nil {
				touched = append(touched, c.new)
			}
		}
		return touched
	}
	// Somebody lost, or had lost before: decide all anew, the elder first.
	for _, t := range d.tunnels {
		t.reset()
	}
	d.contested = false
	for _, p := range slices.SortedFunc(slices.Values(d.peers), byAge) {
		p.sides[0].serve, p.sides[1].serve = false, false
		p.clash = d.take(p)
		d.contested = d.contested || p.clash != nil
	}
	return d.peers
}

// byAge orders peers by the creation of their leases, those of one age by key.
func byAge(a, b *peer) int {
	return cmp.Or(cmp.Compare(a.lease.Created, b.lease.Created), strings.Compare(a.lease.Key, b.lease.Key))
}

// take claims what a peer is valid for, side by side, and says what somebody
// else has.
func (d *Device) take(p *peer) (clash error) {
	for i, t := range d.tunnels {
		s := &p.sides[i]
		if !s.valid {
			continue
		}
		if other := t.subnets[s.subnet.Addr()]; other != nil {
			clash = errors.Join(clash, fmt.Errorf("subnet %s overlaps that of %s, which was there first", s.subnet, other.lease.Key))
			continue
		}
		if other := t.macs[s.mac]; other != nil {
			clash = errors.Join(clash, fmt.Errorf("VtepMAC %s is that of %s, which was there first: one of the two is a clone, delete its device and restart its daemon", s.mac, other.lease.Key))
			continue
		}
		t.subnets[s.subnet.Addr()], t.macs[s.mac] = p, p
		s.serve = true
	}
	return clash
}

// release gives back what a peer has claimed.
func (d *Device) release(p *peer) {
	for i, t := range d.tunnels {
		if s := &p.sides[i]; s.serve {
			delete(t.subnets, s.subnet.Addr())
			delete(t.macs, s.mac)
			s.serve = false
		}
	}
}

// serves are the public IPs that a peer is served at.
func (d *Device) serves(p *peer) []netip.Addr {
	var out []netip.Addr
	for i := range d.tunnels {
		if s := &p.sides[i]; s.serve {
			out = append(out, s.public)
		}
	}
	return out
}

// report lists what is wrong with the peers.
func (d *Device) report() []error {
	var errs []error
	for _, p := range d.peers {
		if p.err != nil || p.clash != nil {
			errs = append(errs, &backend.PeerError{Peer: p.lease, Served: d.serves(p), Err: errors.Join(p.err, p.clash)})
		}
	}
	return errs
}
