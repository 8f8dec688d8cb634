package dns

import (
	"context"
	"math/rand/v2"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/flanneld/flanneld/dns/zone"
)

// Zone is what a view answers from; *zone.Zone is one. Its methods are called
// from any goroutine.
type Zone interface {
	// Lookup answers a question. name is in wire format and lower case, and
	// is the caller's again afterwards. ours is false for outside names.
	Lookup(name []byte, qtype uint16) (a zone.Answer, ours bool)
	// SOA is the data of the SOA record of every apex. Nobody writes to it.
	SOA() []byte
	// TTL of every record, in seconds.
	TTL() uint32
}

// Forwarder answers for outside names; *forward.Forwarder is one.
type Forwarder interface {
	// Cached appends the complete answer to buf if it is known already.
	Cached(q forward.Query, buf []byte) ([]byte, bool)
	// Resolve finds the complete answer, waiting for upstreams if need be, and
	// appends it to buf. There is an error, and no answer, only if ctx ended.
	Resolve(ctx context.Context, q forward.Query, buf []byte) ([]byte, error)
}

var (
	_ Zone      = (*zone.Zone)(nil)
	_ Forwarder = (*forward.Forwarder)(nil)
)

// responder answers queries, one at a time, for one goroutine. What it returns
// is valid until it is used again.
type responder struct {
	forward Forwarder // nil: outside names are refused
	rand    *rand.Rand

	q     query
	buf   []byte
	alias []byte // the outside name whose records buf lacks; nil: none
	limit int    // of the answer, without OPT
	order []uint16

	// What the last answer was, for the counters.
	rcode int
	apex  []byte // of the zone that answered, if ours
}

// outcome is what became of a message.
type outcome uint8

const (
	silent  outcome = iota // no answer is due
	refused                // answered without asking a zone
	ours                   // answered from the view's zone
	cached                 // answered from what others had asked for
	outside                // the answer is to be asked for
)

func newResponder(f Forwarder, seed1, seed2 uint64) *responder {
	return &responder{
		forward: f,
		rand:    rand.New(rand.NewPCG(seed1, seed2)),
		buf:     make([]byte, 0, ednsSize),
	}
}

// respond answers a message. The answer is nil if what it returns as well is
// silent or outside.
func (r *responder) respond(msg []byte, z Zone, tcp bool) ([]byte, outcome) {
	r.apex, r.alias = nil, nil
	rcode, ok := r.q.read(msg)
	if !ok {
		return nil, silent
	}
	size := r.q.takes(tcp)
	if rcode == rcodeNoError && (r.q.qclass != classIN || typeTKEY <= r.q.qtype && r.q.qtype <= typeMAILA) {
		rcode = rcodeRefused
	}
	if rcode != rcodeNoError {
		return r.refuse(rcode, size), refused
	}
	if z != nil {
		if a, ok := z.Lookup(r.q.name, r.q.ask()); ok {
			if r.q.qtype == typeANY {
				answerAny(&a)
			}
			r.apex = a.Apex
			reply := r.answer(z, &a, size)
			if a.Outside != nil && r.forward != nil && r.q.flags&flagRD != 0 && r.buf[2]&(flagTC>>8) == 0 {
				return r.follow(a.Outside, size)
			}
			return reply, ours
		}
	}
	return r.foreign(size)
}

// foreign answers for outside names. Without recursion desired there is
// nothing to tell: what others asked for is nobody's business.
func (r *responder) foreign(size int) ([]byte, outcome) {
	if r.forward == nil || r.q.flags&flagRD == 0 {
		return r.refuse(rcodeRefused, size), refused
	}
	reply, ok := r.forward.Cached(r.q.outside(size), r.buf[:0])
	if !ok {
		return nil, outside
	}
	r.buf = reply
	r.rcode = int(reply[3] & 15)
	return reply, cached
}

// outside is the query for the forwarder. It refers to q.
func (q *query) outside(size int) forward.Query {
	return forward.Query{Msg: q.msg, Name: q.name, Type: q.qtype, Class: q.qclass, EDNS: q.edns, DO: q.do, Size: size}
}

// takes is the size of the largest answer that the sender gets.
func (q *query) takes(tcp bool) int {
	if tcp {
		return tcpSize
	}
	return min(max(q.size, plainSize), ednsSize)
}

// hinfo is the whole answer to ANY (RFC 8482 section 4.2).
var hinfo = [][]byte{[]byte("\x07RFC8482\x00")}

// ask is the type that a zone is asked for.
func (q *query) ask() uint16 {
	if q.qtype == typeANY {
		return typeHINFO
	}
	return q.qtype
}

// answerAny makes of the answer for HINFO the one for ANY.
func answerAny(a *zone.Answer) {
	switch {
	case a.Unknown:
	case a.Set.Type != 0: // an alias; section 4.1: one set is enough
		*a = zone.Answer{Apex: a.Apex, Set: a.Set}
	case !a.NameError:
		*a = zone.Answer{Apex: a.Apex, Set: zone.Set{Type: typeHINFO, Data: hinfo}}
	}
}
