package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy reads the tables of iptables-legacy without running a program:
// getsockopt as the program itself does, but never for a table that is not
// there, which would make the kernel create it. It belongs to the network
// namespace it was opened in, where its methods must be called too, and is not
// safe for concurrent use.
type legacy struct {
	v4    bool
	fd    int      // -1: this family is switched off
	names *os.File // /proc/net/ip_tables_names; nil as long as the kernel has no legacy tables
}

func openLegacy(v4 bool) (*legacy, error) {
	domain := unix.AF_INET6
	if v4 {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return &legacy{v4: v4, fd: -1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open raw socket to read iptables: %w", err)
	}
	return &legacy{v4: v4, fd: fd}, nil
}

// Close frees the files.
func (l *legacy) Close() error {
	var err error
	if l.fd >= 0 {
		err = unix.Close(l.fd)
	}
	if l.names != nil {
		err = errors.Join(err, l.names.Close())
	}
	return err
}

// tables names the tables that exist. The kernel lists them once the module
// is loaded, and the first rule of anybody may load it.
func (l *legacy) tables() ([]string, error) {
	if l.fd < 0 {
		return nil, nil
	}
	if l.names == nil {
		path := "/proc/thread-self/net/ip6_tables_names"
		if l.v4 {
			path = "/proc/thread-self/net/ip_tables_names"
		}
		names, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		l.names = names
	}
	b := make([]byte, 512)
	n, err := l.names.ReadAt(b, 0)
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", l.names.Name(), err)
	}
	return strings.Fields(string(b[:n])), nil
}

// digest returns a number that changes with every change of the table's
// rules, whatever their counters; 0 if there is no such table.
func (l *legacy) digest(table string) (uint64, error) {
	names, err := l.tables()
	if err != nil || !slices.Contains(names, table) {
		return 0, err
	}
	b, err := l.entries(table)
	if err != nil {
		return 0, fmt.Errorf("read iptables-legacy table %s: %w", table, err)
	}
	h := fnv.New64a()
	// struct ipt_entry and struct ip6t_entry.
	next, counters, size := 140+2, 152, 168
	if l.v4 {
		next, counters, size = 88+2, 96, 112
	}
	for len(b) >= size {
		n := int(binary.NativeEndian.Uint16(b[next:]))
		if n < size || n > len(b) {
			break
		}
		h.Write(b[:counters])
		h.Write(b[size:n])
		b = b[n:]
	}
	return max(h.Sum64(), 1), nil
}

// mentions tells whether the table has a chain or comment with this text.
func (l *legacy) mentions(table, text string) (bool, error) {
	names, err := l.tables()
	if err != nil || !slices.Contains(names, table) {
		return false, err
	}
	b, err := l.entries(table)
	return bytes.Contains(b, []byte(text)), err
}

// Layout of struct ipt_getinfo and struct ipt_get_entries, which IPv6 shares.
const (
	soGetInfo, soGetEntries = 64, 65 // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
	infoLen, infoSizeAt     = 84, 80
	entriesSizeAt           = 32
	entriesAt               = 40
)

// entries returns the table's rules as the kernel has them.
func (l *legacy) entries(table string) ([]byte, error) {
	for {
		info := make([]byte, infoLen)
		copy(info, table)
		if err := l.getsockopt(soGetInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[infoSizeAt:])
		b := make([]byte, entriesAt+int(size))
		copy(b, table)
		binary.NativeEndian.PutUint32(b[entriesSizeAt:], size)
		err := l.getsockopt(soGetEntries, b)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // it grew in between
		}
		return b[entriesAt:], err
	}
}

func (l *legacy) getsockopt(opt int, b []byte) error {
	level := unix.IPPROTO_IPV6
	if l.v4 {
		level = unix.IPPROTO_IP
	}
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
