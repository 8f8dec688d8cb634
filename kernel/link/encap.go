package link

import (
	"encoding/binary"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Encap is what a route tells an external tunnel device to put around a
// packet. The zero value is "nothing".
type Encap struct {
	Dst, Src netip.Addr // on the underlay, of one family; Src zero: the kernel chooses
	ID       uint32     // GRE's key, VXLAN's VNI
	TTL      uint8      // on the underlay; 0: that of the packet inside
	Flags    EncapFlags
}

// EncapFlags is a set of fields that the packets carry.
type EncapFlags uint16

// What packets may carry.
const (
	EncapChecksum EncapFlags = 1 << 0
	EncapKey      EncapFlags = 1 << 2
	EncapSequence EncapFlags = 1 << 3
)

// Numbers of the kernel that x/sys lacks (linux/lwtunnel.h).
const (
	lwtunnelIP  = 2
	lwtunnelIP6 = 4

	// The same for both families.
	lwtunnelID    = 1
	lwtunnelDst   = 2
	lwtunnelSrc   = 3
	lwtunnelTTL   = 4
	lwtunnelTOS   = 5
	lwtunnelFlags = 6
	lwtunnelOpts  = 8
)

// addEncap appends the attributes of a route's encapsulation.
func addEncap(b *nlbatch.Batch, e *Encap) {
	kind := uint16(lwtunnelIP)
	if e.Dst.Is6() {
		kind = lwtunnelIP6
	}
	var raw [2]byte
	native.PutUint16(raw[:], kind)
	b.Bytes(unix.RTA_ENCAP_TYPE, raw[:])
	b.Nest(unix.RTA_ENCAP, func() {
		b.BigUint64(lwtunnelID, uint64(e.ID))
		addAddr(b, lwtunnelDst, e.Dst)
		if e.Src.IsValid() {
			addAddr(b, lwtunnelSrc, e.Src)
		}
		b.Uint8(lwtunnelTTL, e.TTL)
		binary.BigEndian.PutUint16(raw[:], uint16(e.Flags))
		b.Bytes(lwtunnelFlags, raw[:])
	})
}

// readEncap reads a route's encapsulation; ok is false for one that Encap
// cannot tell.
func readEncap(kind uint16, data []byte, e *Encap) (ok bool) {
	if kind != lwtunnelIP && kind != lwtunnelIP6 {
		return false
	}
	ok = true
	for attr, data := range nlbatch.Attrs(data) {
		switch attr {
		case lwtunnelID:
			if len(data) == 8 {
				id := binary.BigEndian.Uint64(data)
				e.ID, ok = uint32(id), ok && id>>32 == 0
			}
		case lwtunnelDst:
			e.Dst = addrOf(data)
		case lwtunnelSrc:
			if e.Src = addrOf(data); e.Src.IsUnspecified() {
				e.Src = netip.Addr{}
			}
		case lwtunnelTTL:
			e.TTL = u8(data)
		case lwtunnelTOS:
			ok = ok && u8(data) == 0
		case lwtunnelFlags:
			e.Flags = EncapFlags(big16(data))
		case lwtunnelOpts:
			ok = false
		}
	}
	return ok && e.Dst.IsValid()
}
