package dns

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/miekg/dns"
)

// follow completes the answer in buf, which ends with an alias of an outside
// name (RFC 1034 section 4.3.2 step 3a): stub resolvers take an alias alone
// for a name without addresses.
func (r *responder) follow(name []byte, size int) ([]byte, outcome) {
	r.alias = name
	reply, ok := r.forward.Cached(r.q.about(name), nil)
	if !ok {
		return nil, outside
	}
	reply = complete(r.buf, reply, size)
	r.rcode = int(reply[3] & 15)
	return reply, ours
}

// about is the query for another name, the whole answer to which is wanted.
// q's message need not stay.
func (q *query) about(name []byte) forward.Query {
	msg := append(make([]byte, 0, headerSize+len(name)+4), q.msg[:4]...)
	msg = append(msg, 0, 1, 0, 0, 0, 0, 0, 0)
	msg = append(msg, name...)
	msg = binary.BigEndian.AppendUint16(msg, q.qtype)
	msg = binary.BigEndian.AppendUint16(msg, q.qclass)
	return forward.Query{Msg: msg, Name: name, Type: q.qtype, Class: q.qclass, DO: q.do, Size: tcpSize}
}

// complete appends to an answer that ends with an alias what the name that it
// leads to has, as an upstream replied. If the upstream could not tell, the
// answer is SERVFAIL: glibc and musl then ask another server, or again, and at
// last report a failure that may pass, whereas an alias alone with NOERROR
// means to them that there is no address, and that is final.
func complete(answer, reply []byte, size int) []byte {
	var m, rest dns.Msg
	err := m.Unpack(answer)
	if err == nil {
		err = rest.Unpack(reply)
	}
	aliases := len(m.Answer)
	m.Compress = true
	if err == nil && (rest.Rcode == rcodeNoError || rest.Rcode == rcodeNXDomain) {
		m.Rcode = rest.Rcode // RFC 6604 section 3: the last name's
		m.Answer = append(m.Answer, rest.Answer...)
		if !slices.ContainsFunc(rest.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == m.Question[0].Qtype }) {
			m.Ns = bounded(rest.Ns, m.Answer[0].Header().Ttl)
		}
		b, err := m.Pack()
		if err == nil && len(b) > size {
			m.Answer, m.Ns, m.Truncated = m.Answer[:aliases], nil, true
			b, err = m.Pack()
		}
		if err == nil {
			return b
		}
	}
	m.Rcode, m.Authoritative, m.Truncated, m.Answer, m.Ns = rcodeServFail, false, false, nil, nil
	b, _ := m.Pack() // the question, which was packed before
	return b
}

// bounded are records of an authority section that say that there is nothing.
// They may be remembered as long as the alias, which may lead elsewhere then.
func bounded(records []dns.RR, ttl uint32) []dns.RR {
	for _, rr := range records {
		h := rr.Header()
		h.Ttl = min(h.Ttl, ttl)
	}
	return records
}

// errand is a question that upstreams are asked, and what becomes of the reply.
type errand struct {
	forward Forwarder
	q       *query
	size    int
	// Of a name of ours that is an alias of one outside: that one, the answer
	// so far, and the zone's apex.
	alias, answer, apex []byte
}

// errand returns the one that the last message is for, which does not depend
// on r any more.
func (r *responder) errand(tcp bool) *errand {
	q := r.q
	q.msg = slices.Clone(q.msg)
	q.name = q.lower[:q.qname]
	e := &errand{forward: r.forward, q: &q, size: q.takes(tcp)}
	if r.alias != nil {
		e.alias, e.answer, e.apex = r.alias, slices.Clone(r.buf), slices.Clone(r.apex)
	}
	return e
}

// run returns the whole answer. There is an error only if ctx ended.
func (e *errand) run(ctx context.Context) ([]byte, error) {
	if e.alias == nil {
		return e.forward.Resolve(ctx, e.q.outside(e.size), nil)
	}
	reply, err := e.forward.Resolve(ctx, e.q.about(e.alias), nil)
	if err != nil {
		return nil, err
	}
	return complete(e.answer, reply, e.size), nil
}
