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
)

// bridgeCheck compares all that ADD made with what is there.
func bridgeCheck(c *call) error {
	if err := c.conf.validate(); err != nil {
		return err
	}
	prev, err := c.conf.prevResult()
	if err == nil && prev == nil {
		err = failf(types.ErrInvalidNetworkConfig, "prevResult is missing: CHECK needs what ADD returned")
	}
	if err != nil {
		return err
	}
	record, err := c.checkRecord(prev)
	if err != nil {
		return err
	}
	if c.conf.delegates() {
		if _, err := c.delegate("CHECK"); err != nil {
			return err
		}
	}
	target, err := openTarget(c.netns)
	if err != nil {
		return err
	}
	defer target.Close()
	k := checker{c: c, record: record, prev: prev, target: target}
	var eth link.Port
	if err := inside(target, func(in *link.Ports) (err error) { eth, err = k.container(in); return err }); err != nil {
		return fail(codeCheck, err)
	}
	if err := k.host(eth); err != nil {
		return fail(codeCheck, err)
	}
	return k.filter()
}

// checkRecord finds the record, and compares its addresses with the result's.
func (c *call) checkRecord(prev *types100.Result) (ipam.Record, error) {
	pool, err := ipam.Open(c.conf.dataDir(), c.conf.Name)
	if err != nil {
		return ipam.Record{}, fail(codeStorage, err)
	}
	r, ok, err := pool.Peek(ipam.Key{ContainerID: c.containerID, IfName: c.ifName})
	switch {
	case err != nil:
		return r, fail(codeStorage, err)
	case !ok:
		return r, failf(codeCheck, "container %s, interface %s has no reservation in %s: it was not added here, or DEL or GC removed it", c.containerID, c.ifName, pool.Dir())
	case !r.Attached:
		return r, failf(codeCheck, "container %s, interface %s was not added completely: DEL it", c.containerID, c.ifName)
	}
	for _, p := range c.ownAddresses(prev) {
		if !slices.Contains(r.Addresses, p) && c.conf.IPAM.Type != "" {
			return r, failf(codeCheck, "address %s of prevResult is not reserved for container %s, which holds %v", p, c.containerID, r.Addresses)
		}
	}
	return r, nil
}

// ownAddresses are the result's addresses of our interface; other plugins of
// the chain may have added theirs.
func (c *call) ownAddresses(prev *types100.Result) (out []netip.Prefix) {
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface >= 0 && *ip.Interface < len(prev.Interfaces) {
			if i := prev.Interfaces[*ip.Interface]; i.Sandbox == "" || i.Name != c.ifName {
				continue
			}
		}
		if p, ok := prefix(ip.Address); ok {
			out = append(out, p)
		}
	}
	return out
}

// checker is one CHECK at work.
type checker struct {
	c      *call
	record ipam.Record
	prev   *types100.Result
	target *netns.NS
}

// container looks at the inner end.
func (k checker) container(in *link.Ports) (link.Port, error) {
	eth, err := in.Port(k.c.ifName)
	if err != nil {
		return eth, fmt.Errorf("in the container: %w", err)
	}
	switch {
	case !eth.Up:
		return eth, fmt.Errorf("the container's %s is down", k.c.ifName)
	case eth.Kind != "veth":
		return eth, fmt.Errorf("the container's %s is of kind %q, not veth", k.c.ifName, eth.Kind)
	case eth.MAC.String() != k.record.MAC:
		return eth, fmt.Errorf("the container's %s has MAC %s, was given %s", k.c.ifName, eth.MAC, k.record.MAC)
	}
	have, err := in.Addresses(eth.Index)
	if err != nil {
		return eth, err
	}
	for _, p := range k.record.Addresses {
		if !slices.Contains(have, p) {
			return eth, fmt.Errorf("the container's %s lacks address %s", k.c.ifName, p)
		}
	}
	return eth, k.routes(in, eth)
}

func (k checker) routes(in *link.Ports, eth link.Port) error {
	for _, r := range k.prev.Routes {
		to, ok := prefix(r.Dst)
		if !ok {
			continue
		}
		table := 0
		if r.Table != nil {
			table = *r.Table
		}
		have, err := in.Routes(eth.Index, table)
		if err != nil {
			return err
		}
		gw := addr(r.GW)
		same := func(h link.Inroute) bool {
			return h.To == to.Masked() && (!gw.IsValid() || h.Gateway == gw) && (r.Priority == 0 || h.Priority == r.Priority)
		}
		if !slices.ContainsFunc(have, same) {
			return fmt.Errorf("the container lacks the route to %s via %s on %s", to, r.GW, k.c.ifName)
		}
	}
	return nil
}

