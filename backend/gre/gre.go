// Package gre carries the pod network in GRE tunnels (RFC 2784, RFC 2890).
package gre

import (
	"context"
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Type is the backend's name in the configuration and in leases.
const Type = "gre"

// outerTTL is that of packets on the underlay: of its hops, not of the pod's.
const outerTTL = 64

// Driver makes GRE devices in the calling thread's network namespace. With
// KeepOthers set, networks share the one external device that a namespace can
// have: its MTU is then the least of theirs, and they must agree on Checksum.
type Driver struct{ routed.Options }

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host: of each family one device for
// all peers, or in mesh mode one for each peer.
type Device struct {
	*routed.Device[struct{}]
	opts    options
	tunnels []*routed.Tunnel // IPv4 first
	mesh    *mesh            // nil: not in that mode
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := parseOptions(n)
	return err
}

// Open makes the devices or adopts those that are there and fit. See
// backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, _ string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(n)
	if err != nil {
		return nil, err
	}
	d := &Device{opts: opts}
	for _, r := range n.Ranges {
		t := &routed.Tunnel{Range: r, Shared: drv.KeepOthers}
		if !opts.Mesh {
			t.Name = externalName(t.Is4())
		}
		if t.Local, err = routed.Local(Type, r, u); err != nil {
			return nil, err
		}
		if t.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, opts.MTU, opts.overhead()); err != nil {
			return nil, err
		}
		d.tunnels = append(d.tunnels, t)
	}
	kind := d.external()
	if opts.Mesh {
		d.mesh = newMesh(opts, drv.KeepOthers)
		kind = d.mesh.kind()
	}
	if d.Device, err = routed.Open(kind, d.tunnels, u, drv.Options); err != nil {
		return nil, err
	}
	return d, nil
}

// Sync makes the kernel carry traffic to exactly these peers. See
// backend.Device.
func (d *Device) Sync(ctx context.Context, own *subnet.Lease, peers []backend.Peer) error {
	err := d.Device.Sync(ctx, own, peers)
	if d.mesh != nil && ctx.Err() == nil {
		err = errors.Join(append(split(err), d.mesh.prune()...)...)
	}
	return err
}

// split lists what a Sync joined, so that joining more leaves the list flat.
func split(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// Info is what peers and the packet filter must know. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{Protocol: unix.IPPROTO_GRE, Plain: d.opts.Direct != routed.Never}
	data := marshalData(d.opts.header)
	for _, t := range d.tunnels {
		switch {
		case d.mesh != nil:
			i.Link = meshPrefix + "*"
		case i.Link == "":
			i.Link = t.Name
		default:
			i.MoreLinks = append(i.MoreLinks, t.Name)
		}
		if i.MTU == 0 || t.MTU < i.MTU {
			i.MTU = t.MTU
		}
		if t.Is4() {
			i.Data.V4 = data
		} else {
			i.Data.V6 = data
		}
	}
	return i
}

// parse refuses a peer whose packets would be others than ours.
func (o options) parse(t *routed.Tunnel, l *subnet.Lease) (struct{}, error) {
	return struct{}{}, checkData(t.Data(l), o.header)
}

// noGRE names what a kernel without GRE lacks.
func noGRE(is4 bool, err error) error {
	if is4 {
		return fmt.Errorf("%w: the kernel has no GRE (CONFIG_NET_IPGRE, module ip_gre)", err)
	}
	return fmt.Errorf("%w: the kernel has no GRE over IPv6 (CONFIG_IPV6_GRE, module ip6_gre)", err)
}

// ours tells devices of either mode by their names.
func ours(l *link.Link) bool { return isExternal(l) || isMesh(l) }

// Cleanup removes every device of ours.
func (drv Driver) Cleanup(ctx context.Context) error {
	return errors.Join(
		routed.RemoveDevices(ctx, drv.Own, link.KindGRE, ours),
		routed.RemoveDevices(ctx, drv.Own, link.KindGREv6, ours))
}
