package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// sendForged sends, to the tunnel port of a host, an echo request wrapped in
// VXLAN (RFC 7348, VNI 1) as flannel would. It must be called inside the
// sender's namespace.
func sendForged(to netip.Addr, mac, src, dst string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	icmp := []byte{8, 0, 0, 0, 0x42, 0x42, 0, 1, 'f', 'o', 'r', 'g', 'e', 'd', '!', '!'}
	binary.BigEndian.PutUint16(icmp[2:], sum(icmp))
	ip := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 1, 0, 0, 64, 1, 0, 0}
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	ip = append(append(ip, s[:]...), d[:]...)
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	packet := []byte{0x08, 0, 0, 0, 0, 0, 1, 0} // VXLAN header: VNI 1
	packet = append(packet, hw...)
	packet = append(packet, 2, 0, 0, 0, 0, 1, 0x08, 0x00)
	packet = append(append(packet, ip...), icmp...)
	conn, err := net.Dial("udp4", netip.AddrPortFrom(to, 8472).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 3 {
		if _, err := conn.Write(packet); err != nil {
			return err
		}
	}
	return nil
}

// sum is the internet checksum of an even number of bytes, RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}
