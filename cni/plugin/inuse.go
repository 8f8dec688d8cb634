package plugin

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/link"
)

// A leased subnet belongs to one engine: Docker with --bip and a CNI network
// on it would hand out the same addresses.

// freeFor is free with a socket of its own.
func (s space) freeFor(bridge string) error {
	ports, err := link.OpenPorts()
	if err != nil {
		return fail(codeKernel, err)
	}
	defer ports.Close()
	return s.free(ports, bridge)
}

// free fails if an interface other than the bridge has an address inside a
// leased subnet. It reads all addresses of the host.
func (s space) free(ports *link.Ports, bridge string) error {
	for _, p := range s.leased {
		holders, err := ports.Holders(p)
		if err != nil {
			return fail(codeKernel, err)
		}
		for _, h := range holders {
			if h.Address.Addr() == p.Masked().Addr() {
				continue // the tunnel's own
			}
			port, err := ports.PortAt(h.Index)
			if errors.Is(err, link.ErrNoLink) {
				continue
			}
			if err != nil {
				return fail(codeKernel, err)
			}
			if port.Name != bridge {
				return s.inUse(port.Name, h.Address, p)
			}
		}
	}
	return nil
}

func (s space) inUse(name string, has, subnet netip.Prefix) error {
	return failf(codeInUse, "interface %s of this host has address %s in the subnet %s of %s: two would hand out the same addresses: "+
		"give %s another network (for Docker: --bip), or do not use this CNI network on this host", name, has, subnet, s.file, name)
}

// unclaimed fails if another bridge of the host is in a leased subnet, as far as
// one question a subnet can tell. What interface the calling plugin uses is
// not known, but that it is no other bridge.
func (s space) unclaimed(bridge string) error {
	if len(s.leased) == 0 {
		return nil
	}
	ports, err := link.OpenPorts()
	if err != nil {
		return fail(codeKernel, err)
	}
	defer ports.Close()
	for _, p := range s.leased {
		gateway := p.Masked().Addr().Next()
		index, err := ports.Toward(gateway, p.Bits())
		if err != nil {
			return fail(codeKernel, err)
		}
		if index == 0 {
			continue
		}
		port, err := ports.PortAt(index)
		if err != nil && !errors.Is(err, link.ErrNoLink) {
			return fail(codeKernel, err)
		}
		if port.Kind == "bridge" && port.Name != bridge {
			holders, err := ports.Holders(p)
			if i := slices.IndexFunc(holders, func(h link.Holder) bool { return h.Index == index }); err == nil && i >= 0 {
				return s.inUse(port.Name, holders[i].Address, p)
			}
		}
	}
	return nil
}
