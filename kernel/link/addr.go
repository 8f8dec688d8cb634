package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Address is an address of an interface.
type Address struct {
	Prefix netip.Prefix // the address itself and its length; not masked
	Link   int
	// Settled: it may be used as a source now and later (not tentative, not
	// refused as a duplicate, not deprecated, not temporary).
	Settled bool
	// Secondary to another address of the same subnet.
	Secondary bool
}

const ifaddrmsgLen = 8 // struct ifaddrmsg

// Addresses lists the addresses of one interface, IPv4 first, in the kernel's
// order; 0 for those of all interfaces.
func (h *Handle) Addresses(link int) ([]Address, error) {
	var out []Address
	for _, fam := range families() {
		body := [ifaddrmsgLen]byte{0: fam}
		native.PutUint32(body[4:], uint32(link))
		h.message(unix.RTM_GETADDR, unix.NLM_F_DUMP, body[:])
		start := len(out)
		err := h.dump(func() { out = out[:start] }, func(body []byte) error {
			var a Address
			if len(body) > 0 && body[0] == fam && parseAddress(body, &a) && (link == 0 || a.Link == link) {
				out = append(out, a)
			}
			return nil
		})
		if err != nil && !noFamily(err) {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
	}
	return out, nil
}

// AddAddress gives an interface an address, usable at once (no duplicate
// address detection); nil if it has it already.
func (h *Handle) AddAddress(link int, p netip.Prefix) error {
	b := h.address(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, link, p)
	if p.Addr().Is6() {
		add32(b, unix.IFA_FLAGS, unix.IFA_F_NODAD)
	}
	if err := h.do(); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to interface with index %d: %w", p, link, err)
	}
	return nil
}

// DelAddress takes an address away; nil if it is gone already. With its last
// IPv4 address an interface loses its IPv4 routes.
func (h *Handle) DelAddress(link int, p netip.Prefix) error {
	h.address(unix.RTM_DELADDR, 0, link, p)
	err := h.do()
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove address %s of interface with index %d: %w", p, link, err)
	}
	return nil
}

func (h *Handle) address(kind, flags uint16, link int, p netip.Prefix) *nlbatch.Batch {
	h.own.wrote(echo{kind: kind, link: link, addr: p.Addr()})
	body := [ifaddrmsgLen]byte{0: family(p.Addr()), 1: byte(p.Bits())}
	native.PutUint32(body[4:], uint32(link))
	b := h.message(kind, flags, body[:])
	addAddr(b, unix.IFA_LOCAL, p.Addr())
	addAddr(b, unix.IFA_ADDRESS, p.Addr())
	return b
}

func parseAddress(body []byte, a *Address) (ok bool) {
	if len(body) < ifaddrmsgLen {
		return false
	}
	flags := uint32(body[2])
	var local, address netip.Addr
	for kind, data := range nlbatch.Attrs(body[ifaddrmsgLen:]) {
		switch kind {
		case unix.IFA_LOCAL: // of a point-to-point link IFA_ADDRESS is the other end
			local = addrOf(data)
		case unix.IFA_ADDRESS:
			address = addrOf(data)
		case unix.IFA_FLAGS:
			flags = u32(data)
		}
	}
	if !local.IsValid() {
		local = address
	}
	const unsettled = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	*a = Address{
		Prefix:  netip.PrefixFrom(local, int(body[1])),
		Link:    int(native.Uint32(body[4:])),
		Settled: flags&unsettled == 0,
	}
	// One bit means secondary to IPv4 and temporary to IPv6.
	if flags&unix.IFA_F_SECONDARY != 0 {
		a.Secondary = body[0] == unix.AF_INET
		a.Settled = a.Settled && a.Secondary
	}
	return a.Prefix.IsValid()
}
