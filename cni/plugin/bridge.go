package plugin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

func bridgeCommands() commands {
	return commands{
		name: "flanneld-bridge",
		add:  bridgeAdd, del: bridgeDel, check: bridgeCheck, status: bridgeStatus, collect: bridgeGC,
	}
}

// attachment is one ADD at work. What it has done so far is what undo takes
// back.
type attachment struct {
	*call
	key    ipam.Key
	pool   *ipam.Network
	ports  *link.Ports
	target *netns.NS
	space  space
	routes []*types.Route
	dns    types.DNS
	mtu    int

	held      *ipam.Held
	filter    hostside.PacketFilter // nil: not needed
	delegated bool
}

func bridgeAdd(c *call) (err error) {
	a, err := newAttachment(c)
	if err != nil {
		return err
	}
	defer a.close()
	defer func() {
		if err != nil {
			a.undo()
		}
	}()
	if err = a.reserve(); err != nil {
		return err
	}
	br, err := a.prepare()
	if err != nil {
		return err
	}
	if err = a.plug(br); err != nil {
		return err
	}
	if c.conf.delegates() {
		if br, err = a.ask(br); err != nil {
			return err
		}
	}
	if err = a.configure(br); err != nil {
		return err
	}
	if err = a.held.Attached(); err != nil {
		return fail(codeStorage, err)
	}
	return c.print(a.result(br))
}

// newAttachment validates all that can be without changing anything.
func newAttachment(c *call) (*attachment, error) {
	if err := c.conf.validate(); err != nil {
		return nil, err
	}
	a := &attachment{call: c, key: ipam.Key{ContainerID: c.containerID, IfName: c.ifName}, dns: c.conf.DNS}
	if c.conf.IPAM.Type == ownIPAM {
		var err error
		if a.space, err = c.conf.space(); err != nil {
			return nil, err
		}
		a.routes = c.conf.IPAM.Routes
		if a.dns.IsEmpty() {
			if a.dns, err = c.resolver(a.space); err != nil {
				return nil, err
			}
		}
	}
	if a.mtu = c.conf.MTU; a.mtu == 0 {
		a.mtu = a.space.mtu
	}
	var err error
	if a.target, err = openTarget(c.netns); err != nil {
		return nil, err
	}
	if a.pool, err = ipam.Open(c.conf.dataDir(), c.conf.Name); err == nil {
		a.ports, err = link.OpenPorts()
	}
	if err != nil {
		a.close()
		return nil, fail(codeKernel, err)
	}
	return a, nil
}

// openTarget opens the container's namespace, which must not be the one that
// we are in.
func openTarget(path string) (*netns.NS, error) {
	target, err := netns.Open(path)
	if err != nil {
		return nil, failf(types.ErrInvalidNetNS, "CNI_NETNS=%s: %v", clip(path), err)
	}
	there, err := target.ID()
	here, err2 := hostNS()
	if err = errors.Join(err, err2); err == nil && there == here {
		err = failf(types.ErrInvalidNetNS, "CNI_NETNS=%s is the host's own network namespace: a container needs one of its own; nothing was changed", clip(path))
	}
	if err != nil {
		target.Close()
		return nil, fail(types.ErrInvalidNetNS, err)
	}
	return target, nil
}

func hostNS() (netns.ID, error) {
	here, err := netns.Current()
	if err != nil {
		return netns.ID{}, err
	}
	defer here.Close()
	return here.ID()
}

func (a *attachment) close() {
	if a.target != nil {
		a.target.Close()
	}
	if a.ports != nil {
		a.ports.Close()
	}
	if a.filter != nil {
		a.filter.Close()
	}
	if a.held != nil {
		a.held.Close()
	}
}

