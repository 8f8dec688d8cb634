// Package vxlan carries the pod network in the kernel's VXLAN tunnels, the same
// on the wire, in the lease and in the kernel as flannel's backend of that
// name.
package vxlan

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Type is the backend's name in the configuration and in leases.
const Type = "vxlan"

// Driver makes VXLAN devices in the calling thread's network namespace.
type Driver struct {
	// Own, if not nil, is told what the devices write, for monitors.
	Own *link.Own
	// KeepOthers: other networks of this host have devices named as ours, so
	// that a Device leaves those alone that are not its own.
	KeepOthers bool
}

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host: one for each family.
type Device struct {
	h        *link.Handle
	opts     options
	underlay backend.Underlay
	tunnels  []*tunnel // IPv4 first

	own   []netip.Prefix // this host's subnets
	peers []*peer        // by key, as of the last Sync
	// unread: the kernel is not known and must be read.
	unread bool
	// first: nothing was read yet.
	first bool
	// retry: the kernel refused something that may work next time.
	retry bool
	// swept: the devices of former configurations are gone.
	swept bool
	// contested: two peers claim one thing.
	contested bool
	peerErrs  []error // of the leases themselves
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := parseOptions(n)
	return err
}

// Open makes the devices, named and set up as flannel's, or adopts those that
// are there and fit. See backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(n)
	if err != nil {
		return nil, err
	}
	d := &Device{opts: opts, underlay: u, unread: true, first: true, swept: drv.KeepOthers}
	for i, r := range n.Ranges {
		t, err := newTunnel(r, opts, u, identity)
		if err != nil {
			return nil, err
		}
		t.at = i
		d.tunnels = append(d.tunnels, t)
	}
	if d.h, err = link.Open(); err != nil {
		return nil, err
	}
	if err = d.h.Record(drv.Own); err == nil {
		err = d.ensure()
	}
	if err != nil {
		d.h.Close()
		return nil, fmt.Errorf("vxlan: %w", err)
	}
	return d, nil
}

// newTunnel plans one family's tunnel.
func newTunnel(r subnet.Range, o options, u backend.Underlay, identity string) (*tunnel, error) {
	v4 := r.Network.Addr().Is4()
	t := &tunnel{rng: r, name: fmt.Sprintf("flannel.%d", o.VNI), addrBits: 32}
	if !v4 {
		t.name, t.addrBits = fmt.Sprintf("flannel-v6.%d", o.VNI), 128
	}
	least, overhead := sizes(r)
	for _, a := range u.Addrs {
		if a.Is4() == v4 {
			t.spec.Local = a
		}
	}
	if !t.spec.Local.IsValid() {
		return nil, fmt.Errorf("vxlan: interface %s has no address of the family of %s to send from: name another with --iface", u.Link, r.Network)
	}
	t.spec.VNI, t.spec.Port, t.spec.GBP, t.spec.Link = o.VNI, o.Port, o.GBP, u.Index
	t.mtu = u.MTU
	if o.MTU != 0 {
		t.mtu = min(o.MTU, u.MTU) // a cluster's option may be more than this host's interface can
	}
	if t.mtu -= overhead; t.mtu < least {
		return nil, fmt.Errorf("vxlan: interface %s has an MTU of %d, and a tunnel of %s needs %d: ip link set %s mtu 1500", u.Link, u.MTU, r.Network, least+overhead, u.Link)
	}
	t.mac = deriveMAC(identity, t.name)
	t.reset()
	return t, nil
}

// deriveMAC is a host's address on a device: locally administered, unicast,
// and the same whenever the device is made again.
func deriveMAC(identity, device string) (m link.MAC) {
	sum := sha256.Sum256([]byte("vxlan\x00" + device + "\x00" + identity))
	copy(m[:], sum[:])
	m[0] = m[0]&^1 | 2
	return m
}

// Info is what peers and the packet filter must know. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{Link: d.tunnels[0].name, Protocol: unix.IPPROTO_UDP, Port: d.opts.Port}
	for at, t := range d.tunnels {
		if at > 0 {
			i.MoreLinks = append(i.MoreLinks, t.name)
		}
		if i.MTU == 0 || t.mtu < i.MTU {
			i.MTU = t.mtu
		}
		if t.v4() {
			i.Data.V4 = marshalData(d.opts.VNI, t.mac)
		} else {
			i.Data.V6 = marshalData(d.opts.VNI, t.mac)
		}
	}
	return i
}

// Forget makes the next Sync read the kernel and repair it.
func (d *Device) Forget() { d.unread = true }

// Writes counts what the device changed in the kernel.
func (d *Device) Writes() uint64 { return d.h.Writes() }

// Close lets go of the devices and leaves them forwarding.
func (d *Device) Close() error {
	d.h.Close()
	return nil
}

// ours matches the names that flannel and this driver give to devices.
var ours = regexp.MustCompile(`^flannel(-v6)?\.[0-9]+$`)

// sweep removes what former configurations left: devices of ours that nobody
// uses, and that no rule of the packet filter covers.
func (d *Device) sweep() error {
	all, err := d.h.Links("vxlan")
	errs := []error{err}
	for _, l := range all {
		used := slices.ContainsFunc(d.tunnels, func(t *tunnel) bool { return t.name == l.Name })
		if !used && ours.MatchString(l.Name) {
			errs = append(errs, d.h.DeleteLink(l.Index))
		}
	}
	return errors.Join(errs...)
}

// Cleanup removes every device of ours, and the routes that bypass them.
func (drv Driver) Cleanup(ctx context.Context) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Record(drv.Own); err != nil {
		return err
	}
	var errs []error
	links, err := h.Links("vxlan")
	errs = append(errs, err)
	for _, l := range links {
		if ours.MatchString(l.Name) && ctx.Err() == nil {
			errs = append(errs, h.DeleteLink(l.Index))
		}
	}
	routes, err := h.Routes(link.RouteFilter{Protocol: link.Protocol})
	errs = append(errs, err)
	b := h.Batch(func(i int, err error) {
		errs = append(errs, fmt.Errorf("remove route to %s: %w", routes[i].Dst, err))
	})
	for _, r := range routes {
		b.DelRoute(r)
	}
	errs = append(errs, b.Flush(), ctx.Err())
	return errors.Join(errs...)
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
