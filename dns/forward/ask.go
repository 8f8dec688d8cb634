package forward

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Reply is what upstreams say to a question, for people.
type Reply struct {
	Rcode   string // "NOERROR", "NXDOMAIN", "SERVFAIL", …
	Records []Record
}

// Record of an answer, as text.
type Record struct {
	Name string // in full, with the dot at the end
	TTL  uint32
	Type string
	Data string
}

// Ask resolves a name, with or without the dot at the end, as a client's
// question would be.
func (f *Forwarder) Ask(ctx context.Context, name string, qtype uint16) (Reply, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(strings.ToLower(name)), qtype)
	msg, err := m.Pack()
	if err != nil {
		return Reply{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	q := Query{Msg: msg, Name: msg[headerLen : len(msg)-4], Type: qtype, Class: dns.ClassINET, Size: dns.MaxMsgSize - 1}
	buf, ok := f.Cached(q, nil)
	if !ok {
		if buf, err = f.Resolve(ctx, q, nil); err != nil {
			return Reply{}, fmt.Errorf("ask for %s: %w", name, err)
		}
	}
	if err := m.Unpack(buf); err != nil {
		return Reply{}, fmt.Errorf("read the answer for %s: %w", name, err)
	}
	r := Reply{Rcode: dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		h := rr.Header()
		r.Records = append(r.Records, Record{h.Name, h.Ttl, dns.Type(h.Rrtype).String(), strings.TrimPrefix(rr.String(), h.String())})
	}
	return r, nil
}
