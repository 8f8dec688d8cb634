// Package udp carries the pod network as bare IP packets in UDP, through TUN
// devices that a process of its own reads: the same on the wire, in the lease
// and in the kernel as flannel's backend of that name.
package udp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// Type is the backend's name in the configuration and in leases.
const Type = "udp"

// The devices' names, by family. The first is flannel's.
const (
	name4 = "flannel0"
	name6 = "flannel0-v6"
)

// Driver makes TUN devices in the calling thread's network namespace, and
// starts a keeper for each: the program must call outlive.Main with Keep.
type Driver struct {
	routed.Options
	// Dir is where keepers listen; "": /run/flannel. It is made if need be.
	Dir string
}

var _ backend.Driver = Driver{}

// Device is one network's tunnels on this host: one for each family.
type Device struct {
	*routed.Device[struct{}]
	port    uint16
	dir     string
	ns      *netns.NS
	tunnels []*routed.Tunnel // IPv4 first
	log     *slog.Logger     // nil: quiet
	kept    map[string]bool  // devices that had a keeper under this Device
}

var _ backend.Device = (*Device)(nil)

// Check says what is wrong with the configuration. See backend.Driver.
func (Driver) Check(n subnet.Config) error {
	_, err := parseOptions(n)
	return err
}

// Open adopts the devices whose keepers fit, or makes them. See backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, _ string) (_ backend.Device, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := parseOptions(n)
	if err != nil {
		return nil, err
	}
	d := &Device{port: opts.Port, dir: drv.dir(), log: drv.Log, kept: map[string]bool{}}
	for _, r := range n.Ranges {
		t := &routed.Tunnel{Range: r, Name: name4}
		if r.Network.Addr().Is6() {
			t.Name = name6
		}
		if t.Local, err = routed.Local(Type, r, u); err != nil {
			return nil, err
		}
		if t.MTU, err = routed.MTU(Type, r, u.Link, u.MTU, opts.MTU, overhead()); err != nil {
			return nil, err
		}
		d.tunnels = append(d.tunnels, t)
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	if d.ns, err = netns.Current(); err != nil {
		return nil, err
	}
	d.Device, err = routed.Open(routed.Kind[struct{}]{
		Type: Type, Untyped: true, // flannel's udp tells none
		Ensure:   d.ensure,
		Peers:    d.tell,
		Ours:     ours,
		LinkKind: linkKind,
	}, d.tunnels, u, drv.Options)
	if err != nil {
		return nil, errors.Join(err, d.ns.Close())
	}
	return d, nil
}

func (drv Driver) dir() string {
	if drv.Dir != "" {
		return drv.Dir
	}
	return "/run/flannel"
}

const linkKind = "tun"

// ours tells our devices, or flannel's, from other TUN devices.
func ours(l *link.Link) bool { return l.Name == name4 || l.Name == name6 }

// Info is what peers and the packet filter must know. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{Protocol: unix.IPPROTO_UDP, Ports: []uint16{d.port}}
	for at, t := range d.tunnels {
		if at == 0 {
			i.Link, i.MTU = t.Name, t.MTU
		} else {
			i.MoreLinks = append(i.MoreLinks, t.Name)
			i.MTU = min(i.MTU, t.MTU)
		}
	}
	return i
}

// Close lets go of the devices; their keepers go on.
func (d *Device) Close() error { return errors.Join(d.Device.Close(), d.ns.Close()) }

// socket is where a device's keeper listens. Namespaces may share the
// directory.
func socket(dir, device string, ns *netns.NS) (string, error) {
	id, err := ns.ID()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%s.%d.sock", device, id.Ino)), nil
}

// ensure adopts the device of a keeper that fits, or replaces it.
func (d *Device) ensure(h *link.Handle, t *routed.Tunnel) error {
	// A keeper that does not answer is waited for, and so is its successor.
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	path, err := socket(d.dir, t.Name, d.ns)
	if err != nil {
		return err
	}
	local := netip.AddrPortFrom(t.Local, d.port)
	l, err := h.LinkByName(t.Name)
	var why error // there must be a keeper again
	switch {
	case errors.Is(err, link.ErrNoLink):
		if d.kept[t.Name] {
			why = errors.New("it had ended, or somebody had deleted the device")
		}
		l, err = d.start(ctx, h, t, local, path)
	case err != nil:
	case l.Kind != linkKind:
		err = fmt.Errorf("%s is a device of another kind (%s) and somebody else's: rename or delete it (ip link del %s)", t.Name, l.Kind, t.Name)
	default:
		if why = unfit(ctx, path, &l, local); why == nil {
			break
		}
		if err = remove(ctx, h, &l, path); err == nil {
			l, err = d.start(ctx, h, t, local, path)
		}
	}
	if err != nil {
		return err
	}
	if d.kept[t.Name] = true; why != nil {
		outlive.Restarted(d.log, t.Name, why)
	}
	if err := t.SetUp(h, l); err != nil {
		return err
	}
	return network(h, t)
}

