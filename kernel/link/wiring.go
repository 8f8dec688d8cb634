package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Wiring lays the cables of a lab: bridges, and wires between namespaces.
// Unlike the rest of this package it makes things once and does not repair
// them. Every link it makes is up.
type Wiring struct {
	*Handle
}

// Wire is a veth pair with one end here and the other in another namespace.
type Wire struct {
	Name   string // of this end
	Bridge string // this end is a port of it; "" for none
	MTU    int
	// PeerNetNS is the path of the other end's network namespace, PeerName
	// the other end's name there.
	PeerNetNS, PeerName string
}

// Loopback brings lo up.
func (w Wiring) Loopback() error { return w.SetLink("lo", true) }

// Bridge makes a bridge without spanning tree and with a MAC address that
// does not depend on its ports.
func (w Wiring) Bridge(name string, mac net.HardwareAddr, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac, mtu
	snooping := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := w.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return w.SetLink(name, true)
}

// Wire makes a veth pair with the far end created where it belongs, so that
// nothing is moved between namespaces. Both ends are up.
func (w Wiring) Wire(p Wire) error {
	peerNS, err := netns.GetFromPath(p.PeerNetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", p.PeerNetNS, err)
	}
	defer peerNS.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.Name, p.MTU
	if p.Bridge != "" {
		br, err := w.nl.LinkByName(p.Bridge)
		if err != nil {
			return fmt.Errorf("bridge %s of wire %s: %w", p.Bridge, p.Name, err)
		}
		attrs.MasterIndex = br.Attrs().Index
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = p.PeerName, netlink.NsFd(peerNS), uint32(p.MTU)
	if err := w.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make wire %s: %w", p.Name, err)
	}
	far, err := OpenAt(p.PeerNetNS)
	if err != nil {
		return err
	}
	defer far.Close()
	if err := (Wiring{far}).SetLink(p.PeerName, true); err != nil {
		return err
	}
	return w.SetLink(p.Name, true)
}

// SetLink switches a link on or off.
func (w Wiring) SetLink(name string, up bool) error {
	l, err := w.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if up {
		err = w.nl.LinkSetUp(l)
	} else {
		err = w.nl.LinkSetDown(l)
	}
	if err != nil {
		return fmt.Errorf("switch link %s: %w", name, err)
	}
	return nil
}

// AddAddress gives a link an address that is usable at once (no duplicate
// address detection).
func (w Wiring) AddAddress(name string, p netip.Prefix) error {
	l, err := w.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := w.nl.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, name, err)
	}
	return nil
}

// AddDefaultRoute sends what has no better route to a gateway.
func (w Wiring) AddDefaultRoute(name string, via netip.Addr) error {
	l, err := w.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: via.AsSlice()}
	if err := w.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("add default route via %s: %w", via, err)
	}
	return nil
}
