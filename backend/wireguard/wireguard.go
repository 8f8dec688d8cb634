// Package wireguard carries the pod network in WireGuard tunnels, encrypted,
// the same on the wire and in the lease as flannel's backend of that name.
package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Type is the backend's name in the configuration and in leases.
const Type = "wireguard"

// Where flannel has its key, and wg(8) looks for userspace devices.
const (
	DefaultKeyFile = "/run/flannel/wgkey"
	DefaultSockets = "/var/run/wireguard"
)

// Names of the devices, flannel's.
const (
	deviceName   = "flannel-wg"
	deviceNameV6 = "flannel-wg-v6"
)

// Driver makes WireGuard devices in the calling thread's network namespace. A
// program that uses it must run userspace.Keep as keeper userspace.Kind: see
// package outlive.
type Driver struct {
	routed.Options
	// KeyFile is where this host's private key is kept; "": DefaultKeyFile.
	KeyFile string
	// Sockets is the directory of userspace devices' sockets; "": DefaultSockets.
	Sockets string
	// Userspace: do without the kernel's WireGuard.
	Userspace bool
}

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host.
type Device struct {
	*routed.Device[wg.Key]
	tunnels []*routed.Tunnel // IPv4 first
	devices []*device        // one for each family, or one for all
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := parseOptions(n)
	return err
}

// Open makes the devices, named as flannel's, or adopts those that are there.
// The key is made the first time, and kept: who removes its file gets a new
// one at the next Open. See backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, _ string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(n)
	if err != nil {
		return nil, err
	}
	d := &Device{}
	if err := d.plan(n, u, opts); err != nil {
		return nil, err
	}
	private, isNew, err := loadKey(cmp.Or(drv.KeyFile, DefaultKeyFile), drv.Log)
	if err != nil {
		return nil, err
	}
	public, err := private.Public()
	if err != nil {
		return nil, err
	}
	for _, dev := range d.devices {
		dev.private, dev.public, dev.newKey, dev.userspaceOnly = private, public, isNew, drv.Userspace
		dev.log = drv.Log
		dev.socket = wg.Socket{Path: drv.socket(dev.name)}
		if dev.ns, err = netns.Current(); err != nil {
			d.close()
			return nil, err
		}
	}
	if d.Device, err = routed.Open(d.kind(), d.tunnels, u, drv.Options); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (drv Driver) socket(name string) string {
	return filepath.Join(cmp.Or(drv.Sockets, DefaultSockets), name+".sock")
}

// plan decides which devices there are, and who serves which family.
func (d *Device) plan(n subnet.Config, u backend.Underlay, o options) error {
	for _, r := range n.Ranges {
		t := &routed.Tunnel{Range: r, Name: deviceName}
		local := r // of the family that packets leave by
		for _, other := range n.Ranges {
			if o.Mode == onlyIPv4 && other.Network.Addr().Is4() || o.Mode == onlyIPv6 && other.Network.Addr().Is6() {
				local = other
			}
		}
		var err error
		if t.Local, err = routed.Local(Type, local, u); err != nil {
			return err
		}
		if t.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, o.MTU, overhead); err != nil {
			return err
		}
		port := o.Port
		if o.Mode == separate && !t.Is4() {
			t.Name, port = deviceNameV6, o.PortV6
		}
		if len(d.devices) == 0 || o.Mode == separate {
			d.devices = append(d.devices, newDevice(t.Name, port, t.MTU, o, u))
		}
		dev := d.devices[len(d.devices)-1]
		d.tunnels, dev.tunnels = append(d.tunnels, t), append(dev.tunnels, t)
	}
	return nil
}

// of is the device that serves a tunnel.
func (d *Device) of(t *routed.Tunnel) *device { return d.devices[min(t.At, len(d.devices)-1)] }

// kind is what is WireGuard's own: a peer is a key, and what may come from it.
func (d *Device) kind() routed.Kind[wg.Key] {
	return routed.Kind[wg.Key]{
		Type:  Type,
		Claim: "PublicKey", Cure: "remove its key file",
		Parse: func(t *routed.Tunnel, l *subnet.Lease) (wg.Key, error) {
			return parseData(t.Data(l), d.of(t).public)
		},
		Ensure: func(h *link.Handle, t *routed.Tunnel) error { return d.of(t).ensure(h, t) },
		Peers: func(ctx context.Context, t *routed.Tunnel, served iter.Seq[*routed.Side[wg.Key]]) error {
			return d.of(t).peers(ctx, t, served)
		},
		Ours: ours,
	}
}

// ours tells devices by the names that flannel and this driver give them.
func ours(l *link.Link) bool {
	return (l.Name == deviceName || l.Name == deviceNameV6) && (l.Kind == link.KindWireGuard || l.Kind == link.KindTUN)
}

// Info is what peers and the packet filter must know. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{Link: d.devices[0].name, Protocol: unix.IPPROTO_UDP}
	for at, dev := range d.devices {
		if at > 0 {
			i.MoreLinks = append(i.MoreLinks, dev.name)
		}
		i.Ports = append(i.Ports, dev.port)
		if dev.userspace() {
			i.Note = "userspace"
		}
	}
	for _, t := range d.tunnels {
		if i.MTU == 0 || t.MTU < i.MTU {
			i.MTU = t.MTU
		}
		if data := marshalData(d.of(t).public); t.Is4() {
			i.Data.V4 = data
		} else {
			i.Data.V6 = data
		}
	}
	return i
}

// Writes counts what the device changed in the kernel, peers included.
func (d *Device) Writes() uint64 {
	n := d.Device.Writes()
	for _, dev := range d.devices {
		n += dev.writes
	}
	return n
}

// Close lets go of the devices and leaves them forwarding.
func (d *Device) Close() error { return errors.Join(d.Device.Close(), d.close()) }

func (d *Device) close() error {
	var errs []error
	for _, dev := range d.devices {
		errs = append(errs, dev.close())
	}
	return errors.Join(errs...)
}

// Cleanup removes every device of ours; the processes of those in userspace
// end with them. The key stays, as the host's identity does.
func (drv Driver) Cleanup(ctx context.Context) error {
	err := routed.RemoveDevices(ctx, drv.Own, "", ours)
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	for _, name := range []string{deviceName, deviceNameV6} {
		s := wg.Socket{Path: drv.socket(name)}
		if gone := s.Gone(ctx); gone != nil {
			err = errors.Join(err, gone)
			continue
		}
		if rm := os.Remove(s.Path); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove what a userspace WireGuard left: %w", rm))
		}
	}
	return err
}

// patience bounds how long a process may take to start or to end.
const patience = 5 * time.Second