// undo takes back a failed ADD: nothing of it stays.
func (a *attachment) undo() {
	if a.delegated { // it may need the interface for that
		_, _ = a.delegate("DEL")
	}
	if a.held != nil {
		// What cannot be removed keeps its reservation, and is found by DEL and
		// GC.
		if a.clear(a.ports, a.held.Record) == nil {
			_ = a.held.Release()
		}
	}
}

// prepare makes the host ready for the record's addresses, which may not be
// known yet.
func (a *attachment) prepare() (link.Port, error) {
	if err := a.permit(); err != nil {
		return link.Port{}, err
	}
	return a.bridge()
}

// permit tells the packet filter about the container before its addresses
// work.
func (a *attachment) permit() error {
	r := &a.held.Record
	if !r.Masquerade && !r.Guarded {
		return nil
	}
	if a.filter == nil {
		var err error
		if a.filter, err = a.openFilter(); err != nil {
			return fail(codeKernel, err)
		}
	}
	err := a.filter.Add(hostside.Filter(*r), a.others)
	if errors.Is(err, cnitable.ErrUnsupported) && r.Guarded {
		// The kernel has no guard. Masquerading may still work.
		if err := a.held.Unguarded(); err != nil {
			return fail(codeStorage, err)
		}
		err = a.filter.Add(hostside.Filter(*r), a.others)
	}
	if err != nil {
		return failf(codeKernel, "ipMasq: %v: load nf_tables, or install iptables, or set ipMasq to false", err)
	}
	return nil
}

// others are the network's attachments, for rules that somebody flushed.
func (a *attachment) others() []cnitable.Attachment {
	var out []cnitable.Attachment
	for h, err := range a.pool.All() {
		if err == nil && h.Record.HostLink != "" {
			out = append(out, hostside.Filter(h.Record))
		}
	}
	return out
}

// bridge makes the bridge ready, with the gateways' addresses on it.
func (a *attachment) bridge() (link.Port, error) {
	want := hostside.Bridge(a.held.Record)
	want.Force, want.Changing = a.conf.ForceAddress, func() error { return a.space.free(a.ports, want.Name) }
	br, err := hostside.MakeBridge(a.ports, want)
	if _, ok := errors.AsType[*link.AddressError](err); ok {
		return br, fail(codeBridge, err)
	}
	if err != nil {
		return br, fail(codeKernel, err)
	}
	return br, nil
}

// result describes the attachment (section 5, "Add Success").
func (a *attachment) result(br link.Port) *types100.Result {
	r := a.held.Record
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: br.Name, Mac: br.MAC.String()},
			{Name: r.HostLink, Mac: hostside.HashMAC(r.HostLink).String()},
			{Name: a.ifName, Mac: r.MAC, Sandbox: a.netns, Mtu: a.mtu},
		},
		Routes: a.allRoutes(), DNS: a.dns,
	}
	if res.Interfaces[2].Mtu == 0 {
		res.Interfaces[2].Mtu = 1500
	}
	for i, p := range r.Addresses {
		c := &types100.IPConfig{Interface: types100.Int(2), Address: netIP(p)}
		if gw := r.Gateways[i]; gw.IsValid() {
			c.Gateway = gw.AsSlice()
		}
		res.IPs = append(res.IPs, c)
	}
	return res
}

// allRoutes are the configured routes and, with isDefaultGateway, the default
// ones.
func (a *attachment) allRoutes() []*types.Route {
	routes := slices.Clone(a.routes)
	if !a.conf.IsDefaultGateway {
		return routes
	}
	for _, gw := range a.held.Record.Gateways {
		if !gw.IsValid() {
			continue
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if !gw.Is4() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if !slices.ContainsFunc(routes, func(r *types.Route) bool { p, ok := prefix(r.Dst); return ok && p == all }) {
			routes = append(routes, &types.Route{Dst: netIP(all), GW: gw.AsSlice()})
		}
	}
	return routes
}

func alias(r ipam.Record) string {
	return clip(fmt.Sprintf("flanneld %s %s %s", r.Network, r.ContainerID, r.IfName))
}
