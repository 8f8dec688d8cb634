package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/alloc"
	"github.com/flanneld/flanneld/backend/extension"
	"github.com/flanneld/flanneld/backend/gre"
	"github.com/flanneld/flanneld/backend/hostgw"
	"github.com/flanneld/flanneld/backend/ipip"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/backend/vxlan"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/subnet"
)

// drivers is the one place that knows every backend.
func drivers(o routed.Options) map[string]backend.Driver {
	return map[string]backend.Driver{
		alloc.Type:     alloc.Driver{Options: o},
		extension.Type: extension.Driver{Options: o},
		gre.Type:       gre.Driver{Options: o},
		hostgw.Type:    hostgw.Driver{Options: o},
		ipip.Type:      ipip.Driver{Options: o},
		udp.Type:       udp.Driver{Options: o},
		vxlan.Type:     vxlan.Driver{Options: o},
		wireguard.Type: wireguard.Driver{Options: o, KeyFile: os.Getenv("WIREGUARD_KEY_FILE")}, // flannel's variable
	}
}

func driverNames() []string { return slices.Sorted(maps.Keys(drivers(routed.Options{}))) }

// bringUp makes the device fit the configuration and the underlay. It does
// nothing if all is as before, and after an error the former device stays.
func (n *network) bringUp(ctx context.Context) error {
	c, u := n.view.Config, n.underlay
	n.openServices(c.Services)
	same := n.device != nil && c.Equal(n.opened)
	if !same || n.relook {
		var err error
		if u, err = chooseUnderlay(n.kernel.handle, n.cfg, c); err != nil {
			return err
		}
		n.relook = false
	}
	if same && sameUnderlay(u, n.underlay) {
		return nil
	}
	d, err := driverFor(c, routed.Options{Own: n.kernel.own, Log: n.log})
	if err != nil {
		return err
	}
	dev, err := d.Open(ctx, c, u, n.self.Identity)
	if err != nil {
		return fmt.Errorf("open %s device: %w", c.Backend.Type, err)
	}
	if n.device != nil {
		n.log.Info("network is set up anew: configuration or underlay changed",
			"underlay", u.Link, "addresses", u.Addrs, "backend", c.Backend.Type)
		// Interfaces that the new device does not have go with its first Sync,
		// once its routes are there.
		if err := n.device.Close(); err != nil {
			n.log.Warn("former device not closed", "error", err)
		}
	}
	n.device, n.underlay, n.opened = dev, u, c
	n.turn++
	n.unresolved = true
	n.probes.epoch++
	return n.prepareHost(ctx)
}

// openServices takes other networks for services, which no device cares about.
func (n *network) openServices(networks []netip.Prefix) {
	if n.device != nil && !slices.Equal(networks, n.opened.Services) {
		n.opened.Services = networks
		n.turn++
		n.unresolved = true
	}
}

// say tells the keeper what this host's lease and record have to say, if
// that changed.
func (n *network) say() {
	data := n.device.Info().Data
	s := subnet.Self{Host: n.self, Type: n.opened.Backend.Type, Data: data, NodeNameExplicit: n.cfg.NodeNameSet}
	s.Host.PublicIPs = n.underlay.PublicIPs
	s.Host.Guard = published(n.guard, n.underlay.PublicIPs)
	s.Host.Probe, s.Host.Plain = n.probes.port, offersPlain(n.device.Info())
	s.Previous = n.said.Previous
	if n.lease != nil {
		s.Previous = n.lease.Subnets
	} else if s.Previous == nil {
		s.Previous = []netip.Prefix{}
		if env, err := subnet.ReadEnv(n.cfg.SubnetFile); err == nil {
			s.Previous = env.Subnets
		}
	}
	if !reflect.DeepEqual(s, n.said) {
		n.said = s
		n.keeper.self.put(s)
	}
}

// links are all interfaces of a device.
func links(i backend.Info) []string {
	return rules.Tunnel{Link: i.Link, MoreLinks: i.MoreLinks}.Links()
}

// driverFor is the driver that c asks for.
func driverFor(c subnet.Config, o routed.Options) (backend.Driver, error) {
	d, ok := drivers(o)[c.Backend.Type]
	if !ok {
		return nil, &subnet.ConfigError{Field: "Backend.Type", Value: c.Backend.Type,
			Remedy: fmt.Sprintf("this flanneld has %s; set e.g. \"Backend\":{\"Type\":\"vxlan\"} (flannel's default is udp)", strings.Join(driverNames(), ", "))}
	}
	return d, nil
}

// usable says why a valid configuration cannot be used on this host, nil if
// it can, or if that is not the configuration's fault.
func usable(cfg *config.Config, c subnet.Config) error {
	d, err := driverFor(c, routed.Options{})
	if err != nil {
		return err
	}
	if err := d.Check(c); err != nil {
		return err
	}
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = chooseUnderlay(h, cfg, c)
	if IsConfig(err) {
		return err
	}
	return nil
}

// chooseUnderlay finds the interface and the addresses towards the other
// hosts. It is a *subnet.ConfigError if they are inside the pod network.
func chooseUnderlay(h *link.Handle, cfg *config.Config, c subnet.Config) (backend.Underlay, error) {
	choice := link.Choice{
		Ifaces: cfg.Ifaces, Regexes: cfg.IfaceRegexes, CanReach: cfg.IfaceReach,
		PublicIPs: cfg.PublicIPs, IPv4: slices.Contains(families(c), true), IPv6: slices.Contains(families(c), false),
		Avoid: networks(c),
	}
	ch, err := link.Choose(h, choice)
	if err == nil {
		return backend.Underlay(ch), nil
	}
	// Would it have been fine but for the pod network being there too?
	choice.Avoid = nil
	if ch, err := link.Choose(h, choice); err == nil {
		for _, a := range ch.Addrs {
			for _, p := range networks(c) {
				if p.Contains(a) {
					return backend.Underlay{}, &subnet.ConfigError{Field: "Network", Value: p.String(),
						Remedy: fmt.Sprintf("it contains this host's own address %v on %s: choose a network that no host is in", a, ch.Link)}
				}
			}
		}
	}
	return backend.Underlay{}, err
}

func networks(c subnet.Config) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range c.Ranges {
		out = append(out, r.Network)
	}
	return out
}

// families says for each range of c whether it is IPv4.
func families(c subnet.Config) []bool {
	var out []bool
	for _, r := range c.Ranges {
		out = append(out, r.Network.Addr().Is4())
	}
	return out
}

func sameUnderlay(a, b backend.Underlay) bool {
	return a.Link == b.Link && a.Index == b.Index && a.MTU == b.MTU &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PublicIPs, b.PublicIPs)
}

// splitPeerErrors sorts an error of Device.Sync: what concerns single peers
// goes into unserved by lease key, the rest is returned.
func splitPeerErrors(err error, unserved map[string]string) error {
	if err == nil {
		return nil
	}
	var list []error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	} else {
		list = []error{err}
	}
	var rest []error
	for _, e := range list {
		var pe *backend.PeerError
		if errors.As(e, &pe) {
			unserved[pe.Peer.Key] = pe.Error()
			continue
		}
		rest = append(rest, e)
	}
	return errors.Join(rest...)
}

// installCNI installs the plugins for container engines, now that the
// network is ready. It says whether that is done; if not it is tried again.
func (n *network) installCNI(ctx context.Context) bool {
	res, err := install.Run(ctx, install.Options{SubnetFile: n.cfg.SubnetFile})
	n.cniErr = err
	if err != nil {
		return false
	}
	n.log.Info("CNI plugins installed", "conflist", res.Conflist, "kept", res.Kept)
	return true
}
