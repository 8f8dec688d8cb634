package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/kernel/wireguard/userspace"
	"golang.org/x/sys/unix"
)

// implementation is who runs a device: the kernel, or a process of ours.
type implementation interface {
	Read(ctx context.Context) (wg.State, error)
	Write(ctx context.Context, c wg.Change) error
	Close() error
}

var (
	_ implementation = (*wg.Kernel)(nil)
	_ implementation = wg.Socket{}
)

// device is one WireGuard device.
type device struct {
	name    string
	port    uint16
	mtu     int
	opts    options
	publics []netip.Addr // of this host
	private wg.Secret
	public  wg.Key
	newKey  bool      // nobody can have a session with it yet
	socket  wg.Socket // of the process, if it is run by one
	// userspaceOnly: the kernel's WireGuard is not to be used.
	userspaceOnly bool
	ns            *netns.NS
	log           *slog.Logger // nil: quiet

	// tunnels are those that it serves; usable of them are the ones that
	// could be set up.
	tunnels, usable []*routed.Tunnel

	impl    implementation // nil: nobody yet
	link    link.Link
	lost    bool              // sessions that peers may believe in
	entries map[wg.Key]*entry // the peers that it has, and is to have
	round   uint              // of telling it peers
	told    []*entry          // in this round
	writes  uint64
}

func newDevice(name string, port uint16, mtu int, o options, u backend.Underlay) *device {
	return &device{name: name, port: port, mtu: mtu, opts: o, publics: u.PublicIPs, entries: map[wg.Key]*entry{}}
}

// userspace reports whether a process of ours runs the device.
func (d *device) userspace() bool {
	_, ok := d.impl.(wg.Socket)
	return ok
}

func (d *device) close() error {
	var errs []error
	if d.impl != nil {
		errs = append(errs, d.impl.Close())
		d.impl = nil
	}
	if d.ns != nil {
		errs = append(errs, d.ns.Close())
		d.ns = nil
	}
	return errors.Join(errs...)
}

// ensure makes the device be as it must, but for its peers, which it reads,
// and gives it what one of its tunnels needs. See routed.Kind.
func (d *device) ensure(h *link.Handle, t *routed.Tunnel) error {
	if t == d.tunnels[0] {
		// A process that does not answer is waited for, and so is its successor.
		ctx, stop := context.WithTimeout(context.Background(), 3*patience)
		defer stop()
		d.usable = nil
		has, err := d.exist(ctx, h)
		if err == nil {
			err = d.configure(ctx, has)
		}
		if err != nil {
			d.link = link.Link{}
			return d.explain(err)
		}
	} else if d.link.Index == 0 {
		return fmt.Errorf("%s cannot be used", d.name)
	}
	if err := t.SetUp(h, d.link); err != nil {
		return d.explain(err)
	}
	d.usable = append(d.usable, t)
	d.link.Up, d.link.MTU = true, t.MTU
	return nil
}

func (d *device) explain(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: end who has UDP port %d (ss -lunp), or set another ListenPort (IPv6: ListenPortV6) in the configuration's Backend", err, d.port)
	}
	return err
}

// errUnfit: the device that is there is none that could be used.
var errUnfit = errors.New("the device was none that could be used")

// exist adopts the device that is there, whoever runs it, or makes it, and
// returns what it has.
func (d *device) exist(ctx context.Context, h *link.Handle) (wg.State, error) {
	l, err := h.LinkByName(d.name)
	var why error // there must be a process again
	switch {
	case err == nil:
		s, err := d.adopt(ctx, &l)
		if !errors.Is(err, errUnfit) {
			d.link = l
			return s, err
		}
		why = err
		if err := h.DeleteLink(l.Index); err != nil {
			return wg.State{}, err
		}
	case !errors.Is(err, link.ErrNoLink):
		return wg.State{}, err
	case d.userspace():
		why = errors.New("it had ended, or somebody had deleted the device")
	}
	if err := d.make(ctx, h); err != nil {
		return wg.State{}, err
	}
	if why != nil && d.userspace() {
		outlive.Restarted(d.log, d.name, why)
	}
	d.lost, d.newKey = !d.newKey, false
	if d.link, err = h.LinkByName(d.name); err != nil {
		return wg.State{}, err
	}
	return d.impl.Read(ctx)
}

// adopt takes a device that is there, and reads it. One that nobody runs is
// unfit, one whose process does not answer too: that is ended.
func (d *device) adopt(ctx context.Context, l *link.Link) (wg.State, error) {
	switch {
	case l.Kind == link.KindWireGuard && !d.userspaceOnly:
		if _, ok := d.impl.(*wg.Kernel); !ok {
			if err := d.useKernel(); err != nil {
				return wg.State{}, err
			}
		}
		s, err := d.impl.Read(ctx)
		if err != nil {
			d.use(nil) // the module may have been loaded anew
		}
		return s, err
	case l.Kind == link.KindTUN:
		answer, stop := context.WithTimeout(ctx, patience)
		s, err := d.socket.Read(answer)
		stop()
		if errors.Is(err, context.DeadlineExceeded) {
			pid, err := outlive.Kill(ctx, d.name, d.socket.Path)
			if err != nil {
				return s, err
			}
			return s, fmt.Errorf("%w: process %d did not answer for %s and was killed", errUnfit, pid, patience)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return s, fmt.Errorf("%w: %w", errUnfit, err)
		}
		d.use(d.socket)
		return s, err
	}
	return wg.State{}, errUnfit
}

func (d *device) use(i implementation) {
	if d.impl != nil {
		_ = d.impl.Close()
	}
	d.impl = i
}

// useKernel opens the way to the kernel's WireGuard, which is there: its
// module is loaded once there is a device.
func (d *device) useKernel() error {
	var k *wg.Kernel
	err := d.ns.Do(func() (err error) {
		k, err = wg.OpenKernel(d.name)
		return err
	})
	if err == nil {
		d.use(k)
	}
	return err
}

// make makes the device in the kernel, or has a process run it if the kernel
// has no WireGuard.
func (d *device) make(ctx context.Context, h *link.Handle) error {
	if !d.userspaceOnly {
		err := h.AddWireGuard(d.name, d.mtu)
		if err == nil {
			return d.useKernel()
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	// The process of a device that was deleted may have its port for a moment.
	if err := d.socket.Gone(ctx); err != nil {
		return err
	}
	err := d.ns.Do(func() error {
		return outlive.Start(ctx, userspace.Kind, d.name, userspace.Args(d.socket.Path, d.port, d.mtu)...)
	})
	if err != nil {
		return fmt.Errorf("the kernel has no WireGuard (since 5.6: CONFIG_WIREGUARD, module wireguard), and in userspace: %w", err)
	}
	d.use(d.socket)
	return nil
}

// configure sets what all of a device has that was found with s.
func (d *device) configure(ctx context.Context, s wg.State) error {
	var c wg.Change
	if s.Private != d.private {
		c.Private = &d.private
	}
	if s.Port != d.port {
		c.Port = &d.port
	}
	if s.Mark != 0 {
		c.Mark = new(uint32)
	}
	if c.Private != nil || c.Port != nil || c.Mark != nil {
		if err := d.impl.Write(ctx, c); err != nil {
			return err
		}
		d.writes++
	}
	clear(d.entries)
	now := time.Now()
	for _, p := range s.Peers {
		slices.SortFunc(p.Allowed, netip.Prefix.Compare)
		d.entries[p.Key] = &entry{has: &p.Peer, fresh: now.Sub(p.Handshake) < sessionLife}
	}
	return nil
}
