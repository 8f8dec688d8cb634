// Package routed is what drivers share that reach the subnet of each peer by
// routes: the kernel kept equal to the leases that can be served.
package routed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
)

// Kind says how the tunnels of one driver differ from others. D is what a
// peer's lease tells about one family: struct{} for nothing. The functions are
// called by Open and Sync only.
type Kind[D comparable] struct {
	Type string // of the backend, in leases
	// Untyped: leases that tell no type are of this kind too.
	Untyped bool
	// Parse reads what a lease, which may be hostile, tells the tunnel; nil:
	// it tells nothing.
	Parse func(t *Tunnel, l *subnet.Lease) (D, error)
	// Claim names D for people where no two peers may have the same, and Cure
	// tells what to do on one of the two if they have; "": they may.
	Claim, Cure string
	// Ensure makes the tunnel's device be as it must (adopts, repairs, replaces
	// or makes it), with t.Own as its address, and sets t.Index. Without a
	// change it does not write. Nil: there are no devices.
	Ensure func(h *link.Handle, t *Tunnel) error
	// Near: there is no tunnel, peers are reached where they are on the
	// underlay's own link alone. The device, if any, only has the address.
	Near bool
	// Peers, if not nil, is told all that are served before their routes are
	// set, whenever that may have changed or the kernel is read again.
	Peers func(ctx context.Context, t *Tunnel, served iter.Seq[*Side[D]]) error
	// Route is how a side is reached through the tunnel: gateway, encapsulation
	// and, if it is not the tunnel's device, the interface. Nil: the device alone.
	Route func(t *Tunnel, s *Side[D]) link.Route
	// Layer2, if not nil, are the entries that a side needs beside the route.
	Layer2 func(t *Tunnel, s *Side[D]) (link.FDB, link.Neighbour)
	// Ours tells devices that this driver may have made, whatever the
	// configuration was; nil: none. LinkKind is the kernel's name for them.
	Ours     func(l *link.Link) bool
	LinkKind string
	// Scattered: routes lead to more interfaces than the tunnels' and the
	// underlay.
	Scattered bool
	// Direct says which peers on the underlay's link are reached without the
	// tunnel.
	Direct Direct
}

// Direct is when a tunnel is bypassed.
type Direct uint8

// When.
const (
	Never  Direct = iota
	ByWay         // as the peer's backend.Way says
	Always        // wherever it is possible: flannel's DirectRouting
)

// Tunnel is one family's way into the tunnel.
type Tunnel struct {
	At    int          // its place among the device's tunnels, IPv4 first
	Range subnet.Range // whose subnets it leads to
	Name  string       // of its interface, "" if it has none
	// Local is this host's end on the underlay. Its family is that of the peers'
	// public IPs.
	Local netip.Addr
	MTU   int // of a packet inside
	// Underlay is the index of the underlay's interface, Index that of the
	// tunnel's own, 0 if there is none.
	Underlay, Index int
	// Own is this host's subnet, zero before the lease.
	Own netip.Prefix
	// Shared: other networks of this host have the same interface. Its MTU may
	// be less then, and addresses and routes on it outside Range are theirs.
	Shared bool

	err error // why it cannot be used now
}

// Is4 tells the family of the packets inside.
func (t *Tunnel) Is4() bool { return t.Range.Network.Addr().Is4() }

// Data is what a lease tells the tunnel's family, nil if nothing.
func (t *Tunnel) Data(l *subnet.Lease) json.RawMessage {
	if t.Is4() {
		return l.Data.V4
	}
	return l.Data.V6
}

// Side is a peer in one family.
type Side[D comparable] struct {
	Lease  *subnet.Lease
	Subnet netip.Prefix
	Public netip.Addr // of the peer on the underlay
	Data   D

	valid  bool // the fields above are good
	serve  bool // and nobody else has claimed any of it
	near   bool // on the underlay's link
	direct bool // reached without the tunnel
	has    what // what the kernel has of it, as far as is known
}

