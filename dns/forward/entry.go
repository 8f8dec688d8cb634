package forward

import (
	"encoding/binary"
	"math"
	"sync/atomic"
	"time"
)

// Bounds of what is kept, and for how long.
const (
	maxTTL      = 3600 // seconds, of an answer
	maxNegative = 30   // of "no such name" and "no data", so that a new name appears
	bareTTL     = 5    // of those without an SOA record, as systemd-resolved's stub gives them
	failureTTL  = 1    // of a failure (RFC 9520)
	staleTTL    = 30   // told with an answer whose time has ended (RFC 8767 section 4)
	staleKept   = int64(24 * time.Hour)
	staleAfter  = 500 * time.Millisecond // a question waits before it gets one
	staleRest   = int64(5 * time.Second) // one is given at once after upstreams had nothing
)

// What a key tells beside name, type and class.
const (
	keyDO = 1 << iota
	keyCD
)

// entry is a reply as it is kept: one message for all who ask the same. The
// fields up to negative do not change once it is made.
type entry struct {
	// data is the message without OPT record, its question in lower case, its
	// TTLs bounded; then the offset of each TTL, two bytes.
	data     []byte
	expires  int64 // the cache's clock: nanoseconds
	ttl      uint32
	size     uint16 // of the message
	answer   uint16 // where the answer section ends
	author   uint16 // where the authority section ends
	turn     uint16 // the first record whose address is turned round
	turns    uint16 // the number of them; 0: none are
	hash     uint64
	nameLen  uint8
	flags    uint8 // keyDO, keyCD
	negative bool  // NXDOMAIN, no data, or a failure

	slot        int32         // guarded by the shard
	asked       atomic.Uint32 // how often since it is here
	staleUntil  atomic.Int64  // until then it is given though its time has ended
	visited     atomic.Bool   // since the shard's hand passed
	prefetching atomic.Bool   // somebody saw to it that it is asked for again
}

// newEntry keeps msg, which parse has accepted as l; the question in it becomes
// k's. It copies msg.
func newEntry(k key, msg []byte, l *layout, now int64) *entry {
	e := &entry{
		size:    uint16(l.sections[2]),
		answer:  uint16(l.sections[0]),
		author:  uint16(l.sections[1]),
		nameLen: uint8(len(k.name)),
		flags:   k.flags,
	}
	if l.turns > 1 {
		e.turn, e.turns = uint16(l.turn), uint16(l.turns)
	}
	limit := e.lifetimes(l)
	e.expires = now + int64(e.ttl)*int64(time.Second)
	e.data = make([]byte, int(e.size)+2*len(l.ttls))
	copy(e.data, msg[:e.size])
	copy(e.data[headerLen:], k.name)
	for i, t := range l.ttls {
		ttl := lifetime(binary.BigEndian.Uint32(e.data[t:]))
		binary.BigEndian.PutUint32(e.data[t:], min(ttl, limit))
		binary.BigEndian.PutUint16(e.data[int(e.size)+2*i:], uint16(t))
	}
	e.data[2], e.data[3] = flagQR, e.data[3]&flagAD|byte(l.rcode)
	for s, n := range l.counts {
		binary.BigEndian.PutUint16(e.data[6+2*s:], uint16(n))
	}
	return e
}

// lifetimes sets how long the entry is good, and returns the bound of what its
// records may tell.
func (e *entry) lifetimes(l *layout) uint32 {
	switch {
	case l.rcode != rcodeOK && l.rcode != rcodeName:
		e.ttl, e.negative = failureTTL, true
		return failureTTL
	case l.rcode == rcodeOK && l.answers:
		e.ttl = min(l.minTTL, maxTTL)
		return maxTTL
	}
	e.negative = true
	limit := uint32(bareTTL)
	if l.soa {
		limit = min(l.soaTTL, maxNegative)
	}
	e.ttl = min(l.minTTL, limit)
	return limit
}

// failure is the reply to k that says no more than rcode.
func failure(k key, rcode int, now int64) *entry {
	msg := make([]byte, headerLen+len(k.name)+4)
	msg[5] = 1
	rest := msg[headerLen+copy(msg[headerLen:], k.name):]
	binary.BigEndian.PutUint16(rest, k.kind)
	binary.BigEndian.PutUint16(rest[2:], k.class)
	n := len(msg)
	return newEntry(k, msg, &layout{rcode: rcode, sections: [3]int{n, n, n}, minTTL: math.MaxUint32}, now)
}

func (e *entry) rcode() int { return int(e.data[3] & 0xf) }

