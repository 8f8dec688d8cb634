package plugin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// The players of TestForgedFramesAreDropped, as the plugin names them.
var (
	evilMAC   = net.HardwareAddr{0x0a, 0x58, 10, 1, 2, 2}
	victimMAC = net.HardwareAddr{0x0a, 0x58, 10, 1, 2, 3}
	otherMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x66}

	evil4, evil6     = netip.MustParseAddr("10.1.2.2"), netip.MustParseAddr("fd00:1:2::2")
	victim4, victim6 = netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00:1:2::3")
	gw4, gw6         = netip.MustParseAddr("10.1.2.1"), netip.MustParseAddr("fd00:1:2::1")
	evilLocal        = netip.MustParseAddr("fe80::858:aff:fe01:202")
	strangeLocal     = netip.MustParseAddr("fe80::bad")
	none6            = netip.IPv6Unspecified()
)

// ether is a frame to the victim.
func ether(src net.HardwareAddr, kind uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(victimMAC, src), kind), body...)
}

// arp is an ARP message; op 2 is a reply.
func arp(op uint16, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, op)
	return slices.Concat(b, mac, sender.AsSlice(), victimMAC, target.AsSlice())
}

// ip4 is a datagram of a protocol for experiments (RFC 3692).
func ip4(src, dst netip.Addr) []byte { return ip4ID(1, src, dst) }

func ip4ID(id byte, src, dst netip.Addr) []byte {
	b := slices.Concat([]byte{0x45, 0, 0, 28, 0, id, 0, 0, 64, 253, 0, 0}, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, make([]byte, 8)...)
}

// checksum is the internet checksum of an even number of bytes (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func ip6(next byte, src, dst netip.Addr, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	return slices.Concat(b, []byte{next, 255}, src.AsSlice(), dst.AsSlice(), payload)
}

// icmp is an ICMPv6 message with its checksum: RFC 4443, section 2.3.
func icmp(kind byte, src, dst netip.Addr, body []byte) []byte {
	m := append([]byte{kind, 0, 0, 0}, body...)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(m))), []byte{0, 0, 0, unix.IPPROTO_ICMPV6}, m)
	binary.BigEndian.PutUint16(m[2:], checksum(pseudo))
	return m
}

// advert is a neighbour advertisement (RFC 4861, section 4.4), solicited and
// overriding, with the sender's MAC for a target.
func advert(src, target netip.Addr) []byte {
	body := slices.Concat([]byte{0x60, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, evilMAC)
	return ip6(unix.IPPROTO_ICMPV6, src, victim6, icmp(136, src, victim6, body))
}

// router is a router advertisement (RFC 4861, section 4.2).
func router(src netip.Addr) []byte {
	return ip6(unix.IPPROTO_ICMPV6, src, victim6, icmp(134, src, victim6, []byte{64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}))
}

// behindOptions hides an ICMPv6 packet behind an extension header.
func behindOptions(packet []byte) []byte {
	const destinationOptions = 60
	header := []byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0} // PadN
	src, dst := netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	return ip6(destinationOptions, src, dst, append(header, packet[40:]...))
}

func redirect(src netip.Addr) []byte {
	body := slices.Concat(make([]byte, 4), evil6.AsSlice(), netip.MustParseAddr("fd09::1").AsSlice())
	return ip6(unix.IPPROTO_ICMPV6, src, victim6, icmp(137, src, victim6, body))
}

const (
	typeARP, type4, type6 = 0x0806, 0x0800, 0x86dd
	typeVLAN              = 0x8100
	typeExperiment        = 0x88b5 // for local experiments
)

