package forward

import (
	"encoding/binary"
	"errors"
)

// What a message is made of (RFC 1035 section 4.1, RFC 6891 section 6.1).
const (
	headerLen = 12
	optLen    = 11 // of an OPT record without options

	typeA     = 1
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typeAAAA  = 28
	typeOPT   = 41
	typeANY   = 255
	classIN   = 1

	rcodeOK       = 0
	rcodeFormat   = 1
	rcodeServer   = 2
	rcodeName     = 3
	rcodeNotImpl  = 4
	rcodeRefused  = 5
	rcodeYXDomain = 6
	rcodeBadVers  = 16

	flagQR = 0x80 // in the header's third byte
	flagTC = 0x02
	flagRD = 0x01
	flagRA = 0x80 // in its fourth
	flagAD = 0x20
	flagCD = 0x10
)

var errMalformed = errors.New("malformed message")

// layout is what there is to know of a reply before it is kept.
type layout struct {
	rcode    int // with the OPT record's upper bits
	sections [3]int
	counts   [3]int // of records in each, without OPT
	ttls     []int  // offset of each record's TTL, ascending
	minTTL   uint32 // of all records; MaxUint32 without any
	soa      bool   // there is an SOA record in the authority section
	soaTTL   uint32 // the lesser of its TTL and its minimum (RFC 2308 section 5)
	answers  bool   // there is a record of the type that was asked for
	referral bool   // name servers in the authority section, no SOA, no answer
	// turn and turns are the first record and the number of records in ttls
	// whose addresses may be turned round: all of one owner. start is the
	// offset of the first.
	turn, turns, start int
}

// parse checks a reply to a question of a name of nameLen bytes and finds its
// records. What it accepts stays well-formed when TTLs and the addresses of A
// and AAAA records are written to, when the question is spelled differently,
// and when it is cut after any of l.sections. Records behind an OPT record are
// left out with it, as is what follows the last record.
func parse(msg []byte, nameLen int) (l layout, err error) {
	l = layout{rcode: int(msg[3] & 0xf), minTTL: 1<<32 - 1}
	question := msg[headerLen+nameLen:]
	qtype := binary.BigEndian.Uint16(question)
	off := headerLen + nameLen + 4
	for s := range l.sections {
		n := int(binary.BigEndian.Uint16(msg[6+2*s:]))
		for range n {
			r, ok := l.record(msg, off)
			if !ok {
				return l, errMalformed
			}
			if r.kind == typeOPT {
				if s != 2 || off+1 != r.ttl-4 {
					return l, errMalformed
				}
				l.rcode |= int(msg[r.ttl]) << 4
				l.ttls = l.ttls[:len(l.ttls)-1]
				break
			}
			l.add(msg, s, qtype, off, r)
			off = r.end
		}
		l.sections[s] = off
	}
	l.referral = l.counts[0] == 0 && l.referral && !l.soa
	return l, nil
}

// record is one resource record's place in a message.
type record struct {
	kind uint16
	ttl  int // offset
	end  int // offset of what follows
}

// data is the offset of the record's data.
func (r record) data() int { return r.ttl + 6 }

func (l *layout) record(msg []byte, off int) (r record, ok bool) {
	off, ok = l.name(msg, off)
	if !ok || off+10 > len(msg) {
		return r, false
	}
	r.kind = binary.BigEndian.Uint16(msg[off:])
	r.ttl = off + 4
	r.end = r.data() + int(binary.BigEndian.Uint16(msg[off+8:]))
	if r.end > len(msg) {
		return r, false
	}
	l.ttls = append(l.ttls, r.ttl)
	return r, l.contents(msg, r)
}

// contents checks the data of the types that may hold compressed names, and
// of those that have one size.
func (l *layout) contents(msg []byte, r record) bool {
	size := r.end - r.data()
	var skip, names, tail int
	switch r.kind {
	case typeA:
		return size == 4
	case typeAAAA:
		return size == 16
	case typeSOA:
		names, tail = 2, 20
	case typeNS, 3, 4, typeCNAME, 7, 8, 9, 12, 39: // MD, MF, MB, MG, MR, PTR, DNAME
		names = 1
	case 14, 17: // MINFO, RP
		names = 2
	case 15, 18, 21, 36: // MX, AFSDB, RT, KX
		skip, names = 2, 1
	case 26: // PX
		skip, names = 2, 2
	case 33: // SRV
		skip, names = 6, 1
	case 24, 46: // SIG, RRSIG: a signature follows
		return l.leads(msg, r, 18)
	case 30, 47: // NXT, NSEC: a bitmap follows
		return l.leads(msg, r, 0)
	default:
		return true
	}
	off := r.data() + skip
	for range names {
		end, ok := l.name(msg, off)
		if !ok || end > r.end {
			return false
		}
		off = end
	}
	return off+tail == r.end
}