func (e *entry) key() key {
	tail := e.data[headerLen+int(e.nameLen):]
	return key{
		name:  string(e.name()),
		kind:  binary.BigEndian.Uint16(tail),
		class: binary.BigEndian.Uint16(tail[2:]),
		flags: e.flags,
	}
}

func (e *entry) name() []byte { return e.data[headerLen : headerLen+int(e.nameLen)] }

// is reports whether the entry replies to q, whose flags as a key's are flags.
func (e *entry) is(q *Query, flags uint8) bool {
	tail := e.data[headerLen+int(e.nameLen):]
	return e.flags == flags && string(e.name()) == string(q.Name) &&
		binary.BigEndian.Uint16(tail) == q.Type && binary.BigEndian.Uint16(tail[2:]) == q.Class
}

// useful reports whether the entry, its time having ended, is better than a
// failure.
func (e *entry) useful(now int64) bool {
	rcode := e.rcode()
	return (rcode == rcodeOK || rcode == rcodeName) && now < e.expires+staleKept
}

// staleFor lets the entry be given until then though its time has ended.
func (e *entry) staleFor(until int64) { e.staleUntil.Store(until) }

// appendReply appends the reply to q. If all of it is too large, the sections
// go that q can do without (RFC 2181 section 9), then all records, and TC says
// so.
func (e *entry) appendReply(buf []byte, q Query, now int64, old bool) []byte {
	end, room := int(e.size), q.Size
	if q.EDNS {
		room -= optLen
	}
	start := len(buf)
	cut := 0 // sections left out, from the last
	truncated := false
	if end > room {
		end, cut = int(e.author), 1
	}
	if end > room && e.answer > uint16(headerLen)+uint16(e.nameLen)+4 && !e.negative && !q.DO {
		end, cut = int(e.answer), 2
	}
	if end > room {
		end, cut, truncated = headerLen+int(e.nameLen)+4, 3, true
	}
	buf = append(buf, e.data[:end]...)
	m := buf[start:]
	m[0], m[1] = q.Msg[0], q.Msg[1]
	m[2] |= q.Msg[2] & flagRD
	m[3] |= flagRA | q.Msg[3]&flagCD
	if !q.DO && q.Msg[3]&flagAD == 0 { // RFC 6840 section 5.8
		m[3] &^= flagAD
	}
	if truncated {
		m[2] |= flagTC
	}
	for s := 3 - cut; s < 3; s++ {
		m[6+2*s], m[7+2*s] = 0, 0
	}
	copy(m[headerLen:], q.Msg[headerLen:headerLen+int(e.nameLen)])
	e.age(m, now, old)
	e.turnRound(m)
	if q.EDNS {
		binary.BigEndian.PutUint16(m[10:], binary.BigEndian.Uint16(m[10:])+1)
		do := byte(0)
		if q.DO {
			do = 0x80
		}
		buf = append(buf, 0, 0, typeOPT, udpSize>>8, udpSize&0xff, 0, 0, do, 0, 0, 0)
	}
	return buf
}

// age takes from the TTLs in m what has passed of them.
func (e *entry) age(m []byte, now int64, old bool) {
	var passed uint32
	if !old {
		born := e.expires - int64(e.ttl)*int64(time.Second)
		passed = uint32(min(max(now-born, 0)/int64(time.Second), maxTTL))
	}
	for offs := e.data[e.size:]; len(offs) >= 2; offs = offs[2:] {
		t := int(binary.BigEndian.Uint16(offs))
		if t >= len(m) {
			return
		}
		ttl := uint32(staleTTL)
		if !old {
			ttl = binary.BigEndian.Uint32(m[t:])
			ttl -= min(ttl, passed)
		}
		binary.BigEndian.PutUint32(m[t:], ttl)
	}
}

// turnRound gives each asker another of several addresses first.
func (e *entry) turnRound(m []byte) {
	n := int(e.turns)
	if n == 0 || len(m) < int(e.answer) {
		return
	}
	by := int(e.asked.Load()) % n
	if by == 0 {
		return
	}
	for i := range n {
		from := e.dataAt(int(e.turn) + (i+by)%n)
		size := int(binary.BigEndian.Uint16(e.data[from-2:]))
		copy(m[e.dataAt(int(e.turn)+i):], e.data[from:from+size])
	}
}

// dataAt is the offset of the data of record i.
func (e *entry) dataAt(i int) int {
	return int(binary.BigEndian.Uint16(e.data[int(e.size)+2*i:])) + 6
}
