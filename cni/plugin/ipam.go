package plugin

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flanneld/flanneld/ipam"
)

func ipamCommands() commands {
	return commands{
		name: "flanneld-ipam",
		add:  ipamAdd, del: ipamDel, check: ipamCheck, status: ipamStatus, collect: ipamGC,
	}
}

// ipamPool opens the records; flanneld-ipam's are always where ipam.dataDir
// says.
func ipamPool(c *call) (*ipam.Network, error) {
	if c.conf.IPAM.Type == "" {
		return nil, failf(types.ErrInvalidNetworkConfig, `"ipam" is missing: flanneld-ipam is run by an interface plugin whose ipam.type it is`)
	}
	pool, err := ipam.Open(c.conf.IPAM.DataDir, c.conf.Name)
	if err != nil {
		return nil, fail(codeStorage, err)
	}
	return pool, nil
}

// ipamAdd reserves addresses for another interface plugin.
func ipamAdd(c *call) error {
	pool, err := ipamPool(c)
	if err != nil {
		return err
	}
	space, err := c.conf.space()
	if err != nil {
		return err
	}
	if err := space.unclaimed(c.conf.Bridge); err != nil {
		return err
	}
	want, err := c.wanted()
	if err != nil {
		return err
	}
	dns, err := c.resolver(space)
	if err != nil {
		return err
	}
	who, err := c.identity()
	if err != nil {
		return err
	}
	h, err := pool.Reserve(ipam.Record{
		ContainerID: c.containerID, IfName: c.ifName, NetNS: c.netns, Namespace: who.namespace, Names: who.names, Labels: who.labels,
	}, ipam.Request{Sets: space.sets, Want: want})
	if errors.Is(err, ipam.ErrExists) {
		return failf(codeExists, "%v: DEL it first", err)
	}
	if err != nil {
		return reserveError(err)
	}
	defer h.Close()
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: c.conf.IPAM.Routes, DNS: dns}
	for i, p := range h.Record.Addresses {
		r.IPs = append(r.IPs, &types100.IPConfig{Address: netIP(p), Gateway: h.Record.Gateways[i].AsSlice()})
	}
	if err = h.Attached(); err == nil {
		err = c.print(r)
	}
	if err != nil {
		_ = h.Release()
		return fail(codeStorage, err)
	}
	return nil
}

func ipamDel(c *call) error {
	pool, err := ipamPool(c)
	if err != nil {
		return err
	}
	h, err := pool.Find(ipam.Key{ContainerID: c.containerID, IfName: c.ifName})
	if err != nil || h == nil {
		return reserveError(err)
	}
	if err := h.Release(); err != nil {
		return fail(codeStorage, err)
	}
	return nil
}

func ipamCheck(c *call) error {
	if _, err := ipamPool(c); err != nil {
		return err
	}
	prev, err := c.conf.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return failf(types.ErrInvalidNetworkConfig, "prevResult is missing: CHECK needs what ADD returned")
	}
	c.conf.DataDir = c.conf.IPAM.DataDir
	_, err = c.checkRecord(prev)
	return err
}

func ipamStatus(c *call) error {
	c.conf.DataDir = c.conf.IPAM.DataDir
	return poolStatus(c, space.unclaimed)
}

// ipamGC releases the reservations, not those of a bridge, that are not in
// the engine's list.
func ipamGC(c *call) error {
	pool, err := ipamPool(c)
	if err != nil {
		return err
	}
	list, err := c.conf.validAttachments()
	if err != nil {
		return err
	}
	valid := make(map[ipam.Key]bool, len(list))
	for _, k := range list {
		valid[k] = true
	}
	var errs []error
	for h, err := range pool.All() {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r := h.Record
		if !valid[ipam.Key{ContainerID: r.ContainerID, IfName: r.IfName}] && (r.HostLink == "" || !h.Intact) {
			errs = append(errs, h.Release())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fail(codeStorage, err)
	}
	return nil
}
