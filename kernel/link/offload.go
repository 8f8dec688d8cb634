package link

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TxChecksums reports whether an interface leaves the checksums of what is
// sent to the hardware below it (ethtool -k: tx-checksumming). ErrNoLink.
func (h *Handle) TxChecksums(name string) (bool, error) {
	on, err := h.ethtoolValue(name, unix.ETHTOOL_GTXCSUM, 0)
	if err != nil {
		return false, fmt.Errorf("read checksum offload of %s: %w", name, err)
	}
	return on != 0, nil
}

// SetTxChecksums switches that on or off, and with it what depends on it
// (segmentation in hardware), as ethtool -K tx does. ErrNoLink;
// unix.EOPNOTSUPP if the interface cannot.
func (h *Handle) SetTxChecksums(name string, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	h.writes++
	if _, err := h.ethtoolValue(name, unix.ETHTOOL_STXCSUM, value); err != nil {
		return fmt.Errorf("switch checksum offload of %s: %w", name, err)
	}
	return nil
}

// ethtoolValue makes an ethtool request that takes and gives one number.
func (h *Handle) ethtoolValue(name string, cmd, data uint32) (uint32, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return 0, fmt.Errorf("interface %q: %w", name, ErrNoLink)
	}
	value := struct{ cmd, data uint32 }{cmd, data} // struct ethtool_value
	err := h.inside(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		var req struct { // struct ifreq
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte // the kernel copies the whole union
		}
		copy(req.name[:], name)
		req.data = unsafe.Pointer(&value)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		runtime.KeepAlive(&value)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if errors.Is(err, unix.ENODEV) {
		err = ErrNoLink
	}
	return value.data, err
}
