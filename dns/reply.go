package dns

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/flanneld/flanneld/dns/zone"
)

const (
	optSize = 11 // an OPT record without options
	// minRecord is the least that a record takes: a pointer, its fixed part.
	minRecord = 2 + 10
)

// refuse answers with nothing but a code.
func (r *responder) refuse(rcode, size int) []byte {
	r.begin(rcode, 0, size)
	return r.end()
}

// answer says what the zone said.
func (r *responder) answer(z Zone, a *zone.Answer, size int) []byte {
	rcode := rcodeNoError
	if a.Unknown {
		return r.refuse(rcodeServFail, size)
	}
	if a.NameError {
		rcode = rcodeNXDomain
	}
	r.begin(rcode, flagAA, size)
	ttl := z.TTL()
	ok := a.Set.Type == 0 || r.answerSet(&a.Set, ttl, size)
	for i := 0; ok && i < len(a.More); i++ {
		ok = r.answerSet(&a.More[i], ttl, size)
	}
	if !ok { // RFC 2181 section 9
		r.buf[2] |= flagTC >> 8
		return r.end()
	}
	if a.NoData {
		if r.soa(a.Apex, z.SOA(), ttl) {
			r.count(8, 1)
		} else {
			r.buf[2] |= flagTC >> 8
		}
	}
	for i := range a.Extra {
		n, _ := r.set(&a.Extra[i], ttl, false) // what does not fit is not needed
		r.count(10, n)
	}
	return r.end()
}

// answerSet appends a set to the answer section and reports whether all of it
// fits.
func (r *responder) answerSet(s *zone.Set, ttl uint32, size int) bool {
	n, ok := r.set(s, ttl, size == tcpSize)
	r.count(6, n)
	return ok
}

// begin starts the answer: header and question, spelled as it was asked.
func (r *responder) begin(rcode int, flags uint16, size int) {
	r.rcode = rcode
	r.limit = size
	if r.q.edns {
		r.limit -= optSize
	}
	flags |= flagQR | r.q.flags&(flagOpcode|flagRD|flagCD)
	if r.forward != nil {
		flags |= flagRA
	}
	r.buf = append(r.buf[:0], r.q.msg[0], r.q.msg[1], byte(flags>>8), byte(flags)|byte(rcode&15), 0, 0, 0, 0, 0, 0, 0, 0)
	if r.q.qname > 0 {
		r.buf[5] = 1
		r.buf = append(r.buf, r.q.msg[headerSize:headerSize+r.q.qname+4]...)
	}
}

// end adds OPT, if there was one, and returns the answer.
func (r *responder) end() []byte {
	if r.q.edns {
		flags := byte(0)
		if r.q.do {
			flags = 0x80
		}
		r.buf = append(r.buf, 0, 0, typeOPT, ednsSize>>8, ednsSize&0xff, byte(r.rcode>>4), 0, flags, 0, 0, 0)
		r.count(10, 1)
	}
	return r.buf
}

// count adds to one of the header's counts.
func (r *responder) count(at, n int) {
	b := r.buf[at : at+2]
	binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(b)+uint16(n))
}

// set appends the records of a set in random order, this host's first, and
// returns how many. If they do not fit it appends none or, in the last resort,
// those that do: over TCP there is nothing larger to ask for, and glibc, musl
// and Go, which take truncated answers then, are well served with some of
// 5,000 addresses.
func (r *responder) set(s *zone.Set, ttl uint32, last bool) (n int, ok bool) {
	size := max(len(s.Addrs), len(s.Data))
	if !last && size*minRecord > r.limit-len(r.buf) {
		return 0, false
	}
	begin := len(r.buf)
	owner := headerSize // where the name is in the answer; 0: nowhere
	if s.Owner != nil {
		owner = 0
	}
	for i, k := range r.shuffle(size, s.Local) {
		whole := len(r.buf)
		if owner == 0 {
			owner = r.name(s.Owner)
		} else {
			r.pointer(owner)
		}
		if s.Addrs != nil {
			r.address(s.Type, ttl, s.Addrs[k])
		} else {
			r.data(s.Type, ttl, s.Data[k])
		}
		switch {
		case len(r.buf) <= r.limit:
		case last:
			r.buf = r.buf[:whole]
			return i, false
		default:
			r.buf = r.buf[:begin]
			return 0, false
		}
	}
	return size, true
}

