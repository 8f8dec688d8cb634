package forward

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/miekg/dns"
)

func TestWhatDoesNotFitIsLeftOutFromTheEnd(t *testing.T) {
	many := func(n int, format string) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprintf(format, i))
		}
		return lines
	}
	w := newWorld(func(q *dns.Msg) *dns.Msg {
		r := answer(many(10, "x.example. 60 IN A 192.0.2.%d")...)(q)
		if q.Question[0].Name == "none.example." {
			r = says(dns.RcodeNameError, "30")(q)
		}
		r.Ns = append(r.Ns, rrs(many(11, "example. 60 IN NS ns%d.example.")...)...)
		r.Extra = append(rrs(many(20, "ns%d.example. 60 IN A 192.0.2.1")...), r.Extra...)
		return r
	})
	for name, c := range map[string]struct {
		q    asked
		want [3]int // records in each section
		tc   bool
	}{
		"all":                         {asked{name: "x.example.", size: 1232}, [3]int{10, 11, 21}, false},
		"no additional records":       {asked{name: "x.example.", size: 512}, [3]int{10, 11, 1}, false},
		"the same, without OPT":       {asked{name: "x.example."}, [3]int{10, 11, 0}, false},
		"over TCP":                    {asked{name: "x.example.", tcp: true}, [3]int{10, 11, 20}, false},
		"a denial keeps its SOA":      {asked{name: "none.example."}, [3]int{0, 12, 0}, false},
		"a long name, only the reply": {asked{name: long + "x.example."}, [3]int{10, 0, 0}, false},
		"proofs stay with what they prove, or TCP is needed": {asked{name: long + "x.example.", size: 512, do: true}, [3]int{0, 0, 1}, true},
	} {
		c.q.kind = dns.TypeA
		r := c.q.put(t, w.Forwarder)
		if got := [3]int{len(r.Answer), len(r.Ns), len(r.Extra)}; got != c.want || r.Truncated != c.tc {
			t.Errorf("%s: %v records, TC %v", name, got, r.Truncated)
		}
	}
}

const long = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb."

func TestRecordsBehindOPTAreLeftOutWithIt(t *testing.T) {
	w := newWorld(func(q *dns.Msg) *dns.Msg {
		r := good(q)
		r.SetEdns0(1232, true)
		r.Extra = append(rrs("ns.example. 60 IN A 192.0.2.53"), append(r.Extra, rrs("behind.example. 60 IN A 192.0.2.54")...)...)
		return r
	})
	if r := a("x.example.").put(t, w.Forwarder); len(r.Extra) != 1 || r.Extra[0].Header().Name != "ns.example." {
		t.Errorf("got %v", r)
	}
}

