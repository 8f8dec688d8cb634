package link

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Resolved asks the kernel for the MAC that it sends packets for addr to, on
// one interface. ErrNotFound if it has not found that out, or found nobody.
// Needs Linux 5.0.
func (h *Handle) Resolved(link int, addr netip.Addr) (MAC, error) {
	body := ndmsg(family(addr), link, 0, 0)
	addAddr(h.message(unix.RTM_GETNEIGH, 0, body[:]), unix.NDA_DST, addr)
	var mac MAC
	err := h.get(func(body []byte) error {
		const valid = unix.NUD_PERMANENT | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
		var n Neighbour
		if !parseNeighbour(body, &n) || native.Uint16(body[8:])&valid == 0 || !n.MAC.IsUnicast() {
			return ErrNotFound
		}
		mac = n.MAC
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		err = ErrNotFound
	}
	if err != nil {
		return MAC{}, fmt.Errorf("neighbour %s: %w", addr, err)
	}
	return mac, nil
}