// shuffle returns the numbers below n in an order that is uniformly random
// within the first local ones and within the rest.
func (r *responder) shuffle(n, local int) []uint16 {
	for len(r.order) < n {
		r.order = append(r.order, 0)
	}
	o := r.order[:n]
	for i := range o {
		o[i] = uint16(i)
	}
	for _, part := range [2][]uint16{o[:local], o[local:]} {
		for i := len(part) - 1; i > 0; i-- {
			j := r.rand.Uint32N(uint32(i + 1))
			part[i], part[j] = part[j], part[i]
		}
	}
	return o
}

// address appends an A or AAAA record without its owner.
func (r *responder) address(rtype uint16, ttl uint32, a netip.Addr) {
	if a.Is4() {
		raw := a.As4()
		r.data(rtype, ttl, raw[:])
		return
	}
	raw := a.As16()
	r.data(rtype, ttl, raw[:])
}

// data appends a record without its owner. Names are compressed only in the
// types for which every reader expects it (RFC 3597 section 4).
func (r *responder) data(rtype uint16, ttl uint32, data []byte) {
	r.buf = append(r.buf, byte(rtype>>8), byte(rtype), 0, classIN,
		byte(ttl>>24), byte(ttl>>16), byte(ttl>>8), byte(ttl), byte(len(data)>>8), byte(len(data)))
	begin := len(r.buf)
	switch rtype {
	case typeNS, typeCNAME, typePTR:
		r.name(data)
	case typeSOA:
		server := nameLen(data)
		mailbox := server + nameLen(data[server:])
		r.name(data[:server])
		r.name(data[server:mailbox])
		r.buf = append(r.buf, data[mailbox:]...)
	default:
		r.buf = append(r.buf, data...)
		return
	}
	binary.BigEndian.PutUint16(r.buf[begin-2:], uint16(len(r.buf)-begin))
}

// soa appends the SOA record of a negative answer, whose TTL says how long it
// may be remembered (RFC 2308 section 3).
func (r *responder) soa(apex, data []byte, ttl uint32) bool {
	begin := len(r.buf)
	r.name(apex)
	r.data(typeSOA, min(ttl, binary.BigEndian.Uint32(data[len(data)-4:])), data)
	if len(r.buf) > r.limit {
		r.buf = r.buf[:begin]
		return false
	}
	return true
}

// name appends a name, the longest end that it shares with the question as a
// pointer to it (RFC 1035 section 4.1.4). It returns where in the answer a
// pointer to the whole name may point, 0 if none can reach it.
func (r *responder) name(name []byte) int {
	const reach = 0x3fff
	q := r.q.name
	begin := len(r.buf)
	if begin > reach {
		begin = 0
	}
	i, j := 0, 0 // label boundaries of name, q
	for i < len(name)-1 && j < len(q)-1 {
		switch left, there := len(name)-i, len(q)-j; {
		case left > there:
			i += 1 + int(name[i])
		case left < there:
			j += 1 + int(q[j])
		case bytes.Equal(name[i:], q[j:]):
			r.buf = append(r.buf, name[:i]...)
			r.pointer(headerSize + j)
			if i == 0 {
				return headerSize + j
			}
			return begin
		default:
			i += 1 + int(name[i])
			j += 1 + int(q[j])
		}
	}
	r.buf = append(r.buf, name...)
	return begin
}

func (r *responder) pointer(to int) { r.buf = append(r.buf, 0xc0|byte(to>>8), byte(to)) }

// nameLen is the length of the uncompressed name that data begins with.
func nameLen(data []byte) int {
	n := 0
	for data[n] != 0 {
		n += 1 + int(data[n])
	}
	return n + 1
}
