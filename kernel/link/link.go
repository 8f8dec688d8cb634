package link

import (
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Link is what the kernel says of an interface.
type Link struct {
	Name  string
	Index int
	MTU   int
	Kind  string // "vxlan", "bridge", "veth", …; "" for hardware and lo
	MAC   MAC
	Up    bool // switched on
	// Master is the interface that this one is a port of, Parent the one it
	// stands on (or, of a veth, the other end); 0: none.
	Master, Parent int
	Loopback       bool
	Vxlan          *Vxlan // of Kind "vxlan"
	GRE            *GRE   // of Kind "gre" and "ip6gre"
	IPIP           *IPIP  // of Kind "ipip" and "ip6tnl"
	Conf           Conf
}

// Conf is the part of an interface's sysctls that the kernel tells with the
// link.
type Conf struct {
	RPFilter, ARPIgnore uint32
	// IPv6: the interface has IPv6 at all; the rest is meaningless without.
	IPv6 bool
	// AddrGenMode is how link-local addresses come to be (AddrGenNone: not).
	AddrGenMode uint8
	AcceptRA    int32
	DisableIPv6 bool
}

// AddrGenNone is the Conf.AddrGenMode of an interface that makes no
// addresses for itself.
const AddrGenNone = 1

// Numbers of the kernel that x/sys lacks (linux/ip.h, linux/ipv6.h,
// linux/rtnetlink.h).
const (
	ipv4ConfRPFilter  = 8
	ipv4ConfARPIgnore = 19
	ipv6ConfAcceptRA  = 3
	ipv6ConfDisable   = 26
	skipStats         = 1 << 3
	ifinfomsgLen      = 16
)

// LinkByName returns the interface of that name; ErrNoLink if there is none.
func (h *Handle) LinkByName(name string) (Link, error) {
	l, err := h.link(0, name)
	if err != nil {
		return Link{}, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

// LinkByIndex returns the interface of that index; ErrNoLink if there is
// none.
func (h *Handle) LinkByIndex(index int) (Link, error) {
	l, err := h.link(index, "")
	if err != nil {
		return Link{}, fmt.Errorf("interface with index %d: %w", index, err)
	}
	return l, nil
}

func (h *Handle) link(index int, name string) (Link, error) {
	body := ifinfomsg(index, 0, 0)
	b := h.message(unix.RTM_GETLINK, 0, body[:])
	if name != "" {
		b.String(unix.IFLA_IFNAME, name)
	}
	add32(b, unix.IFLA_EXT_MASK, skipStats)
	var l Link
	err := h.get(func(body []byte) error {
		if !parseLink(body, &l) {
			return ErrNoLink
		}
		return nil
	})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, ErrNotFound) {
		err = ErrNoLink
	}
	if err == nil {
		h.own.sawLink(&l)
	} else if errors.Is(err, ErrNoLink) {
		h.own.sawNoLink(index, name)
	}
	return l, err
}

// Links lists the interfaces of one kind; "" for all. It costs time for every
// interface there is: not for hot paths.
func (h *Handle) Links(kind string) ([]Link, error) {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_GETLINK, unix.NLM_F_DUMP, body[:])
	if kind != "" {
		b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, kind) })
	}
	add32(b, unix.IFLA_EXT_MASK, skipStats)
	var out []Link
	err := h.dump(func() { out = nil }, func(body []byte) error {
		var l Link
		if parseLink(body, &l) && (kind == "" || l.Kind == kind) {
			out = append(out, l)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	if kind != "" {
		for i := range out {
			h.own.sawLink(&out[i])
		}
	}
	return out, nil
}

// DeleteLink deletes an interface; nil if it is gone already.
func (h *Handle) DeleteLink(index int) error {
	body := ifinfomsg(index, 0, 0)
	h.message(unix.RTM_DELLINK, 0, body[:])
	h.own.sawNoLink(index, "")
	if err := h.do(); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface with index %d: %w", index, err)
	}
	return nil
}

// SetUp switches an interface on.
func (h *Handle) SetUp(index int) error {
	err := h.setLink("switch on", index, unix.IFF_UP, unix.IFF_UP, func(*nlbatch.Batch) {})
	if err == nil {
		h.own.changed(index, func(s *linkState) { s.up = true })
	}
	return err
}

// SetMTU sets an interface's MTU.
func (h *Handle) SetMTU(index, mtu int) error {
	err := h.setLink(fmt.Sprintf("set MTU %d of", mtu), index, 0, 0, func(b *nlbatch.Batch) {
		add32(b, unix.IFLA_MTU, uint32(mtu))
	})
	if err == nil {
		h.own.changed(index, func(s *linkState) { s.mtu = mtu })
	}
	return err
}

// SetMAC sets an interface's Ethernet address. The kernel then drops all of
// the interface's neighbours, permanent ones included.
func (h *Handle) SetMAC(index int, mac MAC) error {
	return h.setLink("set MAC "+mac.String()+" of", index, 0, 0, func(b *nlbatch.Batch) {
		b.Bytes(unix.IFLA_ADDRESS, mac[:])
	})
}

// SetConf sets, of an interface's sysctls, RPFilter and ARPIgnore, and
// AddrGenMode where there is IPv6. (The others have no message: see SetSysctl.)
func (h *Handle) SetConf(index int, c Conf) error {
	return h.setLink("configure", index, 0, 0, func(b *nlbatch.Batch) {
		b.Nest(unix.IFLA_AF_SPEC, func() {
			b.Nest(unix.AF_INET, func() {
				b.Nest(unix.IFLA_INET_CONF, func() {
					b.Uint32(ipv4ConfRPFilter, c.RPFilter)
					b.Uint32(ipv4ConfARPIgnore, c.ARPIgnore)
				})
			})
			if c.IPv6 {
				b.Nest(unix.AF_INET6, func() { b.Uint8(unix.IFLA_INET6_ADDR_GEN_MODE, c.AddrGenMode) })
			}
		})
	})
}

func (h *Handle) setLink(what string, index int, flags, change uint32, attrs func(*nlbatch.Batch)) error {
	body := ifinfomsg(index, flags, change)
	attrs(h.message(unix.RTM_NEWLINK, 0, body[:]))
	if err := h.do(); err != nil {
		return fmt.Errorf("%s interface with index %d: %w", what, index, err)
	}
	return nil
}

func ifinfomsg(index int, flags, change uint32) [ifinfomsgLen]byte {
	var body [ifinfomsgLen]byte
	native.PutUint32(body[4:], uint32(index))
	native.PutUint32(body[8:], flags)
	native.PutUint32(body[12:], change)
	return body
}

// parseLink reads a link message; ok is false for those that are about a
// bridge's port.
func parseLink(body []byte, l *Link) (ok bool) {
	if len(body) < ifinfomsgLen || body[0] != unix.AF_UNSPEC {
		return false
	}
	flags := native.Uint32(body[8:])
	*l = Link{
		Index:    int(native.Uint32(body[4:])),
		Up:       flags&unix.IFF_UP != 0,
		Loopback: flags&unix.IFF_LOOPBACK != 0,
	}
	for kind, data := range nlbatch.Attrs(body[ifinfomsgLen:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(data)
		case unix.IFLA_MTU:
			l.MTU = int(u32(data))
		case unix.IFLA_MASTER:
			l.Master = int(u32(data))
		case unix.IFLA_LINK:
			l.Parent = int(u32(data))
		case unix.IFLA_ADDRESS:
			if len(data) == len(l.MAC) {
				l.MAC = MAC(data)
			}
		case unix.IFLA_LINKINFO:
			parseLinkInfo(data, l)
		case unix.IFLA_AF_SPEC:
			for fam, spec := range nlbatch.Attrs(data) {
				parseConf(fam, spec, &l.Conf)
			}
		}
	}
	return l.Name != ""
}

func parseLinkInfo(info []byte, l *Link) {
	for kind, data := range nlbatch.Attrs(info) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.Kind = unix.ByteSliceToString(data)
		case unix.IFLA_INFO_DATA:
			switch l.Kind {
			case "vxlan":
				l.Vxlan = parseVxlan(data)
			case KindGRE, KindGREv6:
				l.GRE = parseGRE(l.Kind, data)
			case KindIPIP, KindIPIPv6:
				l.IPIP = parseIPIP(l.Kind, data)
			}
		}
	}
}

// parseConf reads one family's part of IFLA_AF_SPEC. The IPv4 table begins at
// number 1, the IPv6 one at 0.
func parseConf(fam uint16, spec []byte, c *Conf) {
	at := func(table []byte, i int) uint32 {
		if len(table) < 4*(i+1) {
			return 0
		}
		return native.Uint32(table[4*i:])
	}
	for kind, data := range nlbatch.Attrs(spec) {
		switch {
		case fam == unix.AF_INET && kind == unix.IFLA_INET_CONF:
			c.RPFilter, c.ARPIgnore = at(data, ipv4ConfRPFilter-1), at(data, ipv4ConfARPIgnore-1)
		case fam == unix.AF_INET6 && kind == unix.IFLA_INET6_CONF:
			c.IPv6, c.AcceptRA, c.DisableIPv6 = true, int32(at(data, ipv6ConfAcceptRA)), at(data, ipv6ConfDisable) != 0
		case fam == unix.AF_INET6 && kind == unix.IFLA_INET6_ADDR_GEN_MODE:
			c.AddrGenMode = u8(data)
		}
	}
}
