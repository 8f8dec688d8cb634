package loop

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	mostPacket   = vnetLen + 65535 // that the device gives at once
	mostDatagram = 65507           // payload of UDP over IPv4
	mostPieces   = 64              // UDP_MAX_SEGMENTS of all kernels
	sendAt       = 128 << 10       // bytes gathered that are not let wait for more
	mostMessages = 64
	mostVectors  = 2048
)

// sender takes packets from the device to the socket.
type sender struct {
	l    *Loop
	in   []byte // what was read: packets one after the other
	used int
	room unix.Iovec

	made    []byte // headers that were made
	vectors []unix.Iovec
	msgs    []mmsghdr
	single  [1]mmsghdr
	out     []message // what msgs are
	ctls    []control
	last    lookup
	icmp    unreachable
	cut     cutter
	// plain: the kernel does not split for us.
	plain bool
}

// message is a datagram, or a row of datagrams of one size to one peer that
// the kernel splits: the last may be shorter.
type message struct {
	p           *peer
	size, total int
	pieces      int
	full        bool
	vector      int // its first
}

// lookup remembers the last answer of a table.
type lookup struct {
	table *Table
	addr  key
	peer  *peer
}

func (c *lookup) find(t *Table, a key) *peer {
	if c.table != t || c.addr != a {
		*c = lookup{t, a, t.lookup(a)}
	}
	return c.peer
}

