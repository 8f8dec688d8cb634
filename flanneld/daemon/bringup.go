package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/vxlan"
	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
)

// drivers is the one place that knows every backend.
func drivers(own *link.Own) map[string]backend.Driver {
	return map[string]backend.Driver{vxlan.Type: vxlan.Driver{Own: own}}
}

func driverNames() []string { return slices.Sorted(maps.Keys(drivers(nil))) }

// bringUp makes the device fit the configuration and the underlay. It does
// nothing if all is as before, and after an error the former device stays.
func (n *network) bringUp(ctx context.Context) error {
	c := n.view.Config
	u := n.underlay
	if n.device == nil || n.relook || !slices.Equal(families(c), families(n.opened)) {
		var err error
		if u, err = n.chooseUnderlay(c); err != nil {
			return err
		}
		n.relook = false
	}
	if n.device != nil && sameUnderlay(u, n.underlay) && c.Equal(n.opened) {
		return nil
	}
	d, ok := drivers(n.kernel.own)[c.Backend.Type]
	if !ok {
		return &subnet.ConfigError{Field: "Backend.Type", Value: c.Backend.Type,
			Remedy: fmt.Sprintf("this flanneld has %s; set e.g. \"Backend\":{\"Type\":\"vxlan\"} (flannel's default is udp)", strings.Join(driverNames(), ", "))}
	}
	dev, err := d.Open(ctx, c, u, n.self.Identity)
	if err != nil {
		return fmt.Errorf("open %s device: %w", c.Backend.Type, err)
	}
	if n.device != nil {
		n.log.Info("network is set up anew: configuration or underlay changed",
			"underlay", u.Link, "addresses", u.Addrs, "backend", c.Backend.Type)
		if err := n.device.Close(); err != nil {
			n.log.Warn("former device not closed", "error", err)
		}
	}
	n.device, n.underlay, n.opened = dev, u, c
	return n.prepareHost(ctx)
}

// say tells the keeper what this host's lease and record have to say, if
// that changed.
func (n *network) say() {
	data := n.device.Info().Data
	s := subnet.Self{Host: n.self, Type: n.opened.Backend.Type, Data: data, NodeNameExplicit: n.cfg.NodeNameSet}
	s.Host.PublicIPs = n.underlay.PublicIPs
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

// chooseUnderlay finds the interface and the addresses towards the other
// hosts.
func (n *network) chooseUnderlay(c subnet.Config) (backend.Underlay, error) {
	choice := link.Choice{
		Ifaces: n.cfg.Ifaces, Regexes: n.cfg.IfaceRegexes, CanReach: n.cfg.IfaceReach,
		PublicIPs: n.cfg.PublicIPs, IPv4: slices.Contains(families(c), true), IPv6: slices.Contains(families(c), false),
		Avoid: networks(c),
	}
	ch, err := link.Choose(n.kernel.handle, choice)
	if err == nil {
		return backend.Underlay(ch), nil
	}
	// Would it have been fine but for the pod network being there too?
	choice.Avoid = nil
	if ch, err := link.Choose(n.kernel.handle, choice); err == nil {
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
