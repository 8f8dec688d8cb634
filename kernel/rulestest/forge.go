package rulestest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// IP is an IP packet, made by hand.
func IP(protocol uint8, src, dst netip.Addr, payload []byte) []byte {
	if src.Is6() {
		b := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
		return append(b, payload...)
	}
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, payload...)
}

// UDP is an IP packet with one datagram.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	n := uint16(8 + len(payload))
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, n)
	b = append(append(b, 0, 0), payload...)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP, byte(n>>8), byte(n))
	binary.BigEndian.PutUint16(b[6:], ^sum(append(pseudo, b...)))
	return IP(unix.IPPROTO_UDP, src.Addr(), dst.Addr(), b)
}

// VXLAN is the payload of a VXLAN datagram: an Ethernet frame to mac that
// carries an IP packet.
func VXLAN(vni uint32, mac net.HardwareAddr, inner []byte) []byte {
	b := []byte{0x08, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(b, mac...)
	b = append(b, 0x0e, 0, 0, 0, 0, 0x66)
	return append(binary.BigEndian.AppendUint16(b, etherType(inner)), inner...)
}

// GRE is the payload of a GRE packet (RFC 2784, 2890) that carries an IP
// packet; key nil: without one.
func GRE(key *uint32, inner []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, etherType(inner))
	if key != nil {
		b[0] = 0x20
		b = binary.BigEndian.AppendUint32(b, *key)
	}
	return append(b, inner...)
}

func etherType(packet []byte) uint16 {
	if packet[0]>>4 == 6 {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
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

// Inject sends IP packets out of an Ethernet link to a MAC as they are, past
// the sender's own routes and rules.
func Inject(t *testing.T, from *netns.NS, link string, to net.HardwareAddr, packets ...[]byte) {
	t.Helper()
	err := from.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			kind := etherType(p)
			a := &unix.SockaddrLinklayer{Ifindex: i.Index, Protocol: kind>>8 | kind<<8, Halen: uint8(len(to))}
			copy(a.Addr[:], to)
			if err := unix.Sendto(fd, p, 0, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("inject packets into %s: %v", link, err)
	}
}

// MAC is a link's address.
func MAC(t *testing.T, n *netns.NS, link string) net.HardwareAddr {
	t.Helper()
	var i *net.Interface
	err := n.Do(func() (err error) {
		i, err = net.InterfaceByName(link)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return i.HardwareAddr
}

// Victim listens and tells which payloads arrive.
type Victim struct {
	t *testing.T
	c net.PacketConn
}

// Listen is a victim at a UDP port of a namespace, until the test ends or it
// is closed.
func Listen(t *testing.T, n *netns.NS, port uint16) *Victim {
	t.Helper()
	return &Victim{t, listenUDP(t, n, int(port))}
}

// ListenRaw is a victim that gets all packets of an IP protocol that come to
// the namespace over one family and pass its input hook.
func ListenRaw(t *testing.T, n *netns.NS, protocol uint8, v4 bool) *Victim {
	t.Helper()
	v := &Victim{t: t}
	err := n.Do(func() (err error) {
		v.c, err = net.ListenPacket(rawNetwork(protocol, v4), "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// rawNetwork is package net's name of an IP protocol.
func rawNetwork(protocol uint8, v4 bool) string {
	if v4 {
		return fmt.Sprintf("ip4:%d", protocol)
	}
	return fmt.Sprintf("ip6:%d", protocol)
}

// Close stops listening.
func (v *Victim) Close() { v.c.Close() }

// Gets tells which payloads arrive within the patience of a test. It forgets
// others that arrive meanwhile.
func (v *Victim) Gets(payloads ...string) map[string]bool {
	v.t.Helper()
	_ = v.c.SetReadDeadline(time.Now().Add(patience))
	got := map[string]bool{}
	b := make([]byte, 2048)
	for len(got) < len(payloads) {
		n, _, err := v.c.ReadFrom(b)
		if err != nil {
			break
		}
		for _, p := range payloads {
			if bytes.HasSuffix(b[:n], []byte(p)) {
				got[p] = true
			}
		}
	}
	return got
}
