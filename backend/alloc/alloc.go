// Package alloc gives each host a subnet of the network but moves no packets:
// how they cross the underlay is somebody else's business (a router's, a
// cloud's, an admin's static routes).
package alloc

import (
	"context"
	"errors"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/subnet"
)

// Type is the backend's name in the configuration and in leases.
const Type = "alloc"

// Driver makes devices that do nothing.
type Driver struct{ routed.Options }

var _ backend.Driver = Driver{}

// Device is one network on this host.
type Device struct {
	mtu     int
	ns      *netns.NS
	options routed.Options
	swept   bool // the routes of a former backend are gone
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := routed.ParseMTU(n)
	return err
}

// Open leaves the host as it is. See backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	asked, err := routed.ParseMTU(n)
	if err != nil {
		return nil, err
	}
	d := &Device{options: drv.Options, swept: drv.KeepOthers}
	for _, r := range n.Ranges {
		mtu, err := routed.MTU(Type, r, u.Link, u.MTU, asked, routed.Overhead{})
		if err != nil {
			return nil, err
		}
		d.mtu = mtu
	}
	if d.ns, err = netns.Current(); err != nil {
		return nil, err
	}
	return d, nil
}

// Info says that there is no tunnel, and that pods' packets cross the underlay
// as they are, if they cross it at all.
func (d *Device) Info() backend.Info { return backend.Info{MTU: d.mtu, Plain: true} }

// Sync removes routes that another backend has left, and reports peers that
// have another kind of network. See backend.Device. flannel's hosts tell no
// type.
func (d *Device) Sync(ctx context.Context, _ *subnet.Lease, peers []backend.Peer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var errs []error
	if !d.swept {
		err := d.ns.Do(func() error { return routed.RemoveRoutes(ctx, d.options.Own) })
		errs, d.swept = append(errs, err), err == nil
	}
	for _, p := range peers {
		if p.Lease.Type != Type && p.Lease.Type != "" {
			errs = append(errs, &backend.PeerError{Peer: p.Lease,
				Err: routed.OtherType(p.Lease, Type)})
		}
	}
	return errors.Join(errs...)
}

// Forget has nothing to forget.
func (d *Device) Forget() {}

// Close lets go of nothing that anybody would miss.
func (d *Device) Close() error { return d.ns.Close() }

// Cleanup has nothing to remove.
func (Driver) Cleanup(ctx context.Context) error { return ctx.Err() }
