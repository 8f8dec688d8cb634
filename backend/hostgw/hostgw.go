// Package hostgw carries the pod network over the underlay as it is: the route
// to a peer's subnet has the peer itself as its gateway, which is possible
// between hosts of one link. Routes and leases are as those of flannel's
// backend host-gw.
package hostgw

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
const Type = "host-gw"

// anchor is an interface that carries nothing but an address of this host's
// subnet, for probes, and whoever else wants to reach the host by it. On lo
// nothing would tell that the address is ours to remove.
const anchor = "flannel.host-gw"

// Driver sets routes in the calling thread's network namespace.
type Driver struct{ routed.Options }

var _ backend.Driver = Driver{}

// Device is one network on this host.
type Device struct {
	*routed.Device[struct{}]
	mtu int
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := routed.ParseMTU(n)
	return err
}

// Open makes the interface for the address. See backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	asked, err := routed.ParseMTU(n)
	if err != nil {
		return nil, err
	}
	for i, a := range u.Addrs {
		if i < len(u.PublicIPs) && u.PublicIPs[i] != a {
			return nil, fmt.Errorf("host-gw: this host is %s to others but has %s: behind address translation nobody can route to it, use another Backend such as vxlan or start with --public-ip=%s", u.PublicIPs[i], a, a)
		}
	}
	d := &Device{}
	var families []*routed.Tunnel
	for _, r := range n.Ranges {
		t := &routed.Tunnel{Range: r, Name: anchor, Shared: drv.KeepOthers}
		if t.Local, err = routed.Local(Type, r, u); err != nil {
			return nil, err
		}
		if t.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, asked, routed.Overhead{}); err != nil {
			return nil, err
		}
		d.mtu = t.MTU // both families have the same
		families = append(families, t)
	}
	kind := routed.Kind[struct{}]{Type: Type, Near: true, Ensure: func(h *link.Handle, t *routed.Tunnel) error {
		if err := ensure(h, t); err != nil || len(families) > 1 || t.Shared {
			return err
		}
		return drop(h, t)
	}}
	if d.Device, err = routed.Open(kind, families, u, drv.Options); err != nil {
		return nil, err
	}
	return d, nil
}

// Info says that there is no tunnel. See backend.Device.
func (d *Device) Info() backend.Info { return backend.Info{Link: anchor, MTU: d.mtu, Plain: true} }

// ours tells the interface, which neither flannel nor an engine has.
func ours(l *link.Link) bool { return l.Name == anchor && l.Kind == link.KindAnchor }

// ensure adopts, repairs or makes the interface and its address of one family.
func ensure(h *link.Handle, t *routed.Tunnel) error {
	l, err := h.LinkByName(anchor)
	switch {
	case err == nil && !ours(&l):
		return fmt.Errorf("interface %s is of another kind (%s): delete it (ip link del %s)", anchor, l.Kind, anchor)
	case errors.Is(err, link.ErrNoLink):
		if err = h.AddAnchor(anchor, t.MTU); err == nil {
			l, err = h.LinkByName(anchor)
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: the kernel has no bridges (CONFIG_BRIDGE, module bridge)", err)
		}
	}
	if err != nil {
		return err
	}
	return t.SetUp(h, l)
}

// drop removes addresses of the family that the network has no more.
func drop(h *link.Handle, t *routed.Tunnel) error {
	have, err := h.Addresses(t.Index)
	for _, a := range have {
		if ip := a.Prefix.Addr(); ip.Is4() != t.Is4() && !ip.IsLinkLocalUnicast() {
			err = errors.Join(err, h.DelAddress(t.Index, a.Prefix))
		}
	}
	return err
}

// Cleanup removes the interface.
func (drv Driver) Cleanup(ctx context.Context) error {
	return routed.RemoveDevices(ctx, drv.Own, link.KindAnchor, ours)
}