// Options of a device.
type Options struct {
	// Own, if not nil, is told what the device writes, for monitors.
	Own *link.Own
	// KeepOthers: other networks of this host have devices of this kind, so
	// that those that are not this one's own are left alone.
	KeepOthers bool
	// Log is told what the device mended that nobody else tells of; nil: quiet.
	Log *slog.Logger
}

// Device is one network's tunnels on this host: one for each family. A driver
// embeds it and adds Info.
type Device[D comparable] struct {
	h        *link.Handle
	kind     Kind[D]
	underlay backend.Underlay
	nobody   []netip.Addr // see NoHosts
	tables   []*table[D]

	own   []netip.Prefix // this host's subnets
	peers []*peer[D]     // by key, as of the last Sync
	// told is what the last Sync was told, parallel to peers; empty if it was
	// not in that order.
	told []backend.Peer
	// unread: the kernel is not known and must be read.
	unread bool
	// first: nothing was read yet.
	first bool
	// retry: the kernel refused something that may work next time.
	retry bool
	// swept: the devices of former configurations are gone.
	swept bool
	// contested: two peers claim one thing, or are one host.
	contested bool
	peerErrs  []error // of the leases themselves
}

// table is a tunnel and who has what on it. Each subnet and each datum belongs
// to one peer at most.
type table[D comparable] struct {
	*Tunnel
	subnets map[netip.Addr]*peer[D] // by network address
	publics map[netip.Addr]*peer[D]
	data    map[D]*peer[D]
}

func (t *table[D]) reset() {
	t.subnets, t.publics, t.data = map[netip.Addr]*peer[D]{}, map[netip.Addr]*peer[D]{}, map[D]*peer[D]{}
}

// Open makes the tunnels' devices, or adopts those that are there and fit.
func Open[D comparable](kind Kind[D], tunnels []*Tunnel, u backend.Underlay, o Options) (*Device[D], error) {
	d := &Device[D]{kind: kind, underlay: u, unread: true, first: true, swept: o.KeepOthers || kind.Ours == nil}
	for i, t := range tunnels {
		t.At, t.Underlay = i, u.Index
		table := &table[D]{Tunnel: t}
		table.reset()
		d.tables = append(d.tables, table)
	}
	var err error
	if d.nobody, err = NoHosts(u); err != nil {
		return nil, fmt.Errorf("%s: %w", kind.Type, err)
	}
	if d.h, err = link.Open(); err != nil {
		return nil, err
	}
	if err = d.h.Record(o.Own); err == nil {
		err = d.ensure()
	}
	if err != nil {
		d.h.Close()
		return nil, fmt.Errorf("%s: %w", kind.Type, err)
	}
	return d, nil
}

