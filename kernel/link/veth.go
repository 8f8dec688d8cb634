package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Veth is a pair whose one end is a port of a bridge here and whose other end
// is made inside a container's network namespace.
type Veth struct {
	Name, Alias string
	MAC         net.HardwareAddr // of this end; nil: the kernel's choice
	Bridge      int              // index; 0: no port of a bridge
	// Hairpin: frames may go back out of the port they came in by. Isolated:
	// the port does not see other isolated ports.
	Hairpin, Isolated bool
	MTU               int // of both ends; 0: the kernel's choice
	Peer              string
	PeerMAC           net.HardwareAddr
	PeerNS            int // file descriptor of the namespace
}

// AddVeth makes the pair: this end up, the other down. After an error there is
// none. It fails with unix.EEXIST if either name is taken.
func (p *Ports) AddVeth(v Veth) error {
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkMessage(0, 0, 0))
	p.b.String(unix.IFLA_IFNAME, v.Name)
	if v.MAC != nil {
		p.b.Bytes(unix.IFLA_ADDRESS, v.MAC)
	}
	if v.MTU != 0 {
		p.b.Uint32(unix.IFLA_MTU, uint32(v.MTU))
	}
	p.b.Nest(unix.IFLA_LINKINFO, func() {
		p.b.String(unix.IFLA_INFO_KIND, "veth")
		p.b.Nest(unix.IFLA_INFO_DATA, func() {
			const peer = 1 // VETH_INFO_PEER
			p.b.NestBody(peer, linkMessage(0, 0, 0), func() {
				p.b.String(unix.IFLA_IFNAME, v.Peer)
				p.b.Uint32(unix.IFLA_NET_NS_FD, uint32(v.PeerNS))
				if v.PeerMAC != nil {
					p.b.Bytes(unix.IFLA_ADDRESS, v.PeerMAC)
				}
				if v.MTU != 0 {
					p.b.Uint32(unix.IFLA_MTU, uint32(v.MTU))
				}
			})
		})
	})
	p.portMessages(v)
	out, err := p.c.Do(&p.b)
	switch {
	case err != nil:
		return fmt.Errorf("make veth pair %s and %s: %w", v.Name, v.Peer, err)
	case out[0] != nil:
		return fmt.Errorf("make veth pair %s and %s: %w", v.Name, v.Peer, out[0])
	}
	if err := errors.Join(out[1:]...); err != nil {
		return errors.Join(fmt.Errorf("set up bridge port %s: %w", v.Name, err), p.Delete(v.Name))
	}
	return nil
}

// genModeNone: no link-local address (IN6_ADDR_GEN_MODE_NONE).
const genModeNone = 1

// portMessages describe what the new link's creation cannot: no link-local
// address on a port, the bridge, its flags, and up.
func (p *Ports) portMessages(v Veth) {
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(0, 0, 0))
	p.b.String(unix.IFLA_IFNAME, v.Name)
	if v.Alias != "" {
		p.b.String(unix.IFLA_IFALIAS, v.Alias)
	}
	if v.Bridge != 0 {
		p.b.Uint32(unix.IFLA_MASTER, uint32(v.Bridge))
	}
	if hasIPv6() {
		p.b.Nest(unix.IFLA_AF_SPEC, func() {
			p.b.Nest(unix.AF_INET6, func() { p.b.Uint8(unix.IFLA_INET6_ADDR_GEN_MODE, genModeNone) })
		})
	}
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(0, unix.IFF_UP, unix.IFF_UP))
	p.b.String(unix.IFLA_IFNAME, v.Name)
	if v.Bridge != 0 && (v.Hairpin || v.Isolated) {
		p.b.Nest(unix.IFLA_LINKINFO, func() {
			p.b.String(unix.IFLA_INFO_SLAVE_KIND, "bridge")
			p.b.Nest(unix.IFLA_INFO_SLAVE_DATA, func() {
				if v.Hairpin {
					p.b.Uint8(unix.IFLA_BRPORT_MODE, 1)
				}
				if v.Isolated {
					p.b.Uint8(unix.IFLA_BRPORT_ISOLATED, 1)
				}
			})
		})
	}
}

// Join makes a link that exists a port of v.Bridge, up, as AddVeth does with
// v.Name.
func (p *Ports) Join(v Veth) error {
	p.b.Reset()
	p.portMessages(v)
	if err := p.do(); err != nil {
		return fmt.Errorf("set up bridge port %s: %w", v.Name, err)
	}
	return nil
}

// Inside is what a container's interface must be.
type Inside struct {
	Index     int
	Addresses []netip.Prefix
	// DAD: IPv6 addresses are checked for duplicates before they are usable.
	DAD    bool
	Routes []Inroute
}

// Inroute is a route of a container.
type Inroute struct {
	To      netip.Prefix
	Gateway netip.Addr // invalid: directly on the link
	// Zero values leave these to the kernel.
	MTU, AdvMSS, Priority, Table, Scope int
}

// FillIn brings lo up and sets the addresses of a container's interface, brings it up, and
// adds the routes, all of it in one call in the namespace p was opened in.
func (p *Ports) FillIn(in Inside) error {
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(1, unix.IFF_UP, unix.IFF_UP)) // lo
	what := []string{"bring up lo"}
	for _, a := range in.Addresses {
		p.addressMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, in.Index, a, in.DAD)
		what = append(what, "add address "+a.String())
	}
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(in.Index, unix.IFF_UP, unix.IFF_UP))
	what = append(what, "bring up the interface")
	for _, r := range in.Routes {
		p.routeMessage(in.Index, r)
		what = append(what, "add route to "+r.To.String()+" via "+r.Gateway.String())
	}
	out, err := p.c.Do(&p.b)
	if err != nil {
		return err
	}
	for i, err := range out {
		if err != nil { // what follows is a consequence
			return fmt.Errorf("%s: %w", what[i], err)
		}
	}
	return nil
}

