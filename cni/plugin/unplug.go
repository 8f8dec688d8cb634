package plugin

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
)

// bridgeDel removes an attachment, all of it or what is left of it. It needs
// neither the namespace nor a previous result, and returns when the host's
// end is gone.
func bridgeDel(c *call) error {
	pool, err := ipam.Open(c.conf.dataDir(), c.conf.Name)
	if err != nil {
		return fail(codeStorage, err)
	}
	ports, err := link.OpenPorts()
	if err != nil {
		return fail(codeKernel, err)
	}
	defer ports.Close()
	key := ipam.Key{ContainerID: c.containerID, IfName: c.ifName}
	held, err := pool.Find(key)
	if err != nil {
		return reserveError(err)
	}
	if held != nil {
		defer held.Close()
		return c.remove(ports, held)
	}
	released := c.release()
	if err := c.clear(ports, c.recall(key)); err != nil {
		return fail(codeKernel, err)
	}
	return released
}

// recall is what is known of an attachment whose record is lost.
func (c *call) recall(key ipam.Key) ipam.Record {
	r := ipam.Record{
		Network: c.conf.Name, ContainerID: key.ContainerID, IfName: key.IfName,
		HostLink: key.HostLink(c.conf.Name), Masquerade: c.conf.IPMasq,
	}
	prev, err := c.conf.prevResult()
	if err != nil || prev == nil {
		return r
	}
	for _, i := range prev.Interfaces {
		if i.Name == c.ifName && i.Sandbox != "" {
			r.MAC, r.Guarded = i.Mac, true
		}
	}
	for _, ip := range prev.IPs {
		if p, ok := prefix(ip.Address); ok {
			r.Addresses = append(r.Addresses, p)
		}
	}
	return r
}

// remove removes link, filter elements and record, in an order in which a kill
// leaves something to find. Another IPAM plugin comes first: such as dhcp work
// through the link. What it cannot take back keeps its record.
func (c *call) remove(ports *link.Ports, h *ipam.Held) error {
	released := c.release()
	if err := c.removeLinkOf(ports, h.Record); err != nil {
		return fail(codeKernel, err)
	}
	if released != nil {
		return released
	}
	if err := h.Release(); err != nil {
		return fail(codeStorage, err)
	}
	return nil
}

func (c *call) removeLinkOf(ports *link.Ports, r ipam.Record) error {
	if r.HostLink == "" { // made for another plugin
		return nil
	}
	return c.clear(ports, r)
}

// clear removes the host's link and the filter's elements.
//
// The link goes down first, so that nothing passes while the guard is already
// gone. It is deleted last: the kernel makes whoever closes an nf_tables
// socket wait for elements that were just removed, and the deletion of a link
// takes longer than that anyway.
func (c *call) clear(ports *link.Ports, r ipam.Record) error {
	if !r.Masquerade && !r.Guarded {
		return ports.Delete(r.HostLink)
	}
	if err := ports.Down(r.HostLink); err != nil {
		return err
	}
	filter, err := c.openFilter()
	if err == nil {
		defer filter.Close()
		err = filter.Remove(hostside.Filter(r))
	}
	return errors.Join(err, ports.Delete(r.HostLink))
}

// bridgeGC removes whatever of the network does not belong to an attachment
// in the engine's list.
func bridgeGC(c *call) error {
	list, err := c.conf.validAttachments()
	if err != nil {
		return err
	}
	pool, err := ipam.Open(c.conf.dataDir(), c.conf.Name)
	if err != nil {
		return fail(codeStorage, err)
	}
	ports, err := link.OpenPorts()
	if err != nil {
		return fail(codeKernel, err)
	}
	defer ports.Close()
	g := collector{c: c, pool: pool, ports: ports, valid: make(map[string]bool)}
	for _, k := range list {
		g.valid[k.HostLink(c.conf.Name)] = true
	}
	err = errors.Join(g.records(), g.links(), g.elements())
	if c.conf.delegates() {
		_, e := c.delegate("GC")
		err = errors.Join(err, e)
	}
	if err != nil {
		return fail(codeKernel, err)
	}
	return nil
}

// collector is one GC at work. Attachments are known by their host link,
// which stands for network, container and interface.
type collector struct {
	c     *call
	pool  *ipam.Network
	ports *link.Ports
	valid map[string]bool
}

func (g *collector) records() error {
	var errs []error
	for h, err := range g.pool.All() {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if h.Record.HostLink != "" && !g.valid[h.Record.HostLink] {
			of := *g.c
			of.containerID, of.ifName, of.netns = h.Record.ContainerID, h.Record.IfName, h.Record.NetNS
			errs = append(errs, of.remove(g.ports, h))
		}
	}
	return errors.Join(errs...)
}

// links removes host links of the network without a record: what is left when
// the records were lost.
func (g *collector) links() error {
	br, err := g.ports.Port(g.c.conf.Bridge)
	if errors.Is(err, link.ErrNoLink) {
		return nil
	}
	if err != nil {
		return err
	}
	on, err := g.ports.On(br.Index)
	if err != nil {
		return err
	}
	keep, _, err := g.keep() // listed after the links: a link comes after its record
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range on {
		if strings.HasPrefix(p.Alias, "flanneld "+g.c.conf.Name+" ") && strings.HasPrefix(p.Name, ipam.LinkPrefix) && !keep[p.Name] {
			errs = append(errs, g.ports.Delete(p.Name))
		}
	}
	return errors.Join(errs...)
}

func (g *collector) elements() error {
	filter, err := g.c.openFilter()
	if err != nil {
		return err
	}
	defer filter.Close()
	return filter.Prune(g.c.conf.Name, g.keep)
}

// keep is the host links and addresses of all that may stay: valid
// attachments, and those that are being made.
func (g *collector) keep() (links map[string]bool, addrs map[netip.Addr]bool, err error) {
	links, addrs = make(map[string]bool), make(map[netip.Addr]bool)
	for name := range g.valid {
		links[name] = true
	}
	taken, err := g.pool.Taken()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range taken {
		links[t.HostLink] = true
		for _, a := range t.Addresses {
			addrs[a] = true
		}
	}
	return links, addrs, nil
}