// leads reports whether there is a name behind the first skip bytes of data.
func (l *layout) leads(msg []byte, r record, skip int) bool {
	end, ok := l.name(msg, r.data()+skip)
	return ok && end <= r.end
}

// name checks the name at off and returns the offset behind it. Pointers lead
// backwards only, to what ends before the name begins (RFC 1035 section 4.1.4:
// "a prior occurrence"), and never to what will be written to.
func (l *layout) name(msg []byte, off int) (int, bool) {
	after, length, hops := -1, 0, 0
	begin, lowest := off, off // of the name, of this part of it
	for {
		if off >= len(msg) {
			return 0, false
		}
		n := int(msg[off])
		if n >= 0xc0 {
			if off+2 > len(msg) {
				return 0, false
			}
			to := (n&0x3f)<<8 | int(msg[off+1])
			if to < headerLen || to >= lowest || hops == 64 || after >= 0 && !l.prior(msg, off, off+2, begin) {
				return 0, false
			}
			if after < 0 {
				after = off + 2
			}
			off, lowest = to, to
			hops++
			continue
		}
		length += n + 1
		if n > 63 || length > 255 || off+n+1 > len(msg) || after >= 0 && !l.prior(msg, off, off+n+1, begin) {
			return 0, false
		}
		off += n + 1
		if n == 0 {
			if after >= 0 {
				off = after
			}
			return off, true
		}
	}
}

// prior reports whether msg[from:to] ends before begin, and none of it may be
// written to later.
func (l *layout) prior(msg []byte, from, to, begin int) bool {
	if to > begin {
		return false
	}
	low, high := 0, len(l.ttls) // the first record whose TTL is at from or later
	for low < high {
		mid := (low + high) / 2
		if l.ttls[mid] < from {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(l.ttls) && l.ttls[low] < to {
		return false
	}
	if low == 0 {
		return true
	}
	before := l.ttls[low-1]
	end := before + 4
	if kind := binary.BigEndian.Uint16(msg[before-4:]); kind == typeA || kind == typeAAAA {
		end = before + 6 + int(binary.BigEndian.Uint16(msg[before+4:]))
	}
	return end <= from
}

// add takes note of a record of section s that begins at off.
func (l *layout) add(msg []byte, s int, qtype uint16, off int, r record) {
	ttl := lifetime(binary.BigEndian.Uint32(msg[r.ttl:]))
	l.minTTL = min(l.minTTL, ttl)
	switch {
	case s == 0 && (r.kind == qtype || qtype == typeANY):
		l.answers = true
		if r.kind == typeA || r.kind == typeAAAA {
			l.align(msg, off, r)
		}
	case s == 1 && r.kind == typeSOA:
		l.soa = true
		l.soaTTL = min(ttl, lifetime(binary.BigEndian.Uint32(msg[r.end-4:])))
	case s == 1 && r.kind == typeNS:
		l.referral = true
	}
	l.counts[s]++
}

// align counts the record to those that can be turned round, if it directly
// follows them and says the same but for the address.
func (l *layout) align(msg []byte, off int, r record) {
	n := len(l.ttls) - 1
	switch {
	case l.turns < 0:
	case l.turns == 0:
		l.turn, l.turns, l.start = n, 1, off
	case l.turn+l.turns == n && string(msg[l.start:l.ttls[l.turn]+6]) == string(msg[off:r.data()]):
		l.turns++
	default:
		l.turns = -1 // a second set: leave all as they are
	}
}

// lifetime is a TTL's meaning: none if its top bit is set (RFC 2181 section 8).
func lifetime(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}

// equalFold reports whether a name in wire format is lower, which has no upper
// case letters. Lengths of labels are no letters.
func equalFold(name, lower []byte) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