// Local is u's address of a range's family, which tunnels of that family leave
// from.
func Local(kind string, r subnet.Range, u backend.Underlay) (netip.Addr, error) {
	for _, a := range u.Addrs {
		if a.Is4() == r.Network.Addr().Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: interface %s has no address of the family of %s to send from: name another with --iface", kind, u.Link, r.Network)
}

// ensure makes every device be as it must, as far as it is known: before the
// lease it has no address. One that cannot be used does not stop the other.
func (d *Device[D]) ensure() error {
	// Whoever made the underlay's interface again gave it another index.
	u, err := d.h.LinkByName(d.underlay.Link)
	if err != nil {
		err = fmt.Errorf("underlay: %w: name another with --iface", err)
		for _, t := range d.tables {
			t.err = err
		}
		return err
	}
	d.underlay.Index = u.Index
	var errs []error
	for _, t := range d.tables {
		t.Underlay, t.Own, t.err = u.Index, netip.Prefix{}, nil
		for _, s := range d.own {
			if s.Addr().Is4() == t.Is4() {
				t.Own = s
			}
		}
		if d.kind.Ensure != nil {
			t.err = d.kind.Ensure(d.h, t.Tunnel)
		}
		errs = append(errs, t.err)
	}
	return errors.Join(errs...)
}

// Sync makes the kernel carry traffic to exactly these peers. See
// backend.Device. With nothing changed it neither writes nor reads; after
// changes it writes what changed for each changed peer and family.
func (d *Device[D]) Sync(ctx context.Context, own *subnet.Lease, peers []backend.Peer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Equal(d.own, own.Subnets) { // what is valid depends on it
		d.own, d.peers, d.told, d.unread = slices.Clone(own.Subnets), nil, nil, true
		for _, t := range d.tables {
			t.reset()
		}
	}
	changes := d.update(peers)
	if !d.unread && !d.retry && changes == nil {
		return errors.Join(d.peerErrs...)
	}
	touched := d.claim(changes)
	if d.retry || d.unread {
		touched = d.peers
	}
	w := &writer[D]{d: d}
	w.b = d.h.Batch(w.refused)
	known := !d.unread
	d.unread = true // until this ends well
	if known {
		d.locate(touched)
		w.inherit(changes, touched)
	} else {
		if err := d.ensure(); err != nil {
			w.left = append(w.left, d.wrap(err))
		}
		if err := w.read(); err != nil {
			return errors.Join(append([]error{d.wrap(err)}, d.report()...)...)
		}
	}
	w.tell(ctx)
	err := w.apply(touched)
	d.peerErrs = d.report()
	if err != nil {
		return errors.Join(append([]error{d.wrap(err)}, d.peerErrs...)...)
	}
	if len(w.left) == 0 && !d.swept { // not before traffic has its new way
		if err := d.sweep(); err != nil {
			w.left = append(w.left, fmt.Errorf("%s: remove a former configuration's device: %w", d.kind.Type, err))
		} else {
			d.swept = true
		}
	}
	d.unread, d.first, d.retry = len(w.left) > 0, false, len(w.errs) > 0
	return errors.Join(slices.Concat(d.peerErrs, w.errs, w.left)...)
}

func (d *Device[D]) wrap(err error) error { return fmt.Errorf("%s: %w", d.kind.Type, err) }

// Forget makes the next Sync read the kernel and repair it.
func (d *Device[D]) Forget() { d.unread = true }

// Writes counts what the device changed in the kernel through its handle.
func (d *Device[D]) Writes() uint64 { return d.h.Writes() }

// Close lets go of the devices and leaves them forwarding.
func (d *Device[D]) Close() error {
	d.h.Close()
	return nil
}

// sweep removes what former configurations left: devices of ours that nobody
// uses, and that no rule of the packet filter covers.
func (d *Device[D]) sweep() error {
	all, err := d.h.Links(d.kind.LinkKind)
	errs := []error{err}
	for _, l := range all {
		used := slices.ContainsFunc(d.tables, func(t *table[D]) bool { return t.Name == l.Name })
		if !used && d.kind.Ours(&l) {
			errs = append(errs, d.h.DeleteLink(l.Index))
		}
	}
	return errors.Join(errs...)
}

// RemoveDevices deletes the interfaces of a kind that are ours.
func RemoveDevices(ctx context.Context, own *link.Own, kind string, ours func(*link.Link) bool) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Record(own); err != nil {
		return err
	}
	links, err := h.Links(kind)
	errs := []error{err}
	for _, l := range links {
		if ours(&l) && ctx.Err() == nil {
			errs = append(errs, h.DeleteLink(l.Index))
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// RemoveRoutes deletes every route of ours, whichever driver set it.
func RemoveRoutes(ctx context.Context, own *link.Own) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Record(own); err != nil {
		return err
	}
	routes, err := h.Routes(link.RouteFilter{Protocol: link.Protocol})
	errs := []error{err}
	b := h.Batch(func(i int, err error) {
		errs = append(errs, fmt.Errorf("remove route to %s: %w", routes[i].Dst, err))
	})
	for _, r := range routes {
		b.DelRoute(r)
	}
	return errors.Join(append(errs, b.Flush())...)
}
