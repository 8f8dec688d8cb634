package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Holder is an interface and an address that it has.
type Holder struct {
	Index   int
	Address netip.Prefix
}

// Holders lists who has an address inside p. It reads all addresses of the
// family.
func (p *Ports) Holders(in netip.Prefix) ([]Holder, error) {
	all, err := p.addresses(family(in.Addr()), 0)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(h Holder) bool { return !in.Contains(h.Address.Addr()) }), nil
}

// Toward returns the interface that has address a, or is directly connected to
// a subnet of at least bits bits around it: 0 for none. It is one question,
// whatever there is on the host. It needs Linux 4.13.
func (p *Ports) Toward(a netip.Addr, bits int) (index int, err error) {
	p.b.Reset()
	m := make([]byte, unix.SizeofRtMsg)
	m[0], m[1] = family(a), uint8(a.BitLen())
	native.PutUint32(m[8:], unix.RTM_F_FIB_MATCH) // answer with the route itself
	p.b.Message(unix.RTM_GETROUTE, 0, m)
	p.b.Bytes(unix.RTA_DST, a.AsSlice())
	for m, err := range p.c.Get(&p.b) {
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("look up route to %s: %w", a, err)
		}
		if len(m) < unix.SizeofRtMsg || int(m[1]) < bits {
			return 0, nil
		}
		for kind, data := range nlbatch.Attrs(m[unix.SizeofRtMsg:]) {
			switch kind {
			case unix.RTA_GATEWAY, unix.RTA_VIA:
				return 0, nil
			case unix.RTA_OIF:
				index = number(data)
			}
		}
		return index, nil
	}
	return 0, nil
}

// PortAt is Port by index.
func (p *Ports) PortAt(index int) (Port, error) {
	p.b.Reset()
	p.b.Message(unix.RTM_GETLINK, 0, linkMessage(index, 0, 0))
	p.b.Uint32(unix.IFLA_EXT_MASK, 1<<3) // RTEXT_FILTER_SKIP_STATS
	return p.port(fmt.Sprintf("with index %d", index))
}