func TestNamesNeverLeadToWhatIsWrittenTo(t *testing.T) {
	const name = "\x01x\x00"
	message := func(records ...string) []byte {
		m := append(make([]byte, headerLen), name+"\x00\x01\x00\x01"...)
		m[5], m[7] = 1, byte(len(records))
		for _, r := range records {
			m = append(m, r...)
		}
		return m
	}
	// The first record begins at 19: its TTL is at 25, its address at 31.
	first := "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x01a\x00\x00"
	for what, c := range map[string]struct {
		second string
		ok     bool
	}{
		"the question":           {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x0c", true},
		"the first record's":     {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x13", true},
		"a TTL":                  {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x19", false},
		"an address":             {"\xc0\x1f\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x0c", false},
		"its own TTL":            {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x29", false},
		"itself":                 {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x2f", false},
		"ahead":                  {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x30", false},
		"the header":             {"\xc0\x04\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x0c", false},
		"a type nobody knows":    {"\xc0\x0c\xff\x05\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x19", true},
		"data behind the name":   {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x03\xc0\x0c\x00", false},
		"data beyond the end":    {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x09\xc0\x0c", false},
		"its own fixed part":     {"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x0e\x02ab\xc0\x2f", false},
		"an OPT among answers":   {"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00", false},
		"an address of 16 bytes": {"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x10................", false},
	} {
		if _, err := parse(message(first, c.second), len(name)); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzReply lets an upstream reply anything: what comes out of the cache for
// whoever asks is well-formed, and says the same.
func FuzzReply(f *testing.F) {
	for _, say := range []func(*dns.Msg) *dns.Msg{
		answer("x.example. 60 IN A 192.0.2.1", "x.example. 60 IN A 192.0.2.2"),
		answer("x.example. 60 IN CNAME y.example.", "y.example. 60 IN AAAA 2001:db8::1", "y.example. 60 IN AAAA 2001:db8::2"),
		answer("x.example. 60 IN MX 10 x.example.", "x.example. 60 IN SRV 1 2 3 x.example.", "x.example. 60 IN TXT \"x\""),
		answer("x.example. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA", "x.example. 60 IN NSEC y.example. A"),
		says(dns.RcodeNameError, "30"), badVersion,
	} {
		r := say(new(dns.Msg).SetQuestion("x.example.", dns.TypeA))
		r.Compress = true
		b, err := r.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[2:], uint16(60), uint8(0))
	}
	f.Fuzz(func(t *testing.T, tail []byte, later uint16, how uint8) {
		w := newWorld(silent)
		q := asked{name: "X.example.", kind: dns.TypeA, do: how&1 != 0, ad: how&4 != 0, tcp: how&8 != 0}
		if how&2 != 0 || q.do {
			q.size = 512
		}
		_, query := q.wire(t)
		k := keyOf(query)
		sent, err := k.query(true)
		if err != nil {
			t.Fatal(err)
		}
		reply := append([]byte{sent[2], sent[3]}, tail...)
		if len(reply) > 65535 || !k.repliedBy(reply, sent[2:]) {
			return
		}
		e, err := w.read(k, reply)
		if err != nil {
			return
		}
		w.cache.put(e)
		w.cache.mustAgree(t)
		e.asked.Store(uint32(later))
		buf := e.appendReply(nil, query, w.cache.now()+int64(later)*1e9, how&16 != 0)
		if len(buf) > query.Size {
			t.Fatalf("%d bytes to who takes %d", len(buf), query.Size)
		}
		if _, err := parse(buf, len(query.Name)); err != nil {
			t.Fatalf("%v:\n%x\n%x", err, reply, buf)
		}
		in, out := new(dns.Msg), new(dns.Msg)
		if in.Unpack(reply) != nil {
			return
		}
		if err := out.Unpack(buf); err != nil {
			t.Fatalf("%v:\n%x\n%x", err, reply, buf)
		}
		if out.Truncated || out.Rcode != in.Rcode || len(out.Answer) != len(in.Answer) {
			if !out.Truncated && in.Rcode < 16 && e.succeeded() {
				t.Fatalf("%v\nbecame\n%v", in, out)
			}
			return
		}
		for i := range in.Answer {
			in.Answer[i].Header().Ttl, out.Answer[i].Header().Ttl = 0, 0
		}
		if e.turns == 0 && fmt.Sprint(in.Answer) != fmt.Sprint(out.Answer) && !foldsEqual(in.Answer, out.Answer) {
			t.Fatalf("%v\nbecame\n%v", in, out)
		}
	})
}

// foldsEqual compares records; names in them may be spelled as the question.
func foldsEqual(x, y []dns.RR) bool {
	for i := range x {
		if !equalFold([]byte(fmt.Sprint(x[i])), lower(fmt.Sprint(y[i]))) {
			return false
		}
	}
	return true
}

func lower(s string) []byte {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return b
}

func TestTheLargestReplyIsKeptWhole(t *testing.T) {
	w := newWorld(silent)
	k := key{name: "\x01x\x00", kind: 65280, class: 1}
	m := append(make([]byte, headerLen), "\x01x\x00\xff\x00\x00\x01"...)
	m[5], m[7] = 1, 1
	m = append(m, "\xc0\x0c\xff\x00\x00\x01\x00\x00\x00\x3c\x00\x00"...)
	size := math.MaxUint16 - len(m)
	binary.BigEndian.PutUint16(m[len(m)-2:], uint16(size))
	m = append(m, make([]byte, size)...)
	e, err := w.read(k, m)
	if err != nil {
		t.Fatal(err)
	}
	q := asked{name: "x.", kind: 65280, tcp: true}
	_, query := q.wire(t)
	if b := e.appendReply(nil, query, 0, false); len(b) != math.MaxUint16 {
		t.Errorf("%d bytes", len(b))
	}
	query.EDNS = true
	if b := e.appendReply(nil, query, 0, false); len(b) != headerLen+7+optLen || b[2]&flagTC == 0 {
		t.Errorf("%d bytes with OPT", len(b))
	}
}
