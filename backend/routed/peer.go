package routed

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// peer is another host's lease, parsed.
type peer[D comparable] struct {
	lease *subnet.Lease
	way   backend.Way
	sides [2]Side[D] // as Device.tables
	err   error      // what is wrong with the lease itself
	clash error      // what another peer has already
	far   error      // why the present underlay does not lead to it
}

// same reports whether two leases say the same to a driver. Renewal changes
// nothing.
func same(a, b *subnet.Lease) bool {
	return a == b || a.Key == b.Key && a.Created == b.Created && a.Type == b.Type &&
		bytes.Equal(a.Data.V4, b.Data.V4) && bytes.Equal(a.Data.V6, b.Data.V6) &&
		slices.Equal(a.PublicIPs, b.PublicIPs) && slices.Equal(a.Subnets, b.Subnets)
}

// is reports whether nothing about a peer has changed, and takes its renewed
// lease then.
func (p *peer[D]) is(now backend.Peer) bool {
	if p.way != now.Way || !same(p.lease, now.Lease) {
		return false
	}
	p.lease = now.Lease
	return true
}

// change is what became of one key: old is nil for a new peer, new for one
// that is gone.
type change[D comparable] struct{ old, new *peer[D] }

func byKey(a, b backend.Peer) int { return strings.Compare(a.Lease.Key, b.Lease.Key) }

// update takes the new leases, parses those that are new or say something
// else, and returns the changes; nil if nothing changed. What is told as it was
// is not looked at: of thousands that is what costs.
func (d *Device[D]) update(now []backend.Peer) []change[D] {
	front, back := store.Unchanged(d.told, now, func(a, b *backend.Peer) bool { return *a == *b })
	if around := now[max(0, front-1):min(len(now), len(now)-back+1)]; !inOrder(around) {
		// Not parallel to d.peers, whatever they are.
		front, back, d.told = 0, 0, nil
		now = slices.SortedStableFunc(slices.Values(now), byKey)
		now = slices.CompactFunc(now, func(a, b backend.Peer) bool { return a.Lease.Key == b.Lease.Key })
	} else {
		d.told = append(d.told[:0], now...)
	}
	old, now := d.peers[front:len(d.peers)-back], now[front:len(now)-back]
	peers := make([]*peer[D], 0, len(now))
	var changes []change[D]
	var block []peer[D] // allocated many at a time
	for i, n := range now {
		for len(old) > 0 && old[0].lease.Key < n.Lease.Key {
			changes = append(changes, change[D]{old: old[0]})
			old = old[1:]
		}
		var before *peer[D]
		if len(old) > 0 && old[0].lease.Key == n.Lease.Key {
			before, old = old[0], old[1:]
			if before.is(n) {
				peers = append(peers, before)
				continue
			}
		}
		if len(block) == 0 {
			block = make([]peer[D], max(1, min(256, len(now)-i-len(old))))
		}
		p := &block[0]
		block = block[1:]
		p.lease, p.way = n.Lease, n.Way
		d.parse(p)
		peers = append(peers, p)
		changes = append(changes, change[D]{before, p})
	}
	for _, p := range old {
		changes = append(changes, change[D]{old: p})
	}
	d.peers = slices.Replace(d.peers, front, len(d.peers)-back, peers...)
	return changes
}

// inOrder says that peers are sorted by key, and each is there once.
func inOrder(peers []backend.Peer) bool {
	for i := 1; i < len(peers); i++ {
		if peers[i-1].Lease.Key >= peers[i].Lease.Key {
			return false
		}
	}
	return true
}

// parse reads the lease of p, whose sides are zero.
func (d *Device[D]) parse(p *peer[D]) {
	l := p.lease
	if l.Type != d.kind.Type && (l.Type != "" || !d.kind.Untyped) {
		p.err = OtherType(l, d.kind.Type)
		return
	}
	for i, t := range d.tables {
		s := &p.sides[i]
		at := slices.IndexFunc(l.Subnets, func(n netip.Prefix) bool { return n.Addr().Is4() == t.Is4() })
		if at < 0 {
			continue // a host of the other family only
		}
		s.Lease, s.Subnet = l, l.Subnets[at]
		if err := d.check(t, l, s); err != nil {
			p.err = errors.Join(p.err, err)
			continue
		}
		s.valid = true
	}
}

