package link

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// Wiring lays the cables of a lab: bridges, and wires between namespaces.
// Unlike the rest of this package it makes things once and does not repair
// them. Every link it makes is up.
type Wiring struct {
	*Ports
}

// OpenWiring works in the calling thread's network namespace.
func OpenWiring() (Wiring, error) {
	p, err := OpenPorts()
	return Wiring{p}, err
}

// OpenWiringAt works in the network namespace at a path.
func OpenWiringAt(path string) (w Wiring, err error) {
	ns, err := netns.Open(path)
	if err != nil {
		return Wiring{}, err
	}
	defer ns.Close()
	err = ns.Do(func() (err error) {
		w, err = OpenWiring()
		return err
	})
	return w, err
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

// Switch makes a bridge without spanning tree, without multicast snooping and
// with a MAC address that does not depend on its ports.
func (w Wiring) Switch(name string, mac net.HardwareAddr, mtu int) error {
	w.b.Reset()
	w.b.Message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkMessage(0, unix.IFF_UP, unix.IFF_UP))
	w.b.String(unix.IFLA_IFNAME, name)
	w.b.Bytes(unix.IFLA_ADDRESS, mac)
	if mtu != 0 {
		w.b.Uint32(unix.IFLA_MTU, uint32(mtu))
	}
	w.b.Nest(unix.IFLA_LINKINFO, func() {
		w.b.String(unix.IFLA_INFO_KIND, "bridge")
		w.b.Nest(unix.IFLA_INFO_DATA, func() { w.b.Uint8(unix.IFLA_BR_MCAST_SNOOPING, 0) })
	})
	if err := w.do(); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

// Wire makes a veth pair with the far end created where it belongs, so that
// nothing is moved between namespaces. Both ends are up.
func (w Wiring) Wire(p Wire) error {
	peerNS, err := netns.Open(p.PeerNetNS)
	if err != nil {
		return err
	}
	defer peerNS.Close()
	v := Veth{Name: p.Name, MTU: p.MTU, Peer: p.PeerName, PeerNS: peerNS.FD()}
	if p.Bridge != "" {
		br, err := w.Port(p.Bridge)
		if err != nil {
			return fmt.Errorf("wire %s: %w", p.Name, err)
		}
		v.Bridge = br.Index
	}
	if err := w.AddVeth(v); err != nil {
		return err
	}
	far, err := OpenWiringAt(p.PeerNetNS)
	if err != nil {
		return err
	}
	defer far.Close()
	return far.SetLink(p.PeerName, true)
}

// SetLink switches a link on or off.
func (w Wiring) SetLink(name string, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	w.b.Reset()
	w.b.Message(unix.RTM_NEWLINK, 0, linkMessage(0, flags, unix.IFF_UP))
	w.b.String(unix.IFLA_IFNAME, name)
	if err := w.do(); err != nil {
		return fmt.Errorf("switch link %s: %w", name, err)
	}
	return nil
}

// AddAddress gives a link an address that is usable at once (no duplicate
// address detection).
func (w Wiring) AddAddress(name string, p netip.Prefix) error {
	l, err := w.Port(name)
	if err != nil {
		return err
	}
	w.b.Reset()
	w.addressMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, l.Index, p, false)
	if err := w.do(); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, name, err)
	}
	return nil
}

// AddDefaultRoute sends what has no better route to a gateway.
func (w Wiring) AddDefaultRoute(name string, via netip.Addr) error {
	l, err := w.Port(name)
	if err != nil {
		return err
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if !via.Is4() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	w.b.Reset()
	w.routeMessage(l.Index, Inroute{To: all, Gateway: via})
	if err := w.do(); err != nil {
		return fmt.Errorf("add default route via %s: %w", via, err)
	}
	return nil
}