// unfit says why a device has no keeper, or none that does just what it must.
func unfit(ctx context.Context, path string, l *link.Link, local netip.AddrPort) error {
	c, err := connect(ctx, l.Name, path)
	if err != nil {
		return err
	}
	defer c.close()
	switch {
	case c.Version != version:
		return fmt.Errorf("it was of version %d, this program's is of %d", c.Version, version)
	case c.Index != l.Index:
		return errors.New("it had another device")
	case c.Local != local:
		return fmt.Errorf("it was to listen at %s and listened at %s", local, c.Local)
	}
	return nil
}

// remove deletes a device and waits until its keeper, which holds the port,
// has ended.
func remove(ctx context.Context, h *link.Handle, l *link.Link, path string) error {
	c, err := connect(ctx, l.Name, path)
	if err == nil {
		defer c.close()
	}
	if err := h.DeleteLink(l.Index); err != nil {
		return err
	}
	if c != nil && c.Index == l.Index {
		if err := c.wait(); err != nil {
			return fmt.Errorf("replace %s: %w", l.Name, err)
		}
	}
	return nil
}

// start starts a keeper, which makes the device. One that is there has another
// device, which somebody renamed, or none and is about to end.
func (d *Device) start(ctx context.Context, h *link.Handle, t *routed.Tunnel, local netip.AddrPort, path string) (link.Link, error) {
	if c, err := connect(ctx, t.Name, path); err == nil {
		if err = h.DeleteLink(c.Index); err == nil {
			err = c.wait()
		}
		c.close()
		if err != nil {
			return link.Link{}, fmt.Errorf("make %s: %w", t.Name, err)
		}
	}
	err := d.ns.Do(func() error { return outlive.Start(ctx, Kind, t.Name, local.String(), path) })
	if err != nil {
		return link.Link{}, err
	}
	return h.LinkByName(t.Name)
}

// network leads the whole network to the device, as flannel does: its keeper
// answers what is for a subnet that nobody has, which would leave by the
// host's default route else. The route is marked as those are that the kernel
// makes for an address, which this one stands for.
func network(h *link.Handle, t *routed.Tunnel) error {
	want := link.Route{Dst: t.Range.Network, Link: t.Index, Metric: lastMetric, Protocol: unix.RTPROT_KERNEL}
	routes, err := h.Routes(link.RouteFilter{Link: t.Index, Protocol: want.Protocol})
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r == want {
			return nil
		}
	}
	b := h.Batch(func(_ int, e error) { err = fmt.Errorf("set route to %s: %w", want.Dst, e) })
	b.SetRoute(want)
	return errors.Join(b.Flush(), err)
}

// lastMetric lets every other route to the same network go first.
const lastMetric = 1<<31 - 1

// tell gives a tunnel's keeper its peers.
func (d *Device) tell(ctx context.Context, t *routed.Tunnel, served iter.Seq[*routed.Side[struct{}]]) error {
	path, err := socket(d.dir, t.Name, d.ns)
	if err != nil {
		return err
	}
	c, err := connect(ctx, t.Name, path)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	defer c.close()
	err = c.tell(encodeTable(func(yield func(netip.Prefix, netip.Addr) bool) {
		for s := range served {
			if !yield(s.Subnet, s.Public) {
				return
			}
		}
	}))
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

// Cleanup removes the devices, with which their keepers end.
func (drv Driver) Cleanup(ctx context.Context) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Record(drv.Own); err != nil {
		return err
	}
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	var errs []error
	for _, name := range []string{name4, name6} {
		path, err := socket(drv.dir(), name, ns)
		if err != nil {
			return err
		}
		l, err := h.LinkByName(name)
		switch {
		case err == nil && l.Kind == linkKind:
			err = remove(ctx, h, &l, path)
		case errors.Is(err, link.ErrNoLink):
			err = nil
		}
		if err == nil {
			if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, ctx.Err())...)
}