// OtherType is what is wrong with a peer of another backend than this network's.
func OtherType(l *subnet.Lease, network string) error {
	host := "its host"
	if l.Node != "" {
		host = "host " + Clip(l.Node)
	} else if len(l.PublicIPs) > 0 {
		host = "host " + l.PublicIPs[0].String()
	}
	return fmt.Errorf("backend type %q is not %s: the daemon of %s is down or refused the present configuration, see its log", Clip(l.Type), network, host)
}

// check fills in a side and says what is wrong with it.
func (d *Device[D]) check(t *table[D], l *subnet.Lease, s *Side[D]) (err error) {
	if err := CheckSubnet(s.Subnet, t.Range.Network, d.own); err != nil {
		return err
	}
	for _, ip := range l.PublicIPs {
		if ip.Is4() == t.Local.Is4() {
			s.Public = ip
		}
	}
	if !s.Public.IsValid() {
		return fmt.Errorf("no public IP of the family of %s", t.Local)
	}
	for _, t := range d.tables {
		if err := CheckPublic(s.Public, d.underlay, d.nobody, t.Range.Network); err != nil {
			return err
		}
	}
	if d.kind.Parse != nil {
		s.Data, err = d.kind.Parse(t.Tunnel, l)
	}
	return err
}

// CheckSubnet says why a peer cannot have a subnet of a network that this host
// has subnets of.
func CheckSubnet(s, network netip.Prefix, own []netip.Prefix) error {
	if !s.IsValid() || s != s.Masked() || !network.Contains(s.Addr()) || s.Bits() <= network.Bits() {
		return fmt.Errorf("subnet %s is no part of the network %s", s, network)
	}
	for _, o := range own {
		if o.Overlaps(s) {
			return fmt.Errorf("subnet %s overlaps this host's %s", s, o)
		}
	}
	return nil
}

// CheckPublic says why a peer cannot be at an address, seen from u. nobody are
// the addresses that NoHosts returns for u.
func CheckPublic(ip netip.Addr, u backend.Underlay, nobody []netip.Addr, network netip.Prefix) error {
	switch {
	case ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || ip.Zone() != "":
		return fmt.Errorf("public IP %s is no host's address", ip)
	case slices.Contains(nobody, ip):
		return fmt.Errorf("public IP %s is no host's address but the network or broadcast address of the link of %s", ip, u.Link)
	case slices.Contains(u.PublicIPs, ip) || slices.Contains(u.Addrs, ip):
		return fmt.Errorf("public IP %s is this host's own", ip)
	case network.Contains(ip):
		return fmt.Errorf("public IP %s is inside the network %s itself", ip, network)
	}
	return nil
}

// NoHosts lists the addresses on the underlay's link that no host can have:
// those of IPv4 networks, and their broadcast addresses. What is sent there all
// hosts get. It looks in the calling thread's network namespace.
func NoHosts(u backend.Underlay) ([]netip.Addr, error) {
	h, err := link.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(u.Link)
	if errors.Is(err, link.ErrNoLink) {
		return nil, nil // of that others complain
	}
	if err != nil {
		return nil, err
	}
	addrs, err := h.Addresses(l.Index)
	var out []netip.Addr
	for _, a := range addrs {
		if p := a.Prefix.Masked(); p.Addr().Is4() && p.Bits() < 31 {
			last := p.Addr().As4()
			binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|(uint32(1)<<(32-p.Bits())-1))
			out = append(out, p.Addr(), netip.AddrFrom4(last))
		}
	}
	return out, err
}

// SameHost tells whether two leases are one host's: while it changes subnets
// it may have two, under one address.
func SameHost(a, b *subnet.Lease) bool { return a.Identity != "" && a.Identity == b.Identity }

// claim decides who is served after changes. Where two peers claim one subnet,
// address or datum, the elder has it: whoever comes later with what is another's takes
// nothing away. It returns the peers whose kernel objects may have to change.
func (d *Device[D]) claim(changes []change[D]) []*peer[D] {
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
		touched := make([]*peer[D], 0, len(changes))
		for _, c := range changes {
			if c.new != nil {
				touched = append(touched, c.new)
			}
		}
		return touched
	}
	// Somebody lost, or had lost before: decide all anew, the elder first.
	for _, t := range d.tables {
		t.reset()
	}
	d.contested = false
	for _, p := range slices.SortedFunc(slices.Values(d.peers), byAge[D]) {
		p.sides[0].serve, p.sides[1].serve = false, false
		p.clash = d.take(p)
		d.contested = d.contested || p.clash != nil
	}
	return d.peers
}

