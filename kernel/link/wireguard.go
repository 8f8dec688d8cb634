package link

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kinds of devices, as the kernel calls them: its own WireGuard, and those
// that a process reads and writes.
const (
	KindWireGuard = "wireguard"
	KindTUN       = "tun"
)

// AddWireGuard makes a WireGuard device, switched off, without key and peers,
// which kernel/wireguard sets. unix.EEXIST is in the error if the name is
// taken, unix.EOPNOTSUPP if the kernel has no WireGuard (it has since 5.6).
func (h *Handle) AddWireGuard(name string, mtu int) error {
	body := ifinfomsg(0, 0, 0)
	b := h.message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body[:])
	b.String(unix.IFLA_IFNAME, name)
	add32(b, unix.IFLA_MTU, uint32(mtu))
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, KindWireGuard) })
	if err := h.do(); err != nil {
		return fmt.Errorf("make WireGuard device %s: %w", name, err)
	}
	return nil
}