// forged frames must not pass, own ones must.
func forged() (forged, own map[string][]byte) {
	vlan := append([]byte{0, 5, 0x08, 0x00}, ip4(gw4, victim4)...)
	return map[string][]byte{
			"ARP reply for the gateway":      ether(evilMAC, typeARP, arp(2, evilMAC, gw4, victim4)),
			"ARP reply for the victim":       ether(evilMAC, typeARP, arp(2, evilMAC, victim4, victim4)),
			"ARP request from the gateway":   ether(evilMAC, typeARP, arp(1, evilMAC, gw4, victim4)),
			"gratuitous ARP":                 ether(evilMAC, typeARP, arp(2, evilMAC, gw4, gw4)),
			"ARP reply with another's MAC":   ether(evilMAC, typeARP, arp(2, otherMAC, evil4, victim4)),
			"ARP reply in another's frame":   ether(otherMAC, typeARP, arp(2, otherMAC, evil4, victim4)),
			"NA for the gateway":             ether(evilMAC, type6, advert(evil6, gw6)),
			"NA for the gateway, link-local": ether(evilMAC, type6, advert(evilLocal, gw6)),
			"NA for the victim":              ether(evilMAC, type6, advert(evil6, victim6)),
			"NA from the gateway":            ether(evilMAC, type6, advert(gw6, gw6)),
			"NA behind an extension header":  ether(evilMAC, type6, behindOptions(advert(evil6, gw6))),
			"RA":                             ether(evilMAC, type6, router(evilLocal)),
			"RA from the gateway":            ether(evilMAC, type6, router(gw6)),
			"RA behind an extension header":  ether(evilMAC, type6, behindOptions(router(evilLocal))),
			"redirect":                       ether(evilMAC, type6, redirect(evilLocal)),
			"IPv4 from the gateway":          ether(evilMAC, type4, ip4(gw4, victim4)),
			"IPv4 from outside":              ether(evilMAC, type4, ip4(netip.MustParseAddr("192.0.2.1"), victim4)),
			"IPv6 from the gateway":          ether(evilMAC, type6, ip6(253, gw6, victim6, make([]byte, 8))),
			"IPv6 from another link-local":   ether(evilMAC, type6, ip6(253, strangeLocal, victim6, make([]byte, 8))),
			"own IPv4 address, another MAC":  ether(otherMAC, type4, ip4(evil4, victim4)),
			"own IPv6 address, another MAC":  ether(otherMAC, type6, ip6(253, evil6, victim6, make([]byte, 8))),
			"forged IPv4 in a VLAN":          ether(evilMAC, typeVLAN, vlan),
			"a protocol that is not IP":      ether(evilMAC, typeExperiment, make([]byte, 46)),
		}, map[string][]byte{
			"ARP reply":       ether(evilMAC, typeARP, arp(2, evilMAC, evil4, victim4)),
			"ARP probe":       ether(evilMAC, typeARP, arp(1, evilMAC, netip.IPv4Unspecified(), evil4)), // RFC 5227
			"NA":              ether(evilMAC, type6, advert(evil6, evil6)),
			"NA, link-local":  ether(evilMAC, type6, advert(evilLocal, evilLocal)),
			"IPv4":            ether(evilMAC, type4, ip4(evil4, victim4)),
			"IPv6":            ether(evilMAC, type6, ip6(253, evil6, victim6, make([]byte, 8))),
			"IPv6 link-local": ether(evilMAC, type6, ip6(253, evilLocal, victim6, make([]byte, 8))),
			"IPv6 of none":    ether(evilMAC, type6, ip6(253, none6, victim6, make([]byte, 8))),
		}
}

// wire is a raw socket on a container's eth0.
type wire struct {
	fd int
	to unix.SockaddrLinklayer
}

func openWire(t *testing.T, n *netns.NS) wire {
	t.Helper()
	var w wire
	if err := n.Do(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		w.to = unix.SockaddrLinklayer{Ifindex: eth.Index, Protocol: all & 0xffff}
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all&0xffff); err != nil {
			return err
		}
		return unix.Bind(w.fd, &w.to)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// seen is a frame as a packet socket shows it: without its VLAN tag.
func seen(frame []byte) []byte {
	if binary.BigEndian.Uint16(frame[12:]) == typeVLAN {
		return slices.Concat(frame[:12], frame[16:])
	}
	return frame
}

// arrive sends the frames and returns the names of those that arrive. All take
// the same way, so when the last one, an honest one, is there, nothing is
// still on its way.
func arrive(t *testing.T, from, to wire, frames map[string][]byte) map[string]bool {
	t.Helper()
	last := ether(evilMAC, type4, ip4ID(99, evil4, victim4))
	for _, frame := range append(slices.Collect(maps.Values(frames)), last) {
		if err := unix.Sendto(from.fd, frame, 0, &from.to); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	buf := make([]byte, 2048)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(to.fd, buf, 0)
		if err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(buf[:n], last) {
			return got
		}
		for name, frame := range frames {
			if bytes.HasPrefix(buf[:n], seen(frame)) {
				got[name] = true
			}
		}
	}
	t.Fatal("the last frame did not arrive")
	return nil
}

// TestForgedFramesAreDropped sends each frame without the guard, when it must
// arrive, and with it.
func TestForgedFramesAreDropped(t *testing.T) {
	bad, good := forged()
	for _, guard := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard=%t", guard), func(t *testing.T) {
			h := newHost(t)
			evil, victim := netnstest.New(t), netnstest.New(t)
			c := h.conf().with(conf{"macspoofchk": guard})
			if r := h.add("evil", evil, c); r.Interfaces[2].Mac != evilMAC.String() {
				t.Fatalf("the evil has MAC %s", r.Interfaces[2].Mac)
			}
			if r := h.add("victim", victim, c); r.Interfaces[2].Mac != victimMAC.String() {
				t.Fatalf("the victim has MAC %s", r.Interfaces[2].Mac)
			}
			from, to := openWire(t, evil), openWire(t, victim)
			got := arrive(t, from, to, good)
			for name := range good {
				if !got[name] {
					t.Errorf("own frame does not pass: %s", name)
				}
			}
			for name, frame := range bad {
				arrived := arrive(t, from, to, map[string][]byte{name: frame})[name]
				if arrived == guard {
					t.Errorf("%s: arrived %t", name, arrived)
				}
			}
		})
	}
}
