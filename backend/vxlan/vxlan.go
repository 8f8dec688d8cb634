// Package vxlan carries the pod network in the kernel's VXLAN tunnels, the same
// on the wire, in the lease and in the kernel as flannel's backend of that
// name.
package vxlan

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Type is the backend's name in the configuration and in leases.
const Type = "vxlan"

// Driver makes VXLAN devices in the calling thread's network namespace.
type Driver struct {
	routed.Options
}

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host: one for each family.
type Device struct {
	*routed.Device[link.MAC]
	opts  options
	vteps []*vtep // IPv4 first
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
	d := &Device{opts: opts}
	var tunnels []*routed.Tunnel
	for _, r := range n.Ranges {
		v, err := newVTEP(r, opts, u, identity)
		if err != nil {
			return nil, err
		}
		d.vteps = append(d.vteps, v)
		tunnels = append(tunnels, v.Tunnel)
	}
	if d.Device, err = routed.Open(d.kind(), tunnels, u, drv.Options); err != nil {
		return nil, err
	}
	return d, nil
}

// kind is what is VXLAN's own: a peer is a MAC that its address, the network
// address of its subnet, belongs to.
func (d *Device) kind() routed.Kind[link.MAC] {
	return routed.Kind[link.MAC]{
		Type:  Type,
		Claim: "VtepMAC", Cure: "delete its device",
		Parse: func(t *routed.Tunnel, l *subnet.Lease) (link.MAC, error) {
			return parseData(t.Data(l), d.opts.VNI, d.vteps[t.At].mac)
		},
		Ensure: func(h *link.Handle, t *routed.Tunnel) error { return d.vteps[t.At].ensure(h) },
		Route: func(_ *routed.Tunnel, s *routed.Side[link.MAC]) link.Route {
			return link.Route{Via: s.Subnet.Addr(), OnLink: true}
		},
		Layer2: func(_ *routed.Tunnel, s *routed.Side[link.MAC]) (link.FDB, link.Neighbour) {
			return link.FDB{MAC: s.Data, Dst: s.Public}, link.Neighbour{Addr: s.Subnet.Addr(), MAC: s.Data}
		},
		LinkKind: linkKind, Ours: ours, Direct: d.opts.Direct,
	}
}

// newVTEP plans one family's tunnel.
func newVTEP(r subnet.Range, o options, u backend.Underlay, identity string) (*vtep, error) {
	v := &vtep{Tunnel: &routed.Tunnel{Range: r, Name: fmt.Sprintf("flannel.%d", o.VNI)}}
	if !v.Is4() {
		v.Name = fmt.Sprintf("flannel-v6.%d", o.VNI)
	}
	var err error
	if v.Local, err = routed.Local(Type, r, u); err != nil {
		return nil, err
	}
	if v.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, o.MTU, overhead); err != nil {
		return nil, err
	}
	v.spec = link.Vxlan{VNI: o.VNI, Port: o.Port, GBP: o.GBP, Local: v.Local}
	v.mac = deriveMAC(identity, v.Name)
	return v, nil
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
	i := backend.Info{Link: d.vteps[0].Name, Protocol: unix.IPPROTO_UDP, Ports: []uint16{d.opts.Port}, Plain: d.opts.Direct != routed.Never}
	for at, v := range d.vteps {
		if at > 0 {
			i.MoreLinks = append(i.MoreLinks, v.Name)
		}
		if i.MTU == 0 || v.MTU < i.MTU {
			i.MTU = v.MTU
		}
		if v.Is4() {
			i.Data.V4 = marshalData(d.opts.VNI, v.mac)
		} else {
			i.Data.V6 = marshalData(d.opts.VNI, v.mac)
		}
	}
	return i
}

const linkKind = "vxlan"

var names = regexp.MustCompile(`^flannel(-v6)?\.[0-9]+$`)

// ours tells devices by the names that flannel and this driver give them.
func ours(l *link.Link) bool { return names.MatchString(l.Name) }

// Cleanup removes every device of ours.
func (drv Driver) Cleanup(ctx context.Context) error {
	return routed.RemoveDevices(ctx, drv.Own, linkKind, ours)
}
