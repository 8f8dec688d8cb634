// Package extension lets programs of the admin's move the packets: hooks that
// are run when this host gets its subnet, and when peers come and go. Names and
// order are those of flannel's backend extension; what may be run is not: see
// Dir.
package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/subnet"
)

// Type is the backend's name in the configuration and in leases.
const Type = "extension"

// Dir is where hooks must be. Who may write the configuration into etcd can
// have every host run what is there, and nothing else: so the directory, its
// parents and the hooks must belong to root, who alone can write to them.
const Dir = "/etc/flanneld/extensions"

// State is where it is kept, until the next boot, what hooks were told.
const State = "/run/flannel/extension"

const (
	hookTime = 10 * time.Second // that one hook may take
	syncTime = 5 * time.Second  // after which Sync leaves the other hooks for the next
)

// Driver runs hooks in the calling thread's network namespace.
type Driver struct {
	routed.Options
	Dir, State string        // "": the constants
	SyncTime   time.Duration // 0: 5 s
}

var _ backend.Driver = Driver{}

// Device is one network on this host.
type Device struct {
	hooks    hooks
	ns       *netns.NS
	record   record
	cfg      subnet.Config
	underlay backend.Underlay
	nobody   []netip.Addr // see routed.NoHosts
	mtu      int
	data     string // what PreStartupCommand said
	syncTime time.Duration

	own     []netip.Prefix
	started bool // PostStartupCommand was run for own
	peers   map[string]*peer
	former  error // what an earlier configuration's hooks could not do
	ran     uint64

	last    []backend.Peer // what Sync was told last
	invalid []error        // what is wrong with them
	settled bool           // and there was nothing else

	options routed.Options
	swept   bool // the routes of a former backend are gone
}

var _ backend.Device = (*Device)(nil)

func (drv Driver) dirs() (dir, state string) {
	if dir = drv.Dir; dir == "" {
		dir = Dir
	}
	if state = drv.State; state == "" {
		state = State
	}
	return dir, state
}

// Check says what is wrong with the configuration. Whether this host has the
// hooks is found out by Open. See backend.Driver.
func (drv Driver) Check(n subnet.Config) error {
	_, err := drv.parseOptions(n)
	return err
}

// Open runs PreStartupCommand, whose output peers are told. See
// backend.Driver.
func (drv Driver) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := drv.parseOptions(n)
	if err != nil {
		return nil, err
	}
	dir, state := drv.dirs()
	d := &Device{options: drv.Options, swept: drv.KeepOthers, cfg: n, underlay: u, peers: map[string]*peer{}, syncTime: drv.SyncTime,
		hooks: hooks{dir: dir, commands: opts.commands}, record: record{state}}
	if d.syncTime == 0 {
		d.syncTime = syncTime
	}
	for _, r := range n.Ranges {
		if d.mtu, err = routed.MTU(Type, r, u.Link, u.MTU, opts.MTU, routed.Overhead{}); err != nil {
			return nil, err
		}
	}
	if d.nobody, err = routed.NoHosts(u); err != nil {
		return nil, fmt.Errorf("extension: %w", err)
	}
	if err := d.hooks.present(); err != nil {
		return nil, err
	}
	if d.ns, err = netns.Current(); err != nil {
		return nil, err
	}
	if err := d.begin(ctx); err != nil {
		d.Close()
		return nil, fmt.Errorf("extension: %w", err)
	}
	return d, nil
}

// begin ends what another configuration began, and runs PreStartupCommand.
func (d *Device) begin(ctx context.Context) error {
	if was, _, err := d.record.former(); err != nil || !maps.Equal(was, d.hooks.commands) {
		d.former = d.record.end(ctx, d.ns, d.hooks.dir)
	}
	if err := d.record.begin(d.hooks.commands, d.self(nil)); err != nil {
		return err
	}
	told, err := d.record.peers()
	if err != nil {
		return err
	}
	for key, in := range told {
		d.peers[key] = &peer{told: &in}
	}
	out, err := d.run(ctx, preStartup, d.self(nil), "")
	if err != nil {
		return err
	}
	if d.data = out; !harmless(out) {
		return fmt.Errorf("%s says what is no text of at most %d bytes: its output goes into this host's lease", preStartup, mostData)
	}
	return nil
}

// self tells a hook about this host.
func (d *Device) self(own []netip.Prefix) input {
	in := input{PublicIPs: d.underlay.PublicIPs, Subnets: own, Interface: d.underlay.Link, MTU: d.mtu}
	for _, r := range d.cfg.Ranges {
		in.Networks = append(in.Networks, r.Network)
	}
	return in
}

// run runs a hook; there is nothing to do if the configuration has none.
func (d *Device) run(ctx context.Context, name string, in input, stdin string) (string, error) {
	if d.hooks.commands[name] == "" {
		return "", nil
	}
	d.ran++
	return d.hooks.run(ctx, d.ns, name, in, stdin)
}

// Info says what PreStartupCommand did. See backend.Device.
func (d *Device) Info() backend.Info {
	i := backend.Info{MTU: d.mtu, Plain: true}
	if d.hooks.commands[preStartup] != "" {
		i.Data.V4, _ = json.Marshal(d.data)
	}
	return i
}

// Sync runs the hooks that something has changed for. See backend.Device. What
// hooks did nobody but they can look at: they are told again after a failure,
// and by a new Device, not after Forget. Where they take long Sync ends before
// all were run, with an error.
func (d *Device) Sync(ctx context.Context, own *subnet.Lease, peers []backend.Peer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := []error{d.former}
	d.former = nil
	if !d.started || !slices.Equal(d.own, own.Subnets) {
		d.own, d.started, d.settled = slices.Clone(own.Subnets), false, false
		if err := d.record.begin(d.hooks.commands, d.self(d.own)); err != nil {
			return err
		}
		if _, err := d.run(ctx, postStartup, d.self(d.own), ""); err != nil {
			return errors.Join(errs[0], fmt.Errorf("extension: %w", err))
		}
		d.started = true
	}
	if !d.settled || !slices.Equal(d.last, peers) {
		var wanted map[string]want
		wanted, d.invalid = d.wanted(peers)
		d.last = slices.Clone(peers)
		errs = append(errs, d.tell(ctx, wanted)...)
	}
	if d.settled && !d.swept { // not before traffic has its new way
		err := d.ns.Do(func() error { return routed.RemoveRoutes(ctx, d.options.Own) })
		errs, d.swept = append(errs, err), err == nil
	}
	return errors.Join(append(errs, d.invalid...)...)
}

// Forget changes nothing: see Sync.
func (d *Device) Forget() {}

// Writes counts the hooks that were run.
func (d *Device) Writes() uint64 { return d.ran }

// Close leaves everything as the hooks have made it.
func (d *Device) Close() error { return d.ns.Close() }

// Cleanup tells the hooks that all peers are gone, then that this host is.
func (drv Driver) Cleanup(ctx context.Context) error {
	dir, state := drv.dirs()
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := (record{state}).end(ctx, ns, dir); err != nil {
		return fmt.Errorf("extension: %w", err)
	}
	return nil
}
