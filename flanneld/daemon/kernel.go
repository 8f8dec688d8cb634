package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/host"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// bridgeName is the bridge that the CNI plugins make unless told otherwise.
const bridgeName = "cni0"

// kernel is what the daemon holds of the kernel beside the tunnel.
type kernel struct {
	log        *slog.Logger
	own        *link.Own
	handle     *link.Handle
	monitor    *link.Monitor
	filter     rules.Filter
	filterName string
	balancer   rules.Balancer
	ledger     *nft.Ledger // nil: not nftables
	forward    *iptables.Forward
	containers *attachments
	host       host.Options
	notes      []string // what was set on this host, for status
}

// openKernel opens every door to the kernel and changes nothing in it, but
// for rules that a former daemon left in a way that is no longer used.
func openKernel(ctx context.Context, log *slog.Logger) (k *kernel, err error) {
	k = &kernel{log: log, own: &link.Own{}}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.handle, err = link.Open(); err != nil {
		return nil, err
	}
	if err := k.handle.Record(k.own); err != nil {
		return nil, err
	}
	if k.monitor, err = link.NewMonitor(link.Watch{}, k.own); err != nil {
		return nil, err
	}
	if k.containers, err = openAttachments(ipam.DefaultDir, k.monitor, log); err != nil {
		return nil, err
	}
	if k.forward, err = iptables.OpenForward(config.StateDir + "/forward.json"); err != nil {
		return nil, err
	}
	return k, k.openFilter(ctx)
}

// nftables is the name of the filter that is preferred.
const nftables = "nftables"

// openFilter prefers nftables, and says why if there is neither.
func (k *kernel) openFilter(ctx context.Context) error {
	nftErr := k.openNftables()
	if nftErr == nil {
		if err := iptables.Cleanup(ctx); err != nil {
			return fmt.Errorf("remove the iptables rules of a former daemon: %w", err)
		}
		return nil
	}
	if !errors.Is(nftErr, rules.ErrNotSupported) {
		return nftErr
	}
	k.closeFilter()
	if err := nft.Cleanup(ctx); err != nil {
		return err
	}
	i, err := iptables.New(ctx, iptables.Options{})
	if err == nil {
		k.filter, k.filterName = i, "iptables"
		k.balancer, err = iptables.NewBalancer(ctx, iptables.Options{})
	}
	if err != nil {
		return fmt.Errorf("no packet filter to be had: %w", errors.Join(nftErr, err))
	}
	return nil
}

func (k *kernel) openNftables() error {
	l, err := nft.NewLedger()
	if err != nil {
		return err
	}
	k.ledger = l
	f, err := nft.New(l)
	if err != nil {
		return err
	}
	k.filter, k.filterName = f, nftables
	k.balancer, err = nft.NewBalancer(l)
	return err
}

// close lets go of the kernel; what was made in it stays.
func (k *kernel) close() {
	k.containers.close()
	if k.forward != nil {
		_ = k.forward.Close() // sockets only
	}
	k.closeFilter()
	if k.handle != nil {
		k.handle.Close()
	}
}

// closeFilter lets go of the packet filter; its rules stay.
func (k *kernel) closeFilter() {
	for _, f := range []any{k.filter, k.balancer} {
		if f, ok := f.(io.Closer); ok {
			_ = f.Close() // sockets only
		}
	}
	if k.ledger != nil {
		_ = k.ledger.Close()
	}
	k.filter, k.balancer, k.ledger = nil, nil, nil
}

// sync makes the packet filter and forwarding right.
func (k *kernel) sync(ctx context.Context, r rules.Rules) error {
	if err := k.filter.Sync(ctx, r); err != nil {
		return fmt.Errorf("packet filter (%s): %w", k.filterName, err)
	}
	if err := k.forward.Sync(ctx, r.Networks, r.Names); err != nil {
		return fmt.Errorf("keep pod traffic forwarded: %w", err)
	}
	return nil
}

// prepareHost sets the host up for the device and looks at what matters now.
func (n *network) prepareHost(ctx context.Context) error {
	info, k := n.device.Info(), n.kernel
	devices := links(info)
	k.host = host.Options{
		Underlay: n.underlay.Link, Tunnels: devices, Bridges: []string{bridgeName},
		Patterns: []string{vethPattern},
	}
	k.host.Localnet = n.localnet()
	for _, is4 := range families(n.opened) {
		k.host.IPv4, k.host.IPv6 = k.host.IPv4 || is4, k.host.IPv6 || !is4
	}
	changes, err := host.Setup(ctx, k.host)
	k.changed(changes)
	n.hostErr = err // told by status and tried again: what could be set is set
	if err := k.monitor.Watch(link.Watch{Devices: devices, Underlay: []string{n.underlay.Link}}); err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	return nil
}

// vethPattern matches the host's ends of container interfaces.
const vethPattern = "fl*"

// checkHost repairs the host's settings.
func (n *network) checkHost(ctx context.Context) {
	if n.device == nil {
		return
	}
	n.kernel.host.Localnet = n.localnet()
	changes, err := host.Check(ctx, n.kernel.host)
	n.kernel.changed(changes)
	n.hostErr = err
}

// localnet are the links that packets from 127.0.0.1 take to containers; nil:
// it is not known yet whether any do.
func (n *network) localnet() []string {
	out := []string{}
	switch {
	case !n.balanced.known:
		return nil
	case n.balanced.localnet:
		out = slices.Concat(n.kernel.host.Bridges, n.kernel.host.Tunnels)
		if n.device.Info().Plain {
			out = append(out, n.underlay.Link)
		}
	}
	return out
}

// changed notes and logs what was set on the host.
func (k *kernel) changed(changes []string) {
	for _, c := range changes {
		k.log.Info("host set up", "change", c)
	}
	if k.notes == nil || len(changes) > 0 {
		if all, err := host.Changes(k.host); err == nil {
			k.notes = all
		}
	}
}
