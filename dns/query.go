package dns

import "encoding/binary"

const (
	headerSize = 12
	maxName    = 255 // octets of a name in wire format, RFC 1035 section 2.3.4
	maxLabel   = 63

	// Sizes of answers over UDP: without EDNS, and the most with it, which
	// passes every link of IPv6 unfragmented.
	plainSize = 512
	ednsSize  = 1232
	tcpSize   = 65535
)

// Bits of the header's second 16 (RFC 1035 section 4.1.1, RFC 4035 section 3.1.6).
const (
	flagQR     = 1 << 15
	flagOpcode = 15 << 11
	flagAA     = 1 << 10
	flagTC     = 1 << 9
	flagRD     = 1 << 8
	flagRA     = 1 << 7
	flagCD     = 1 << 4
)

// Codes that answers end with.
const (
	rcodeNoError  = 0
	rcodeFormErr  = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16 // RFC 6891 section 6.1.3: its upper bits are in OPT
)

// Types that are treated on their own.
const (
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typePTR   = 12
	typeHINFO = 13
	typeOPT   = 41
	typeTKEY  = 249 // here begin the types that are operations, to 254
	typeMAILA = 254
	typeANY   = 255
)

const classIN = 1

// query is one message taken apart. It refers to the message.
type query struct {
	msg    []byte
	flags  uint16
	qname  int    // length of the question's name; 0: no question to repeat
	name   []byte // the question's name in lower case
	qtype  uint16
	qclass uint16

	edns    bool
	version uint8
	do      bool
	size    int // what the sender takes, as it says

	lower [maxName]byte
}

// read takes a message apart and returns the code that it is to be answered
// with, rcodeNoError if the question deserves an answer. ok is false if it
// deserves none at all: there is no header, or it is an answer itself.
//
// Whatever the code, edns is right as far as the message could be read: every
// answer to a query with OPT has one (RFC 6891 section 6.1.1). Octets after the
// last record are ignored.
func (q *query) read(msg []byte) (rcode int, ok bool) {
	q.msg, q.qname, q.name, q.edns, q.version, q.do, q.size = msg, 0, nil, false, 0, false, plainSize
	q.qtype, q.qclass = 0, 0
	if len(msg) < headerSize {
		return 0, false
	}
	q.flags = binary.BigEndian.Uint16(msg[2:])
	if q.flags&flagQR != 0 {
		return 0, false
	}
	off := q.questions()
	well := off > 0 && q.records(off)
	switch {
	case q.flags&flagOpcode != 0:
		return rcodeNotImp, true
	case !well || q.qname == 0 || q.qtype == 0 || q.qtype == typeOPT:
		return rcodeFormErr, true
	case q.version != 0:
		return rcodeBadVers, true
	}
	return rcodeNoError, true
}

// questions reads the question section and returns where the next begins, 0
// if it is malformed. Only a single question is kept (RFC 9619).
func (q *query) questions() int {
	count := binary.BigEndian.Uint16(q.msg[4:])
	if count == 1 {
		return q.question()
	}
	off := headerSize
	for range count {
		if off = skipName(q.msg, off); off == 0 || off+4 > len(q.msg) {
			return 0
		}
		off += 4
	}
	return off
}

// question reads the one question. Its name may not be compressed: there is
// nothing that it could refer to.
func (q *query) question() int {
	off := headerSize
	for {
		if off >= len(q.msg) {
			return 0
		}
		n := int(q.msg[off])
		if n > maxLabel || off+1+n > len(q.msg) || off+1+n-headerSize > maxName {
			return 0
		}
		q.lower[off-headerSize] = byte(n)
		for i := off + 1; i <= off+n; i++ {
			c := q.msg[i]
			if 'A' <= c && c <= 'Z' {
				c |= 0x20
			}
			q.lower[i-headerSize] = c
		}
		off += 1 + n
		if n == 0 {
			break
		}
	}
	if off+4 > len(q.msg) {
		return 0
	}
	q.qname = off - headerSize
	q.name = q.lower[:q.qname]
	q.qtype = binary.BigEndian.Uint16(q.msg[off:])
	q.qclass = binary.BigEndian.Uint16(q.msg[off+2:])
	return off + 4
}

// records walks over all other sections and finds OPT.
func (q *query) records(off int) bool {
	extra := int(binary.BigEndian.Uint16(q.msg[10:]))
	count := int(binary.BigEndian.Uint16(q.msg[6:])) + int(binary.BigEndian.Uint16(q.msg[8:])) + extra
	for left := count; left > 0; left-- {
		owner := off
		if off = skipName(q.msg, off); off == 0 || off+10 > len(q.msg) {
			return false
		}
		end := off + 10 + int(binary.BigEndian.Uint16(q.msg[off+8:]))
		if end > len(q.msg) {
			return false
		}
		if binary.BigEndian.Uint16(q.msg[off:]) == typeOPT && left <= extra {
			if q.edns || off != owner+1 { // two of them, or not the root's
				q.edns = true
				return false
			}
			if !q.opt(q.msg[off:end]) {
				return false
			}
		}
		off = end
	}
	return true
}

// opt reads an OPT record from its type on (RFC 6891 section 6.1.2).
func (q *query) opt(b []byte) bool {
	q.edns = true
	q.size = int(binary.BigEndian.Uint16(b[2:]))
	q.version = b[5]
	q.do = b[6]&0x80 != 0
	for b = b[10:]; len(b) > 0; {
		if len(b) < 4 {
			return false
		}
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}

// skipName returns where a name that may be compressed ends, 0 if it is
// malformed. It does not follow pointers.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		switch n := int(msg[off]); {
		case n == 0:
			return off + 1
		case n >= 0xc0:
			if off+2 > len(msg) {
				return 0
			}
			return off + 2
		case n > maxLabel:
			return 0
		default:
			off += 1 + n
		}
	}
	return 0
}
