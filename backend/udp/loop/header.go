package loop

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// header is what the loop must know of a packet.
type header struct {
	addrs   []byte // source and destination, 8 or 32 bytes, in the packet
	length  int    // of the whole packet, as it says itself
	at      int    // where its payload begins
	proto   uint8  // of the payload; of IPv6 the next header, whatever it is
	v6      bool
	plain   bool // no fragment, no options: its payload is all of proto
	dontCut bool // IPv4's DF
}

func (h *header) source() []byte      { return h.addrs[:len(h.addrs)/2] }
func (h *header) destination() []byte { return h.addrs[len(h.addrs)/2:] }

const (
	header4, header6 = 20, 40 // least lengths of IP headers
	tcpHeader        = 20
	udpHeader        = 8
)

// parse reads the header of a packet that may be anything. What follows the
// length that the packet tells is not part of it.
func (h *header) parse(p []byte) bool {
	if len(p) < header4 {
		return false
	}
	switch p[0] >> 4 {
	case 4:
		at := int(p[0]&15) * 4
		length := int(binary.BigEndian.Uint16(p[2:]))
		if at < header4 || length < at || length > len(p) {
			return false
		}
		cut := binary.BigEndian.Uint16(p[6:])
		*h = header{addrs: p[12:20:20], length: length, at: at, proto: p[9], plain: at == header4 && cut&0x3fff == 0, dontCut: cut&0x4000 != 0}
		return true
	case 6:
		if len(p) < header6 {
			return false
		}
		length := header6 + int(binary.BigEndian.Uint16(p[4:]))
		if length > len(p) {
			return false
		}
		*h = header{addrs: p[8:40:40], length: length, at: header6, proto: p[6], v6: true, plain: p[6] == unix.IPPROTO_TCP || p[6] == unix.IPPROTO_UDP}
		return true
	}
	return false
}
