package loop

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// spec is a packet to be made.
type spec struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
	seq, ack     uint32
	flags        byte
	options      []byte // of TCP
	payload      []byte
	id           uint16
	dontCut      bool
	ttl, tos     byte
	window       uint16
}

// plainSum is the Internet checksum the slow way (RFC 1071).
func plainSum(parts ...[]byte) uint16 {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	if len(all)%2 != 0 {
		all = append(all, 0)
	}
	var acc uint32
	for i := 0; i < len(all); i += 2 {
		acc += uint32(all[i])<<8 | uint32(all[i+1])
		acc = acc>>16 + acc&0xffff
	}
	return ^uint16(acc)
}

func pseudoHeader(src, dst netip.Addr, proto uint8, n int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, uint32(n)), uint32(proto))
}

// transport is the TCP or UDP part, with its checksum.
func (s *spec) transport() []byte {
	var t []byte
	at := 6
	if s.proto == unix.IPPROTO_TCP {
		at = 16
		t = make([]byte, 20, 80)
		binary.BigEndian.PutUint32(t[4:], s.seq)
		binary.BigEndian.PutUint32(t[8:], s.ack)
		t[12], t[13] = byte((20+len(s.options))/4)<<4, s.flags
		binary.BigEndian.PutUint16(t[14:], s.window)
		t = append(t, s.options...)
	} else {
		t = make([]byte, 8)
		binary.BigEndian.PutUint16(t[4:], uint16(8+len(s.payload)))
	}
	binary.BigEndian.PutUint16(t[0:], s.sport)
	binary.BigEndian.PutUint16(t[2:], s.dport)
	t = slices.Concat(t, s.payload)
	c := plainSum(pseudoHeader(s.src, s.dst, s.proto, len(t)), t)
	if c == 0 && s.proto == unix.IPPROTO_UDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], c)
	return t
}

// bytes is the packet as it is on the wire.
func (s *spec) bytes() []byte {
	t := s.transport()
	if s.src.Is6() {
		h := make([]byte, 40, 40+len(t))
		h[0], h[6], h[7] = 0x60, s.proto, s.ttl
		binary.BigEndian.PutUint16(h[4:], uint16(len(t)))
		copy(h[8:], s.src.AsSlice())
		copy(h[24:], s.dst.AsSlice())
		return append(h, t...)
	}
	h := make([]byte, 20, 20+len(t))
	h[0], h[1], h[8], h[9] = 0x45, s.tos, s.ttl, s.proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(t)))
	binary.BigEndian.PutUint16(h[4:], s.id)
	if s.dontCut {
		h[6] = 0x40
	}
	copy(h[12:], s.src.AsSlice())
	copy(h[16:], s.dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], plainSum(h))
	return append(h, t...)
}

// split is what the kernel makes of a packet that stands for several: each
// built anew from what it says.
func (s *spec) split(size int) [][]byte {
	var out [][]byte
	for i, from := 0, 0; from < len(s.payload) || i == 0; i, from = i+1, from+size {
		p := *s
		to := min(from+size, len(s.payload))
		p.payload = s.payload[from:to]
		p.seq += uint32(from)
		p.id += uint16(i)
		if to < len(s.payload) {
			p.flags &^= flagFIN | flagPSH
		}
		if i > 0 {
			p.flags &^= flagCWR
		}
		out = append(out, p.bytes())
	}
	return out
}

// offloaded is the packet as the kernel gives it to a device with offloads:
// the pseudo header's sum in the checksum's place.
func (s *spec) offloaded(size int) []byte {
	p := s.bytes()
	ip := 20
	if s.src.Is6() {
		ip = 40
	}
	v := vnet{flags: needsSum, size: uint16(size), sumStart: uint16(ip), sumOffset: 16}
	switch {
	case s.proto == unix.IPPROTO_UDP:
		v.kind, v.sumOffset = kindUDP, 6
	case s.src.Is6():
		v.kind = kindTCP6
	default:
		v.kind = kindTCP4
	}
	if size == 0 {
		v.kind = kindNone
	}
	binary.BigEndian.PutUint16(p[ip+int(v.sumOffset):], ^plainSum(pseudoHeader(s.src, s.dst, s.proto, len(p)-ip)))
	out := make([]byte, vnetLen, vnetLen+len(p))
	v.write(out)
	return append(out, p...)
}

// understand reads a packet back; ok is false if it is not one that bytes
// makes.
func understand(p []byte) (s spec, ok bool) {
	var h header
	if !h.parse(p) || !h.plain || h.length != len(p) {
		return s, false
	}
	s.src, _ = netip.AddrFromSlice(h.source())
	s.dst, _ = netip.AddrFromSlice(h.destination())
	s.proto = h.proto
	if h.v6 {
		s.ttl = p[7]
	} else {
		s.tos, s.ttl, s.id, s.dontCut = p[1], p[8], binary.BigEndian.Uint16(p[4:]), h.dontCut
	}
	t := p[h.at:]
	s.sport, s.dport = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	if h.proto == unix.IPPROTO_UDP {
		s.payload = t[8:]
		return s, true
	}
	s.seq, s.ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	n := int(t[12]>>4) * 4
	s.flags, s.window = t[13], binary.BigEndian.Uint16(t[14:])
	s.options, s.payload = t[20:n], t[n:]
	return s, true
}

// randomSpec is a TCP or UDP packet with n bytes of payload.
func randomSpec(r *rand.Rand, v6 bool, proto uint8, n int) spec {
	s := spec{
		src: netip.AddrFrom4([4]byte{10, 1, 2, byte(r.IntN(3))}), dst: netip.AddrFrom4([4]byte{10, 1, 1, 2}),
		sport: uint16(r.IntN(2)), dport: 80, proto: proto, seq: r.Uint32(), ack: r.Uint32(), flags: flagACK,
		id: uint16(r.Uint32()), dontCut: r.IntN(2) == 0, ttl: 64, window: uint16(r.Uint32()),
	}
	if v6 {
		s.src, s.dst = netip.AddrFrom16([16]byte{0: 0xfd, 5: 2, 15: byte(r.IntN(3))}), netip.AddrFrom16([16]byte{0: 0xfd, 5: 1, 15: 2})
		s.id, s.dontCut = 0, false
	}
	if proto == unix.IPPROTO_UDP {
		s.seq, s.ack, s.flags, s.window = 0, 0, 0, 0
	} else if r.IntN(2) == 0 {
		s.options = []byte{1, 1, 8, 10, 0, 0, 0, byte(r.Uint32()), 0, 0, 0, 0}
	}
	s.payload = make([]byte, n)
	for i := range s.payload {
		s.payload[i] = byte(r.Uint32())
	}
	return s
}
