package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// GRE is what makes a GRE device (RFC 2784, RFC 2890) the one it is. Two of
// them are interchangeable if they are equal.
type GRE struct {
	V6 bool // over IPv6
	// External: the packet's route says where it goes and by which key
	// (Encap), and packets of all senders and keys are taken that no other
	// device wants. A network namespace has one for each family of the
	// underlay. Remote, Local, TTL and the key are meaningless then.
	External      bool
	Local, Remote netip.Addr // zero: any
	Key           uint32
	Keyed         bool // whether there is a Key on the wire
	// Checksum is sent, and demanded of what arrives. An external device sends
	// what the route says.
	Checksum bool
	// Sequence numbers are sent. They are not demanded: an end that is made
	// again counts from 0, and the other would drop all until it is even.
	Sequence bool
	TTL      uint8 // of packets on the underlay; 0: that of the packet inside
	// Special: it has something that this type does not tell (another key in
	// than out, UDP around it, an interface it is bound to, don't-fragment set
	// whatever the packet inside says, …).
	Special bool
}

// Numbers of the kernel that x/sys lacks (linux/if_tunnel.h,
// linux/ip6_tunnel.h).
const (
	greLink            = 1
	greIFlags          = 2
	greOFlags          = 3
	greIKey            = 4
	greOKey            = 5
	greLocal           = 6
	greRemote          = 7
	greTTL             = 8
	greTOS             = 9
	grePMTUDisc        = 10
	greFlowinfo        = 12
	greFlags           = 13
	greEncapType       = 14
	greCollectMetadata = 18
	greIgnoreDF        = 19
	greFwMark          = 20

	greChecksum = 0x8000
	greKey      = 0x2000
	greSequence = 0x1000

	ip6tnlIgnoreEncapLimit = 1
	ip6tnlAskedFor         = 0xffff // above: what the kernel found out
)

// Kinds of GRE devices, as the kernel calls them.
const (
	KindGRE    = "gre"
	KindGREv6  = "ip6gre"
	greKeyLen  = 4
	greFlagLen = 2
)

// Kind is what the kernel calls such devices.
func (g GRE) Kind() string {
	if g.V6 {
		return KindGREv6
	}
	return KindGRE
}

// AddGRE makes a GRE device, switched off. unix.EEXIST is in the error if the
// name or the tunnel is taken, unix.EOPNOTSUPP if the kernel has no GRE.
func (h *Handle) AddGRE(name string, mtu int, g GRE) error {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body[:])
	b.String(unix.IFLA_IFNAME, name)
	add32(b, unix.IFLA_MTU, uint32(mtu))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, g.Kind())
		b.Nest(unix.IFLA_INFO_DATA, func() { addGRE(b, &g) })
	})
	if err := h.do(); err != nil {
		return fmt.Errorf("make GRE device %s: %w", name, err)
	}
	return nil
}

func addGRE(b *nlbatch.Batch, g *GRE) {
	in := uint16(0)
	if g.Checksum {
		in |= greChecksum
	}
	if g.Keyed {
		in |= greKey
		var raw [greKeyLen]byte
		binary.BigEndian.PutUint32(raw[:], g.Key)
		b.Bytes(greIKey, raw[:])
		b.Bytes(greOKey, raw[:])
	}
	var raw [greFlagLen]byte
	binary.BigEndian.PutUint16(raw[:], in)
	b.Bytes(greIFlags, raw[:])
	if g.Sequence {
		binary.BigEndian.PutUint16(raw[:], in|greSequence)
	}
	b.Bytes(greOFlags, raw[:])
	if g.External {
		b.Bytes(greCollectMetadata, nil)
		return
	}
	if g.Local.IsValid() {
		addAddr(b, greLocal, g.Local)
	}
	if g.Remote.IsValid() {
		addAddr(b, greRemote, g.Remote)
	}
	b.Uint8(greTTL, g.TTL)
	if g.V6 {
		// The option that limits nesting costs 8 bytes.
		add32(b, greFlags, ip6tnlIgnoreEncapLimit)
	} else {
		b.Uint8(grePMTUDisc, 0)
	}
}

func parseGRE(kind string, info []byte) *GRE {
	g := &GRE{V6: kind == KindGREv6}
	var in, out uint16
	var inKey, outKey uint32
	for kind, data := range nlbatch.Attrs(info) {
		switch kind {
		case greIFlags:
			in = big16(data)
		case greOFlags:
			out = big16(data)
		case greIKey:
			inKey = greKeyOf(data)
		case greOKey:
			outKey = greKeyOf(data)
		case greLocal:
			g.Local = addrOf(data)
		case greRemote:
			g.Remote = addrOf(data)
		case greTTL:
			g.TTL = u8(data)
		case greCollectMetadata:
			g.External = true
		case greTOS, grePMTUDisc:
			g.Special = g.Special || u8(data) != 0
		case greFlags:
			g.Special = g.Special || u32(data)&ip6tnlAskedFor != ip6tnlIgnoreEncapLimit
		case greEncapType, greIgnoreDF:
			g.Special = g.Special || len(data) > 0 && data[0] != 0
		case greLink, greFlowinfo, greFwMark:
			g.Special = g.Special || u32(data) != 0
		}
	}
	g.Checksum, g.Sequence, g.Keyed = in&greChecksum != 0, out&greSequence != 0, in&greKey != 0
	if g.External {
		return &GRE{V6: g.V6, External: true, Checksum: g.Checksum, Sequence: g.Sequence, Special: in&greSequence != 0}
	}
	if g.Keyed {
		g.Key = inKey
	}
	g.Special = g.Special || in != out&^greSequence || inKey != outKey
	for _, a := range []*netip.Addr{&g.Local, &g.Remote} {
		if a.IsUnspecified() {
			*a = netip.Addr{}
		}
	}
	return g
}

func greKeyOf(data []byte) uint32 {
	if len(data) < greKeyLen {
		return 0
	}
	return binary.BigEndian.Uint32(data)
}