func (p *Ports) routeMessage(index int, r Inroute) {
	scope := r.Scope
	if scope == 0 && !r.Gateway.IsValid() && r.To.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	table := uint8(unix.RT_TABLE_MAIN)
	if r.Table > 255 {
		table = unix.RT_TABLE_UNSPEC
	} else if r.Table != 0 {
		table = uint8(r.Table)
	}
	p.b.Message(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, []byte{
		family(r.To.Addr()), uint8(r.To.Bits()), 0, 0, table, unix.RTPROT_BOOT, uint8(scope), unix.RTN_UNICAST, 0, 0, 0, 0,
	})
	if r.To.Bits() > 0 {
		p.b.Bytes(unix.RTA_DST, r.To.Masked().Addr().AsSlice())
	}
	if r.Gateway.IsValid() {
		p.b.Bytes(unix.RTA_GATEWAY, r.Gateway.AsSlice())
	}
	p.b.Uint32(unix.RTA_OIF, uint32(index))
	if r.Priority != 0 {
		p.b.Uint32(unix.RTA_PRIORITY, uint32(r.Priority))
	}
	if r.Table > 255 {
		p.b.Uint32(unix.RTA_TABLE, uint32(r.Table))
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		p.b.Nest(unix.RTA_METRICS, func() {
			if r.MTU != 0 {
				p.b.Uint32(unix.RTAX_MTU, uint32(r.MTU))
			}
			if r.AdvMSS != 0 {
				p.b.Uint32(unix.RTAX_ADVMSS, uint32(r.AdvMSS))
			}
		})
	}
}

// Learn tells the kernel who has an address on a link, replacing what it
// believed from a former holder. The entry is stale: it is used at once, and
// checked by the kernel when it is.
func (p *Ports) Learn(index int, addrs []netip.Addr, mac net.HardwareAddr) error {
	p.b.Reset()
	for _, a := range addrs {
		m := make([]byte, unix.SizeofNdMsg)
		m[0] = family(a)
		native.PutUint32(m[4:], uint32(index))
		native.PutUint16(m[8:], unix.NUD_STALE)
		p.b.Message(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m)
		p.b.Bytes(unix.NDA_DST, a.AsSlice())
		p.b.Bytes(unix.NDA_LLADDR, mac)
	}
	if err := p.do(); err != nil {
		return fmt.Errorf("set neighbours %v: %w", addrs, err)
	}
	return nil
}

// Settled tells whether the namespace receives packets to an address of its
// own: the kernel makes an IPv6 address usable some time after it was added.
func (p *Ports) Settled(a netip.Addr) (bool, error) {
	p.b.Reset()
	m := make([]byte, unix.SizeofRtMsg)
	m[0], m[1] = family(a), uint8(a.BitLen())
	p.b.Message(unix.RTM_GETROUTE, 0, m)
	p.b.Bytes(unix.RTA_DST, a.AsSlice())
	for m, err := range p.c.Get(&p.b) {
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look up route to own address %s: %w", a, err)
		}
		return len(m) >= unix.SizeofRtMsg && m[7] == unix.RTN_LOCAL, nil
	}
	return false, nil
}

// Announce makes an interface tell its neighbours who has its addresses now,
// if its sysctls arp_notify and ndisc_notify are on.
func (p *Ports) Announce(index int, mac net.HardwareAddr) error {
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(index, 0, 0))
	p.b.Bytes(unix.IFLA_ADDRESS, mac) // setting it, be it the same, is what is announced
	if err := p.do(); err != nil {
		return fmt.Errorf("announce %s: %w", mac, err)
	}
	return nil
}

// Routes lists the main table's (or the table's, if not 0) unicast routes on one link.
func (p *Ports) Routes(index, table int) ([]Inroute, error) {
	var out []Inroute
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		p.b.Reset()
		m := make([]byte, unix.SizeofRtMsg)
		m[0] = fam
		p.b.Message(unix.RTM_GETROUTE, unix.NLM_F_DUMP, m)
		p.b.Uint32(unix.RTA_OIF, uint32(index))
		if table == 0 {
			table = unix.RT_TABLE_MAIN
		}
		p.b.Uint32(unix.RTA_TABLE, uint32(table))
		for m, err := range p.c.Get(&p.b) {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) { // no such table, no IPv6
				break
			}
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if r, ok := parseRoute(m, index); ok {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func parseRoute(m []byte, index int) (Inroute, bool) {
	if len(m) < unix.SizeofRtMsg || m[7] != unix.RTN_UNICAST {
		return Inroute{}, false
	}
	dst := netip.IPv4Unspecified()
	if m[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	r, oif := Inroute{Scope: int(m[6])}, 0
	for kind, data := range nlbatch.Attrs(m[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(data)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(data)
		case unix.RTA_OIF:
			oif = number(data)
		case unix.RTA_PRIORITY:
			r.Priority = number(data)
		case unix.RTA_TABLE:
			r.Table = number(data)
		}
	}
	r.To = netip.PrefixFrom(dst, int(m[1]))
	return r, oif == index
}

// hasIPv6 tells whether the kernel was started with IPv6.
func hasIPv6() bool { return unix.Access("/proc/sys/net/ipv6", unix.F_OK) == nil }
