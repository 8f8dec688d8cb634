package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Bridge is what a bridge must be.
type Bridge struct {
	Name string
	// MAC is given to a bridge that is made, so that it does not drift with
	// the ports that come and go. An existing bridge keeps its own, pinned.
	MAC net.HardwareAddr
	MTU int // of a bridge that is made; 0: the kernel's choice
	// Addresses that the bridge must have, with their prefix lengths.
	Addresses []netip.Prefix
	// Force removes other addresses that overlap these (and for IPv4 any
	// other); without it they are an error.
	Force   bool
	Promisc bool
	// Changing is called before the bridge is made or given an address, and
	// its error ends the work; may be nil.
	Changing func() error
}

func (b Bridge) changing() error {
	if b.Changing == nil {
		return nil
	}
	return b.Changing()
}

// AddressError says that a bridge has an address that does not go together
// with the wanted one.
type AddressError struct {
	Bridge     string
	Have, Want netip.Prefix
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("bridge %s has address %s and cannot take %s beside it: delete the bridge if it is a leftover, choose another name, or set forceAddress", e.Bridge, e.Have, e.Want)
}

// BridgeAlias marks the bridges that Bridge made.
const BridgeAlias = "flanneld bridge"

// Bridge makes the bridge be as described, writing only what differs, and
// returns it. Several processes may do so at once.
func (p *Ports) Bridge(want Bridge) (Port, error) {
	br, err := p.Port(want.Name)
	if errors.Is(err, ErrNoLink) {
		br, err = p.makeBridge(want)
	}
	if err != nil {
		return Port{}, err
	}
	if br.Kind != "bridge" {
		return Port{}, fmt.Errorf("link %s exists and is no bridge but of kind %q: choose another name for the bridge", want.Name, br.Kind)
	}
	if !br.Up || want.Promisc && !br.Promisc {
		if err := p.raiseBridge(br, want.Promisc); err != nil {
			return Port{}, fmt.Errorf("bring up bridge %s: %w", want.Name, err)
		}
		br.Up = true
	}
	if len(want.Addresses) == 0 {
		return br, nil
	}
	return br, p.bridgeAddresses(br, want)
}

func (p *Ports) makeBridge(want Bridge) (Port, error) {
	if err := want.changing(); err != nil {
		return Port{}, err
	}
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkMessage(0, unix.IFF_UP, unix.IFF_UP))
	p.b.String(unix.IFLA_IFNAME, want.Name)
	if want.MAC != nil {
		p.b.Bytes(unix.IFLA_ADDRESS, want.MAC)
	}
	if want.MTU != 0 {
		p.b.Uint32(unix.IFLA_MTU, uint32(want.MTU))
	}
	p.b.Nest(unix.IFLA_LINKINFO, func() { p.b.String(unix.IFLA_INFO_KIND, "bridge") })
	err := p.do()
	if err == nil { // otherwise somebody was faster
		p.b.Reset()
		p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(0, 0, 0))
		p.b.String(unix.IFLA_IFNAME, want.Name)
		p.b.String(unix.IFLA_IFALIAS, BridgeAlias)
		err = p.do()
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return Port{}, fmt.Errorf("make bridge %s: %w", want.Name, err)
	}
	return p.Port(want.Name)
}

// raiseBridge also sets the bridge's own MAC again: a bridge whose MAC was
// set keeps it, one that somebody else made takes over its ports'.
func (p *Ports) raiseBridge(br Port, promisc bool) error {
	flags := uint32(unix.IFF_UP)
	if promisc {
		flags |= unix.IFF_PROMISC
	}
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(br.Index, flags, flags))
	p.b.Bytes(unix.IFLA_ADDRESS, br.MAC)
	return p.do()
}

func (p *Ports) bridgeAddresses(br Port, want Bridge) error {
	have, err := p.Addresses(br.Index)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", want.Name, err)
	}
	lacking := slices.DeleteFunc(slices.Clone(want.Addresses), func(w netip.Prefix) bool { return slices.Contains(have, w) })
	if len(lacking) == 0 {
		return nil
	}
	if err := want.changing(); err != nil {
		return err
	}
	p.b.Reset()
	for _, w := range lacking {
		for _, h := range have {
			if h.Addr().Is4() != w.Addr().Is4() || !w.Addr().Is4() && !h.Overlaps(w) || slices.Contains(want.Addresses, h) {
				continue
			}
			if !want.Force {
				return &AddressError{Bridge: want.Name, Have: h, Want: w}
			}
			p.addressMessage(unix.RTM_DELADDR, 0, br.Index, h, false)
		}
		p.addressMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, br.Index, w, false)
	}
	// A bridge that somebody else made gets its MAC pinned together with its
	// first address.
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(br.Index, 0, 0))
	p.b.Bytes(unix.IFLA_ADDRESS, br.MAC)
	if err := p.do(); err != nil {
		return fmt.Errorf("set addresses %v of bridge %s: %w", want.Addresses, want.Name, err)
	}
	return nil
}

// addressMessage adds one change of an address to the batch. IPv6 addresses
// are usable at once unless dad asks for duplicate address detection.
func (p *Ports) addressMessage(kind, flags uint16, index int, a netip.Prefix, dad bool) {
	var af uint8
	if !a.Addr().Is4() && !dad && kind == unix.RTM_NEWADDR {
		af = unix.IFA_F_NODAD
	}
	p.b.Message(kind, flags, addrMessage(family(a.Addr()), a.Bits(), af, index))
	p.b.Bytes(unix.IFA_LOCAL, a.Addr().AsSlice())
	p.b.Bytes(unix.IFA_ADDRESS, a.Addr().AsSlice())
	if a.Addr().Is4() && a.Bits() < 31 && kind == unix.RTM_NEWADDR {
		p.b.Bytes(unix.IFA_BROADCAST, lastOf(a).AsSlice())
	}
}

// lastOf is the broadcast address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}
