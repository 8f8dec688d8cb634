package loop

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2) and recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control has room for one control message with an int.
type control struct {
	hdr  unix.Cmsghdr
	data [8]byte
}

// Under load nothing waits. A call that will not is raw: telling the scheduler
// that it might costs time, and wakes another thread in its place.

// read waits for a packet.
func read(fd int, v *unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(v)), 1)
	return int(n), errno
}

// readNow is read that does not wait: EAGAIN. EOPNOTSUPP: the kernel cannot.
func readNow(fd int, v *unix.Iovec) (int, unix.Errno) {
	// An offset of -1 is none; its high half does not count on 64 bits.
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(v)), 1, ^uintptr(0), ^uintptr(0), unix.RWF_NOWAIT)
	return int(n), errno
}

// writev to a TUN device never waits.
func writev(fd int, v []unix.Iovec) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
	return errno
}

// sendmmsg waits where the socket's buffer is full.
func sendmmsg(fd int, m []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		n, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), 0, 0, 0)
	}
	return int(n), errno
}

// recvmmsg waits for the first message, but not for more. busy: there may be
// one already.
func recvmmsg(fd int, m []mmsghdr, busy bool) (int, unix.Errno) {
	var n uintptr
	errno := unix.EAGAIN
	if busy {
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
	}
	if errno == unix.EAGAIN {
		n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MSG_WAITFORONE, 0, 0)
	}
	return int(n), errno
}

func piece(b []byte) unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}
