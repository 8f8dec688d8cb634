package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Vxlan is what makes a VXLAN device the one it is. Two of them are
// interchangeable if they are equal.
type Vxlan struct {
	VNI   uint32
	Port  uint16
	Local netip.Addr // the family of the tunnel; zero: IPv4, any address
	Link  int        // interface that packets leave by; 0: any
	GBP   bool
	// Learning from what arrives, where an FDB entry may come from then.
	Learning bool
	// Special: it has something that this type does not tell (external
	// control, a group, another remote, misses reported, a proxy, …).
	Special bool
}

// AddVxlan makes a VXLAN device, switched off. UDP checksums of an IPv4
// underlay are not computed: the inner packets have their own. unix.EEXIST is
// in the error if the name, or VNI and port, are taken.
func (h *Handle) AddVxlan(name string, mac MAC, mtu int, v Vxlan) error {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body[:])
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_ADDRESS, mac[:])
	add32(b, unix.IFLA_MTU, uint32(mtu))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, "vxlan")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			add32(b, unix.IFLA_VXLAN_ID, v.VNI)
			var port [2]byte
			binary.BigEndian.PutUint16(port[:], v.Port)
			b.Bytes(unix.IFLA_VXLAN_PORT, port[:])
			if v.Link != 0 {
				add32(b, unix.IFLA_VXLAN_LINK, uint32(v.Link))
			}
			if v.Local.Is4() {
				addAddr(b, unix.IFLA_VXLAN_LOCAL, v.Local)
				b.Uint8(unix.IFLA_VXLAN_UDP_CSUM, 0)
			} else if v.Local.Is6() {
				addAddr(b, unix.IFLA_VXLAN_LOCAL6, v.Local)
			}
			b.Uint8(unix.IFLA_VXLAN_LEARNING, flag(v.Learning))
			if v.GBP {
				b.Bytes(unix.IFLA_VXLAN_GBP, nil)
			}
		})
	})
	if err := h.do(); err != nil {
		return fmt.Errorf("make VXLAN device %s: %w", name, err)
	}
	return nil
}

func parseVxlan(info []byte) *Vxlan {
	v := &Vxlan{}
	for kind, data := range nlbatch.Attrs(info) {
		switch kind {
		case unix.IFLA_VXLAN_ID:
			v.VNI = u32(data)
		case unix.IFLA_VXLAN_PORT:
			v.Port = big16(data)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			v.Local = addrOf(data)
		case unix.IFLA_VXLAN_LINK:
			v.Link = int(u32(data))
		case unix.IFLA_VXLAN_GBP:
			v.GBP = true
		case unix.IFLA_VXLAN_LEARNING:
			v.Learning = u8(data) != 0
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			v.Special = v.Special || !addrOf(data).IsUnspecified()
		case unix.IFLA_VXLAN_COLLECT_METADATA, unix.IFLA_VXLAN_PROXY, unix.IFLA_VXLAN_RSC,
			unix.IFLA_VXLAN_L2MISS, unix.IFLA_VXLAN_L3MISS, unix.IFLA_VXLAN_VNIFILTER:
			v.Special = v.Special || u8(data) != 0
		case unix.IFLA_VXLAN_GPE:
			v.Special = true
		}
	}
	if v.Local.IsUnspecified() {
		v.Local = netip.Addr{}
	}
	return v
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