// host looks at the outer end and the bridge.
func (k checker) host(eth link.Port) error {
	ports, err := link.OpenPorts()
	if err != nil {
		return err
	}
	defer ports.Close()
	port, err := ports.Port(k.record.HostLink)
	if err != nil {
		return fmt.Errorf("host end of container %s: %w", k.c.containerID, err)
	}
	br, err := ports.Port(k.c.conf.Bridge)
	if err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	switch {
	case port.Peer != eth.Index:
		return fmt.Errorf("host link %s is not the other end of the container's %s", port.Name, eth.Name)
	case port.Master != br.Index:
		return fmt.Errorf("host link %s is not a port of bridge %s", port.Name, br.Name)
	case !port.Up:
		return fmt.Errorf("host link %s is down", port.Name)
	case port.Hairpin != k.c.conf.HairpinMode:
		return fmt.Errorf("host link %s has hairpin mode %t, configured is %t", port.Name, port.Hairpin, k.c.conf.HairpinMode)
	case br.Kind != "bridge":
		return fmt.Errorf("link %s is no bridge but of kind %q", br.Name, br.Kind)
	case !br.Up:
		return fmt.Errorf("bridge %s is down", br.Name)
	case k.c.conf.PromiscMode && !br.Promisc:
		return fmt.Errorf("bridge %s is not in promiscuous mode", br.Name)
	case !k.c.conf.IsGateway:
		return nil
	}
	have, err := ports.Addresses(br.Index)
	if err != nil {
		return err
	}
	for i, gw := range k.record.Gateways {
		if gw.IsValid() && !slices.Contains(have, netip.PrefixFrom(gw, k.record.Addresses[i].Bits())) {
			return fmt.Errorf("bridge %s lacks the gateway's address %s", br.Name, netip.PrefixFrom(gw, k.record.Addresses[i].Bits()))
		}
	}
	return nil
}

// filter looks at masquerading and guard.
func (k checker) filter() error {
	if !k.record.Masquerade && !k.record.Guarded {
		return nil
	}
	filter, err := k.c.openFilter()
	if err != nil {
		return fail(codeCheck, err)
	}
	defer filter.Close()
	want := hostside.Filter(k.record)
	want.Inside = nil // the last ADD's word counts, and that may be another's
	what, err := filter.Missing(want)
	if err != nil {
		return fail(codeCheck, err)
	}
	if what != "" {
		return failf(codeCheck, "the packet filter lacks the %s of container %s", what, k.c.containerID)
	}
	return nil
}

// bridgeStatus tells whether an ADD can work (section 2, "STATUS").
func bridgeStatus(c *call) error {
	if err := c.conf.validate(); err != nil {
		return err
	}
	switch c.conf.IPAM.Type {
	case "":
		return nil
	case ownIPAM:
		return poolStatus(c, space.freeFor)
	default:
		_, err := c.delegate("STATUS")
		return err
	}
}

// poolStatus is 50 if there can be no ADD, and 51 if besides there are
// containers that may be cut off. inUse tells who else uses the space.
func poolStatus(c *call, inUse func(s space, bridge string) error) error {
	pool, err := ipam.Open(c.conf.dataDir(), c.conf.Name)
	if err != nil {
		return failf(types.ErrPluginNotAvailable, "%v", err)
	}
	space, err := c.conf.space()
	if e, ok := errors.AsType[*types.Error](err); ok && e.Code == types.ErrTryAgainLater {
		e.Code = types.ErrPluginNotAvailable
		if taken, err := pool.Taken(); err == nil && len(taken) > 0 {
			e.Code = types.ErrLimitedConnectivity
		}
	}
	if err != nil {
		return err
	}
	if err := inUse(space, c.conf.Bridge); err != nil {
		return failf(types.ErrPluginNotAvailable, "network %s: %v", c.conf.Name, err)
	}
	for i, s := range space.sets {
		taken, err := pool.Usage(s)
		if err != nil {
			return failf(types.ErrPluginNotAvailable, "%v", err)
		}
		if size := s.Size(); taken >= size {
			return failf(types.ErrPluginNotAvailable, "network %s, range set %d, %s-%s: all %d addresses are taken: remove containers, run GC, or widen the range", c.conf.Name, i, s[0].Start, s[len(s)-1].End, size)
		}
	}
	return nil
}
