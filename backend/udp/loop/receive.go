package loop

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch      = 8       // messages taken by one system call
	mostRow    = 1 << 16 // bytes of one, which may be several datagrams
	sourceRoom = unix.SizeofSockaddrInet6
)

// receiver takes packets from the socket to the device.
type receiver struct {
	l       *Loop
	bufs    [batch][]byte
	sources [batch][sourceRoom]byte
	vectors [batch]unix.Iovec
	ctls    [batch]control
	msgs    [batch]mmsghdr
	join    joiner
	last    lookup
}

func newReceiver(l *Loop) *receiver {
	r := &receiver{l: l}
	r.join.init(l)
	for i := range r.bufs {
		r.bufs[i] = make([]byte, mostRow)
		r.vectors[i] = piece(r.bufs[i])
	}
	return r
}

// run ends when somebody shuts the socket down.
func (r *receiver) run() error {
	busy := false
	for {
		for i := range r.msgs {
			h := &r.msgs[i].hdr
			*h = unix.Msghdr{
				Name: &r.sources[i][0], Namelen: sourceRoom,
				Iov: &r.vectors[i], Iovlen: 1,
				Control: (*byte)(unsafe.Pointer(&r.ctls[i])),
			}
			h.SetControllen(int(unsafe.Sizeof(r.ctls[i])))
		}
		n, errno := recvmmsg(r.l.sock, r.msgs[:], busy)
		r.l.count.receives.Add(1)
		switch {
		case errno == unix.EINTR, errno == unix.EAGAIN:
			continue
		case errno != 0:
			return fmt.Errorf("receive: %w", errno)
		case n == 0 || n == 1 && r.msgs[0].hdr.Namelen == 0: // shut down
			return nil
		}
		t := r.l.table.Load()
		for i := range n {
			r.row(t, i)
		}
		r.join.flush()
		busy = n > 1 || r.msgs[0].n > manyBytes
	}
}

// manyBytes are more than one packet's: more of them follow soon.
const manyBytes = 4 << 10

// row takes message i: one datagram, or several of one size in a row of which
// the last may be shorter.
func (r *receiver) row(t *Table, i int) {
	m := &r.msgs[i]
	from, ok := source(r.sources[i][:m.hdr.Namelen])
	if !ok || m.hdr.Flags&unix.MSG_TRUNC != 0 {
		r.l.count.broken.Add(1)
		return
	}
	b := r.bufs[i][:m.n]
	size := len(b)
	c := &r.ctls[i]
	if m.hdr.Controllen >= unix.SizeofCmsghdr+4 && c.hdr.Level == unix.IPPROTO_UDP && c.hdr.Type == unix.UDP_GRO {
		size = int(*(*int32)(unsafe.Pointer(&c.data)))
	}
	for len(b) > 0 && size > 0 {
		n := min(size, len(b))
		r.packet(t, from, b[:n])
		b = b[n:]
	}
}

// packet takes one packet of a peer.
func (r *receiver) packet(t *Table, from key, p []byte) {
	var h header
	if !h.parse(p) {
		r.l.count.broken.Add(1)
		return
	}
	if by := r.last.find(t, keyOf(h.source())); by == nil || by.public != from {
		r.l.count.forged.Add(1)
		return
	}
	r.l.count.received.Add(1)
	r.join.add(&h, p[:h.length])
}

// source is who sent a datagram.
func source(raw []byte) (key, bool) {
	if len(raw) < unix.SizeofSockaddrInet4 {
		return key{}, false
	}
	switch *(*uint16)(unsafe.Pointer(&raw[0])) {
	case unix.AF_INET:
		return keyOf(raw[4:8]), true
	case unix.AF_INET6:
		if len(raw) < unix.SizeofSockaddrInet6 {
			return key{}, false
		}
		return keyOf(raw[8:24]), true
	}
	return key{}, false
}
