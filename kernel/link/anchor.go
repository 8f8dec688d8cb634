package link

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// KindAnchor is the kind of an anchor. Dummy devices are made for the purpose,
// but bridges are what every host of containers has.
const KindAnchor = "bridge"

// AddAnchor makes an interface that does nothing but hold addresses, switched
// off: a bridge without ports. unix.EEXIST is in the error if the name is
// taken, unix.EOPNOTSUPP if the kernel has no bridges.
func (h *Handle) AddAnchor(name string, mtu int) error {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body[:])
	b.String(unix.IFLA_IFNAME, name)
	add32(b, unix.IFLA_MTU, uint32(mtu))
	mac := MAC{2, 'f', 'l', 'a', 'n'} // on no wire, and always the same
	b.Bytes(unix.IFLA_ADDRESS, mac[:])
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, KindAnchor)
		b.Nest(unix.IFLA_INFO_DATA, func() { b.Uint8(unix.IFLA_BR_MCAST_SNOOPING, 0) })
	})
	if err := h.do(); err != nil {
		return fmt.Errorf("make interface %s for addresses: %w", name, err)
	}
	return nil
}
