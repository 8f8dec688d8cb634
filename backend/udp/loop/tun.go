package loop

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// openTUN makes a TUN device that lives as long as the file descriptor, and
// that leaves segmentation and checksums to its reader as far as the kernel
// can. unix.EBUSY is in the error if there is a device of that name.
func openTUN(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w: the kernel has no TUN devices (CONFIG_TUN, module tun), or the file is missing: mknod /dev/net/tun c 10 200", err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	const ( // linux/if_tun.h: TUN_F_CSUM, TSO4, TSO6; USO4, USO6
		tcp = 1 | 2 | 4
		udp = 32 | 64
	)
	for _, offload := range []int{tcp | udp, tcp, 0} { // the first since Linux 6.2
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload); err == nil {
			return fd, nil
		}
	}
	unix.Close(fd)
	return -1, fmt.Errorf("offload of TUN device %s: %w", name, err)
}

// socketBuffer is asked for each way: a burst of several large packets.
const socketBuffer = 8 << 20

// openUDP binds a socket that takes several packets at once as far as the
// kernel can.
func openUDP(at netip.AddrPort) (fd int, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())})
	if at.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: another program has it (ss -ulnp): end it, or set another Port in the configuration's Backend", err)
		}
		return -1, fmt.Errorf("listen on %s/udp: %w", at, err)
	}
	// Each may be refused: it is only slower then.
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // since Linux 5.0
	return fd, nil
}