func newSender(l *Loop) *sender {
	// A kernel that does not know it (before Linux 4.18) would send the whole row
	// as one.
	_, err := unix.GetsockoptInt(l.sock, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	return &sender{
		l:       l,
		plain:   err != nil,
		in:      make([]byte, sendAt+mostPacket),
		made:    make([]byte, 0, mostVectors/2*maxHeaders),
		vectors: make([]unix.Iovec, 0, mostVectors),
		msgs:    make([]mmsghdr, mostMessages),
		out:     make([]message, 0, mostMessages),
		ctls:    make([]control, mostMessages),
	}
}

// run ends without an error when the device was deleted.
func (s *sender) run() error {
	alone := 0 // how many packets came by themselves
	for {
		n, errno := s.wait()
		more := 0
		for errno == 0 {
			s.packet(s.in[s.used:][:n])
			s.used += n
			if s.used >= sendAt {
				s.transmit()
				s.used = 0
			}
			// Asking in vain is a system call too: not after each that comes alone.
			if more == 0 && alone%askEvery != 0 {
				break
			}
			if n, errno = s.next(); errno == 0 {
				more++
			}
		}
		s.transmit()
		s.used = 0
		if alone++; more > 0 {
			alone = 0
		}
		switch {
		case errno == 0, errno == unix.EAGAIN, errno == unix.EINTR, errno == unix.EOPNOTSUPP:
		case deviceGone(errno):
			return nil
		default:
			return fmt.Errorf("read from TUN device: %w", errno)
		}
	}
}

// askEvery so many packets that came alone it is asked whether there is
// another.
const askEvery = 4

// wait reads a packet, next one that is there already.
func (s *sender) wait() (int, unix.Errno) {
	s.room = piece(s.in[:mostPacket])
	return read(s.l.tun, &s.room)
}

func (s *sender) next() (int, unix.Errno) {
	s.room = piece(s.in[s.used:][:mostPacket])
	return readNow(s.l.tun, &s.room)
}

// packet plans the way of one packet that the device gave, with the header
// that stands before it.
func (s *sender) packet(b []byte) {
	c := &s.l.count
	c.reads.Add(1)
	var v vnet
	var h header
	if len(b) < vnetLen {
		c.broken.Add(1)
		return
	}
	v.read(b)
	p := b[vnetLen:]
	if !h.parse(p) {
		c.broken.Add(1)
		return
	}
	to := s.last.find(s.l.table.Load(), keyOf(h.destination()))
	if to == nil {
		c.noPeer.Add(1)
		s.icmp.answer(s.l, &h, p)
		return
	}
	if v.kind == kindNone {
		if !v.finish(p) {
			c.broken.Add(1)
			return
		}
		s.reserve()
		s.datagram(to, p, nil)
		return
	}
	if !s.cut.begin(&v, p) {
		c.broken.Add(1)
		return
	}
	for s.cut.more() {
		s.reserve()
		room := s.made[len(s.made) : len(s.made)+maxHeaders]
		head, payload := s.cut.cut(room)
		s.made = s.made[:len(s.made)+len(head)]
		s.datagram(to, head, payload)
	}
}

// reserve makes sure that there is room for one more datagram.
func (s *sender) reserve() {
	if cap(s.made)-len(s.made) < maxHeaders || cap(s.vectors)-len(s.vectors) < 2 || len(s.out) == cap(s.out) {
		s.transmit()
	}
}

// datagram appends one datagram, in two parts of which the second may be
// empty, to the last message or as a new one.
func (s *sender) datagram(to *peer, a, b []byte) {
	s.l.count.sent.Add(1)
	n := len(a) + len(b)
	m := s.open(to, n)
	if m == nil {
		s.out = append(s.out, message{p: to, size: n, vector: len(s.vectors)})
		m = &s.out[len(s.out)-1]
	}
	m.total += n
	m.pieces++
	m.full = n < m.size
	s.vectors = append(s.vectors, piece(a))
	if len(b) > 0 {
		s.vectors = append(s.vectors, piece(b))
	}
}

// open is the last message if n more bytes fit into it.
func (s *sender) open(to *peer, n int) *message {
	if len(s.out) == 0 || s.plain {
		return nil
	}
	m := &s.out[len(s.out)-1]
	if m.p != to || m.full || n > m.size || m.pieces == mostPieces || m.total+n > mostDatagram {
		return nil
	}
	return m
}

// transmit sends all messages that were planned.
func (s *sender) transmit() {
	for i := range s.out {
		s.fill(i)
	}
	s.send()
	s.out, s.vectors, s.made = s.out[:0], s.vectors[:0], s.made[:0]
}

// fill writes message i as the kernel wants it.
func (s *sender) fill(i int) {
	m := &s.out[i]
	end := len(s.vectors)
	if i+1 < len(s.out) {
		end = s.out[i+1].vector
	}
	h := &s.msgs[i].hdr
	h.Name, h.Namelen = &m.p.raw[0], m.p.rawLen
	h.Iov = &s.vectors[m.vector]
	h.SetIovlen(end - m.vector)
	h.Control, h.Controllen = nil, 0
	if m.pieces > 1 {
		c := &s.ctls[i]
		c.hdr.Level, c.hdr.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		c.hdr.SetLen(unix.SizeofCmsghdr + 2)
		*(*uint16)(unsafe.Pointer(&c.data)) = uint16(m.size)
		h.Control = (*byte)(unsafe.Pointer(c))
		h.SetControllen(int(unsafe.Sizeof(*c)))
	}
}

// send hands the messages to the kernel. One that it refuses is tried again
// in pieces if it is several, else lost.
func (s *sender) send() {
	for i := 0; i < len(s.out); {
		n, errno := sendmmsg(s.l.sock, s.msgs[i:len(s.out)])
		s.l.count.sends.Add(1)
		switch {
		case errno == 0:
			i += n
			continue
		case errno == unix.EINTR:
			continue
		case errno == unix.EIO: // the interface cannot: no checksum offload
			s.plain = true
		}
		if s.out[i].pieces > 1 && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE) {
			s.pieces(i)
		} else {
			s.l.count.refused.Add(uint64(s.out[i].pieces))
		}
		i++
	}
}

// pieces sends the datagrams of a message one by one.
func (s *sender) pieces(i int) {
	m, h := s.out[i], s.msgs[i].hdr
	all := unsafe.Slice(h.Iov, h.Iovlen)
	for left := m.total; left > 0; left -= m.size {
		n, have := 0, 0
		for have < min(m.size, left) {
			have += int(all[n].Len)
			n++
		}
		one := &s.single[0].hdr
		*one = unix.Msghdr{Name: h.Name, Namelen: h.Namelen, Iov: &all[0]}
		one.SetIovlen(n)
		if _, errno := sendmmsg(s.l.sock, s.single[:]); errno != 0 {
			s.l.count.refused.Add(1)
		}
		s.l.count.sends.Add(1)
		all = all[n:]
	}
}
