package rulestest

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// vxlan is a VXLAN packet's payload, made by hand: an Ethernet frame that
// carries one UDP packet from src to dst.
func vxlan(vni uint32, mac net.HardwareAddr, src, dst netip.AddrPort, payload string) []byte {
	b := []byte{0x08, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(b, mac...)
	b = append(b, 0x0e, 0, 0, 0, 0, 0x66)
	if src.Addr().Is4() {
		return append(append(b, 0x08, 0x00), ipv4(src, dst, payload)...)
	}
	return append(append(b, 0x86, 0xdd), ipv6(src, dst, payload)...)
}

func ipv4(src, dst netip.AddrPort, payload string) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+8+len(payload)))
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, udp(src, dst, payload)...)
}

func ipv6(src, dst netip.AddrPort, payload string) []byte {
	b := []byte{0x60, 0, 0, 0, 0, byte(8 + len(payload)), 17, 64}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(b, udp(src, dst, payload)...)
}

func udp(src, dst netip.AddrPort, payload string) []byte {
	n := uint16(8 + len(payload))
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, n)
	b = append(append(b, 0, 0), payload...)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 17, byte(n>>8), byte(n))
	binary.BigEndian.PutUint16(b[6:], ^sum(append(pseudo, b...)))
	return b
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
