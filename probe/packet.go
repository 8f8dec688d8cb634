package probe

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// Headers before the data of an echo request (RFC 792, RFC 4443).
const (
	header4, header6 = 20, 40
	headerICMP       = 8
	nonceLen         = 8
)

// Kinds of ICMP messages.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// ipHeader is the length of the IP header of a's family.
func ipHeader(a netip.Addr) int {
	if a.Is4() {
		return header4
	}
	return header6
}

// echo is the echo request that a look sends, without the IP header.
type echo struct {
	id, seq uint16
	nonce   [nonceLen]byte // nobody else's
}

// append appends the request of a size, IP header included. A size that is
// too small for what must be in it is enlarged. The checksum of ICMPv6 covers
// addresses: it is left to the kernel.
func (e echo) append(b []byte, to netip.Addr, size int) []byte {
	data := max(size-ipHeader(to)-headerICMP, nonceLen)
	start := len(b)
	kind := byte(echoRequest6)
	if to.Is4() {
		kind = echoRequest4
	}
	b = append(b, kind, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, e.id)
	b = binary.BigEndian.AppendUint16(b, e.seq)
	b = append(b, e.nonce[:]...)
	for i := nonceLen; i < data; i++ {
		b = append(b, byte(i))
	}
	if to.Is4() {
		binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:], 0))
	}
	return b
}

// answers reports whether b, without IP header, is the answer to a request.
func (e echo) answers(b []byte, from netip.Addr, size int) bool {
	kind := byte(echoReply6)
	if from.Is4() {
		kind = echoReply4
	}
	return len(b) == max(size-ipHeader(from)-headerICMP, nonceLen)+headerICMP && b[0] == kind && b[1] == 0 &&
		binary.BigEndian.Uint16(b[4:]) == e.id && binary.BigEndian.Uint16(b[6:]) == e.seq &&
		bytes.Equal(b[headerICMP:headerICMP+nonceLen], e.nonce[:])
}

// checksum is the Internet checksum (RFC 1071) of b and what was summed up
// before.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// packet is an echo request with its IP header, as it goes into a frame.
func (e echo) packet(from, to netip.Addr, size int) []byte {
	const icmp, icmp6 = 1, 58
	data := e.append(nil, to, size)
	if to.Is4() {
		return ipPacket(from, to, icmp, data)
	}
	b := ipPacket(from, to, icmp6, data)
	// The checksum covers addresses, length and protocol (RFC 8200, 8.1): all
	// of the header but what comes before, and the addresses follow it.
	sum := uint32(len(data)) + icmp6
	binary.BigEndian.PutUint16(b[header6+2:], checksum(b[8:], sum))
	return b
}

// ipPacket puts an IP header before data.
func ipPacket(from, to netip.Addr, protocol byte, data []byte) []byte {
	const hops, noFragments = 64, 0x40
	b := append(make([]byte, ipHeader(to), ipHeader(to)+len(data)), data...)
	if to.Is4() {
		b[0], b[6], b[8], b[9] = 0x45, noFragments, hops, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], from.AsSlice())
		copy(b[16:], to.AsSlice())
		binary.BigEndian.PutUint16(b[10:], checksum(b[:header4], 0))
		return b
	}
	b[0], b[6], b[7] = 0x60, protocol, hops
	binary.BigEndian.PutUint16(b[4:], uint16(len(data)))
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return b
}
