// Package ipip carries the pod network in tunnels of bare IP in IP, the same
// on the wire, in the lease and in the kernel as flannel's backend of that
// name.
package ipip

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
const Type = "ipip"

// Names of the devices. flannel has the first; it knows no IPv6 here.
const (
	name4 = "flannel.ipip"
	name6 = "flannel-v6.ipip"
)

// outerTTL is that of packets on an IPv6 underlay.
const outerTTL = 64

// overhead is one IP header.
var overhead = routed.Overhead{V4: 20, V6: 40}

// Driver makes IPIP devices in the calling thread's network namespace.
type Driver struct{ routed.Options }

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host: one for each family.
type Device struct {
	*routed.Device[struct{}]
	opts    options
	tunnels []*routed.Tunnel // IPv4 first
}

var _ backend.Device = (*Device)(nil)

// options are the IPIP options of the configuration's Backend.
type options struct {
	MTU    int // of the underlay; 0: the interface's
	Direct routed.Direct
}

func parseOptions(n subnet.Config) (options, error) {
	o := options{Direct: routed.ByWay}
	err := routed.ParseOptions(n, "DirectRouting, MTU", func(name string, f routed.Option) (bool, error) {
		switch name {
		case "directrouting":
			return true, f.Direct(&o.Direct)
		case "mtu":
			return true, f.Size(&o.MTU, n.Ranges, overhead)
		}
		return false, nil
	})
	return o, err
}

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
	for _, r := range n.Ranges {
		t := &routed.Tunnel{Range: r, Name: name4}
		if !t.Is4() {
			t.Name = name6
		}
		if t.Local, err = routed.Local(Type, r, u); err != nil {
			return nil, err
		}
		if t.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, opts.MTU, overhead); err != nil {
			return nil, err
		}
		d.tunnels = append(d.tunnels, t)
	}
	if d.Device, err = routed.Open(d.kind(), d.tunnels, u, drv.Options); err != nil {
		return nil, err
	}
	return d, nil
}

// kind is what is IPIP's own: an IPv4 packet goes to the gateway of its route,
// as flannel's. IPv6 has no such gateways on another interface than that of the
// underlay, so the route says more.
func (d *Device) kind() routed.Kind[struct{}] {
	return routed.Kind[struct{}]{
		Type:   Type,
		Ensure: ensure,
		Route: func(t *routed.Tunnel, s *routed.Side[struct{}]) link.Route {
			if !t.Is4() {
				return link.Route{Encap: link.Encap{Dst: s.Public, Src: t.Local, TTL: outerTTL}}
			}
			return link.Route{Via: s.Public, OnLink: true}
		},
		Ours: ours, Direct: d.opts.Direct,
	}
}

// Info is what peers and the packet filter must know. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{Link: d.tunnels[0].Name, Protocol: unix.IPPROTO_IPIP, Plain: d.opts.Direct != routed.Never}
	for at, t := range d.tunnels {
		if at > 0 {
			i.MoreLinks = append(i.MoreLinks, t.Name)
		}
		if i.MTU == 0 || t.MTU < i.MTU {
			i.MTU = t.MTU
		}
	}
	return i
}

// ours tells devices by the names that flannel and this driver give them.
func ours(l *link.Link) bool {
	return l.Name == name4 && l.Kind == link.KindIPIP || l.Name == name6 && l.Kind == link.KindIPIPv6
}

// ensure adopts, repairs, replaces or makes a tunnel's device, and switches it
// on.
func ensure(h *link.Handle, t *routed.Tunnel) error {
	spec := link.IPIP{V6: !t.Is4(), External: !t.Is4()}
	if t.Is4() {
		spec.Local = t.Local
	}
	l, err := h.LinkByName(t.Name)
	switch {
	case err == nil && (l.IPIP == nil || *l.IPIP != spec):
		if !ours(&l) {
			return fmt.Errorf("interface %s is of another kind (%s): delete it (ip link del %s)", l.Name, l.Kind, l.Name)
		}
		if err := h.DeleteLink(l.Index); err != nil {
			return err
		}
		l, err = add(h, t, spec)
	case errors.Is(err, link.ErrNoLink):
		l, err = add(h, t, spec)
	}
	if err != nil {
		return err
	}
	return t.SetUp(h, l)
}

// add makes the device.
func add(h *link.Handle, t *routed.Tunnel, spec link.IPIP) (link.Link, error) {
	err := h.AddIPIP(t.Name, t.MTU, spec)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && t.Is4():
		return link.Link{}, fmt.Errorf("%w: the kernel has no IPIP (CONFIG_NET_IPIP, module ipip)", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return link.Link{}, fmt.Errorf("%w: the kernel has no IPv6 in IPv6 (CONFIG_IPV6_TUNNEL, module ip6_tunnel)", err)
	case errors.Is(err, unix.EEXIST):
		return link.Link{}, errors.Join(inTheWay(h, spec), err)
	case err != nil:
		return link.Link{}, err
	}
	return h.LinkByName(t.Name)
}

// inTheWay says who gets the tunnel's packets already.
func inTheWay(h *link.Handle, spec link.IPIP) error {
	all, err := h.Links(spec.Kind())
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.IPIP != nil && l.IPIP.External == spec.External && l.IPIP.Local == spec.Local {
			return fmt.Errorf("%s device %s takes all tunnel packets of this host already, and IPIP has no number that would tell two networks apart: delete it (ip link del %s), or give one of the networks another Backend such as vxlan",
				l.Kind, l.Name, l.Name)
		}
	}
	return nil
}

// Cleanup removes the devices.
func (drv Driver) Cleanup(ctx context.Context) error {
	return errors.Join(
		routed.RemoveDevices(ctx, drv.Own, link.KindIPIP, ours),
		routed.RemoveDevices(ctx, drv.Own, link.KindIPIPv6, ours))
}
