package link

import (
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// IPIP is what makes a tunnel of bare IP in IP the one it is: RFC 2003, and
// RFC 2473 for IPv6. Packets inside are of the same family as those around
// them. Two of them are interchangeable if they are equal.
type IPIP struct {
	V6 bool
	// External: the packet's route says where it goes (Encap), and packets to
	// all addresses of the host are taken that no other device wants. A network
	// namespace has one for each family. Local is meaningless then.
	External bool
	// Local is this end; the other is the gateway of a packet's route, which
	// IPv6 refuses to send by another interface than the one that it is on.
	Local netip.Addr
	// Special: it has something that this type does not tell (one other end
	// only, packets of the other family, UDP around it, an
	// interface that it is bound to, …).
	Special bool
}

// Kinds of IPIP devices, as the kernel calls them.
const (
	KindIPIP   = "ipip"
	KindIPIPv6 = "ip6tnl"
)

// Numbers of the kernel that x/sys lacks (linux/if_tunnel.h).
const (
	iptunLink            = 1
	iptunLocal           = 2
	iptunRemote          = 3
	iptunTTL             = 4
	iptunFlags           = 8
	iptunProto           = 9
	iptunPMTUDisc        = 10
	iptunEncapType       = 15
	iptunCollectMetadata = 19
	iptunFwMark          = 20

	// ipipTTL is that of packets on the underlay: what is inside must not end
	// there because a person traces its route.
	ipipTTL = 64
)

// Kind is what the kernel calls such devices.
func (t IPIP) Kind() string {
	if t.V6 {
		return KindIPIPv6
	}
	return KindIPIP
}

// AddIPIP makes an IPIP device, switched off. unix.EEXIST is in the error if
// the name is taken or there is another such device, unix.EOPNOTSUPP if the
// kernel has none.
func (h *Handle) AddIPIP(name string, mtu int, t IPIP) error {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body[:])
	b.String(unix.IFLA_IFNAME, name)
	add32(b, unix.IFLA_MTU, uint32(mtu))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, t.Kind())
		b.Nest(unix.IFLA_INFO_DATA, func() {
			if t.External {
				b.Bytes(iptunCollectMetadata, nil)
			} else {
				addAddr(b, iptunLocal, t.Local)
			}
			b.Uint8(iptunTTL, ipipTTL)
			if t.V6 {
				b.Uint8(iptunProto, unix.IPPROTO_IPV6)
				// The option that limits nesting costs 8 bytes.
				add32(b, iptunFlags, ip6tnlIgnoreEncapLimit)
			} else {
				b.Uint8(iptunProto, unix.IPPROTO_IPIP)
				// Don't-fragment is what the packet inside says.
				b.Uint8(iptunPMTUDisc, 0)
			}
		})
	})
	if err := h.do(); err != nil {
		return fmt.Errorf("make %s device %s: %w", t.Kind(), name, err)
	}
	return nil
}

// parseIPIP reads what a device is. TTL and don't-fragment may be as flannel
// has them.
func parseIPIP(kind string, info []byte) *IPIP {
	t := &IPIP{V6: kind == KindIPIPv6}
	proto, flags := uint8(0), uint32(ip6tnlIgnoreEncapLimit)
	for kind, data := range nlbatch.Attrs(info) {
		switch kind {
		case iptunLocal:
			t.Local = addrOf(data)
		case iptunRemote:
			t.Special = t.Special || !addrOf(data).IsUnspecified()
		case iptunFlags:
			if len(data) >= 4 { // of an IPv4 device they have another meaning
				flags = u32(data)
			}
		case iptunProto:
			proto = u8(data)
		case iptunCollectMetadata:
			t.External = true
		case iptunLink, iptunFwMark:
			t.Special = t.Special || u32(data) != 0
		case iptunEncapType:
			t.Special = t.Special || u16(data) != 0
		}
	}
	if t.Local.IsUnspecified() {
		t.Local = netip.Addr{}
	}
	if t.V6 {
		// The kernel adds what it found out about the addresses.
		const found = 0x00070000
		t.Special = t.Special || proto != unix.IPPROTO_IPV6 || flags&^found != ip6tnlIgnoreEncapLimit
	} else {
		t.Special = t.Special || proto != unix.IPPROTO_IPIP && proto != 0
	}
	return t
}