// byAge orders peers by the creation of their leases, those of one age by key.
func byAge[D comparable](a, b *peer[D]) int {
	return cmp.Or(cmp.Compare(a.lease.Created, b.lease.Created), strings.Compare(a.lease.Key, b.lease.Key))
}

// take claims what a peer is valid for, side by side, and says what somebody
// else has.
func (d *Device[D]) take(p *peer[D]) (clash error) {
	for i, t := range d.tables {
		s := &p.sides[i]
		if !s.valid {
			continue
		}
		if other := t.subnets[s.Subnet.Addr()]; other != nil {
			clash = errors.Join(clash, fmt.Errorf("subnet %s overlaps that of %s, which was there first", s.Subnet, other.lease.Key))
			continue
		}
		switch other := t.publics[s.Public]; {
		case other == nil:
		case SameHost(p.lease, other.lease):
			d.contested = true // who has the address is to be decided anew when one goes
		default:
			clash = errors.Join(clash, fmt.Errorf("public IP %s is that of %s, which was there first: delete the wrong one of the two", s.Public, other.lease.Key))
			continue
		}
		if d.kind.Claim != "" {
			if other := t.data[s.Data]; other != nil {
				clash = errors.Join(clash, fmt.Errorf("%s %v is that of %s, which was there first: one of the two is a clone, %s and restart its daemon", d.kind.Claim, s.Data, other.lease.Key, d.kind.Cure))
				continue
			}
			t.data[s.Data] = p
		}
		t.subnets[s.Subnet.Addr()] = p
		if t.publics[s.Public] == nil {
			t.publics[s.Public] = p
		}
		s.serve = true
	}
	return clash
}

// release gives back what a peer has claimed.
func (d *Device[D]) release(p *peer[D]) {
	for i, t := range d.tables {
		if s := &p.sides[i]; s.serve {
			delete(t.subnets, s.Subnet.Addr())
			delete(t.data, s.Data)
			delete(t.publics, s.Public)
			s.serve = false
		}
	}
}

// locate finds out which of the peers are on the underlay's link, and thereby
// which are reached without the tunnel.
func (d *Device[D]) locate(peers []*peer[D]) {
	if d.kind.Direct == Never && !d.kind.Near {
		return
	}
	for _, p := range peers {
		p.far = nil
		for i := range d.tables {
			s := &p.sides[i]
			if !s.serve || s.has != 0 {
				continue
			}
			path, err := d.h.RouteTo(s.Public)
			s.near = err == nil && path.Link == d.underlay.Index && !path.Via.IsValid() && !path.Local
			switch {
			case !d.kind.Near:
				s.direct = s.near && (d.kind.Direct == Always || p.way == backend.WayPlain)
			case s.near:
				s.direct = true
			case err != nil:
				p.far = errors.Join(p.far, fmt.Errorf("public IP %s cannot be reached: %w", s.Public, err))
			default:
				how := fmt.Sprintf("interface %d", path.Link)
				if l, err := d.h.LinkByIndex(path.Link); err == nil {
					how = l.Name
				}
				if path.Via.IsValid() {
					how += " via " + path.Via.String()
				}
				p.far = errors.Join(p.far, fmt.Errorf("public IP %s is not on the link of %s but behind %s: %s needs one link for all hosts, use vxlan", s.Public, d.underlay.Link, how, d.kind.Type))
			}
		}
	}
}

// reached tells whether there is a way to a side that is served.
func (d *Device[D]) reached(s *Side[D]) bool { return s.direct || !d.kind.Near }

// serves are the public IPs that a peer is served at.
func (d *Device[D]) serves(p *peer[D]) []netip.Addr {
	var out []netip.Addr
	for i := range d.tables {
		if s := &p.sides[i]; s.serve && d.reached(s) && !slices.Contains(out, s.Public) {
			out = append(out, s.Public)
		}
	}
	return out
}

// report lists what is wrong with the peers.
func (d *Device[D]) report() []error {
	var errs []error
	for _, p := range d.peers {
		if p.err != nil || p.clash != nil || p.far != nil {
			errs = append(errs, &backend.PeerError{Peer: p.lease, Served: d.serves(p), Err: errors.Join(p.err, p.clash, p.far)})
		}
	}
	return errs
}
