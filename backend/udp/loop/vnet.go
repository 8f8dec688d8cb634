package loop

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// vnet is struct virtio_net_hdr (linux/virtio_net.h), which stands before
// every packet that a TUN device with IFF_VNET_HDR gives or takes.
type vnet struct {
	flags     uint8
	kind      uint8  // of the packet that stands for several; 0: for itself
	headers   uint16 // length
	size      uint16 // of each payload
	sumStart  uint16 // where the checksum's range begins
	sumOffset uint16 // where in the range it is stored
}

const (
	vnetLen  = 10
	needsSum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

	kindNone = 0 // VIRTIO_NET_HDR_GSO_…
	kindTCP4 = 1
	kindTCP6 = 4
	kindUDP  = 5
)

func (v *vnet) read(b []byte) {
	v.flags, v.kind = b[0], b[1]
	v.headers = binary.NativeEndian.Uint16(b[2:])
	v.size = binary.NativeEndian.Uint16(b[4:])
	v.sumStart = binary.NativeEndian.Uint16(b[6:])
	v.sumOffset = binary.NativeEndian.Uint16(b[8:])
}

func (v *vnet) write(b []byte) {
	b[0], b[1] = v.flags, v.kind
	binary.NativeEndian.PutUint16(b[2:], v.headers)
	binary.NativeEndian.PutUint16(b[4:], v.size)
	binary.NativeEndian.PutUint16(b[6:], v.sumStart)
	binary.NativeEndian.PutUint16(b[8:], v.sumOffset)
}

// finish computes the checksum that the kernel left to us, of a packet that
// stands for itself. What is stored there is the pseudo header's sum.
func (v *vnet) finish(p []byte) bool {
	if v.flags&needsSum == 0 {
		return true
	}
	start, at := int(v.sumStart), int(v.sumStart)+int(v.sumOffset)
	if at+2 > len(p) {
		return false
	}
	s := ^fold(sum(p[start:], 0))
	if s == 0 && v.sumOffset == 6 { // UDP's zero means that there is none
		s = 0xffff
	}
	putSum(p[at:], s)
	return true
}

// cutter splits a packet that stands for several into those, without moving
// the payloads: every one is a header of its own and a piece of the payload.
type cutter struct {
	packet  []byte
	headers int // length of IP and TCP or UDP header
	ip      int // of the IP header
	size    int // of a piece
	v6, udp bool
	next    int // piece
	pseudo  uint64
	seq     uint32
	id      uint16
	flags   byte
}

// begin prepares the split of p; false if it is not as the kernel makes them.
func (c *cutter) begin(v *vnet, p []byte) bool {
	var h header
	if !h.parse(p) || h.length != len(p) || v.size == 0 {
		return false
	}
	*c = cutter{packet: p, ip: int(v.sumStart), size: int(v.size), v6: h.v6}
	proto := uint8(unix.IPPROTO_TCP)
	switch v.kind {
	case kindTCP4, kindTCP6:
		if c.ip < h.at || c.ip+tcpHeader > len(p) {
			return false
		}
		c.headers = c.ip + int(p[c.ip+12]>>4)*4
		if c.headers < c.ip+tcpHeader {
			return false
		}
	case kindUDP:
		c.headers, c.udp, proto = c.ip+udpHeader, true, unix.IPPROTO_UDP
	default:
		return false
	}
	if c.ip < h.at || c.headers > maxHeaders || c.headers > len(p) || h.proto != proto && !h.v6 {
		return false
	}
	c.pseudo = sum(h.addrs, native16(uint16(proto)))
	if !c.udp {
		c.seq = binary.BigEndian.Uint32(p[c.ip+4:])
		c.flags = p[c.ip+13]
	}
	if !c.v6 {
		c.id = binary.BigEndian.Uint16(p[4:])
	}
	return true
}

// maxHeaders bounds the headers of a packet to be split: IP with options or
// extensions, and TCP with options.
const maxHeaders = 256

const (
	flagFIN = 1
	flagPSH = 8
	flagACK = 16
	flagCWR = 128
)

// more reports whether cut has another packet.
func (c *cutter) more() bool { return c.next == 0 || c.headers+c.next*c.size < len(c.packet) }

// cut writes the next packet's header to buf, of at least maxHeaders bytes,
// and returns it with the piece of the payload.
func (c *cutter) cut(buf []byte) (head, payload []byte) {
	i := c.next
	c.next++
	from := c.headers + i*c.size
	last := from+c.size >= len(c.packet)
	payload = c.packet[from:min(from+c.size, len(c.packet))]
	head = buf[:copy(buf, c.packet[:c.headers])]
	n := c.headers - c.ip + len(payload) // of the IP payload that sums are about

	if c.v6 {
		binary.BigEndian.PutUint16(head[4:], uint16(len(head)-header6+len(payload)))
	} else {
		binary.BigEndian.PutUint16(head[2:], uint16(len(head)+len(payload)))
		binary.BigEndian.PutUint16(head[4:], c.id+uint16(i))
		putSum(head[10:], 0)
		putSum(head[10:], ^fold(sum(head[:int(head[0]&15)*4], 0)))
	}
	t := head[c.ip:]
	at := 16
	if c.udp {
		at = 6
		binary.BigEndian.PutUint16(t[4:], uint16(n))
	} else {
		binary.BigEndian.PutUint32(t[4:], c.seq+uint32(i*c.size))
		if !last {
			t[13] &^= flagFIN | flagPSH
		}
		if i > 0 {
			t[13] &^= flagCWR
		}
	}
	putSum(t[at:], 0)
	s := ^fold(sum(payload, sum(t, c.pseudo+native16(uint16(n))))) // t has an even length
	if s == 0 && c.udp {
		s = 0xffff
	}
	putSum(t[at:], s)
	return head, payload
}
