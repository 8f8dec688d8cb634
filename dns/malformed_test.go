package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/miekg/dns"
)

// message is one by hand: id, flags, counts, and what follows.
func message(flags uint16, counts [4]uint16, rest ...string) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x12, 0x34}, flags)
	for _, n := range counts {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return append(b, strings.Join(rest, "")...)
}

const (
	dbName     = "\x02db\x07default\x07cluster\x05local\x00"
	dbQuestion = dbName + "\x00\x01\x00\x01"
	optRecord  = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
	rd         = 0x0100
)

func TestMalformedMessages(t *testing.T) {
	const ok = "NOERROR"
	cases := map[string]struct {
		msg  []byte
		want string // a code, "" for silence
		opt  bool   // in the answer
	}{
		"nothing":                         {[]byte{}, "", false},
		"one octet":                       {[]byte{1}, "", false},
		"less than a header":              {message(rd, [4]uint16{1})[:11], "", false},
		"an answer":                       {message(0x8180, [4]uint16{1}, dbQuestion), "", false},
		"an answer that is malformed":     {message(0x8180, [4]uint16{9}), "", false},
		"a header only":                   {message(rd, [4]uint16{}), "FORMERR", false},
		"no question with OPT":            {message(rd, [4]uint16{0, 0, 0, 1}, optRecord), "FORMERR", true},
		"no question where there is one":  {message(rd, [4]uint16{}, dbQuestion), "FORMERR", false},
		"a question that is missing":      {message(rd, [4]uint16{1}), "FORMERR", false},
		"two questions":                   {message(rd, [4]uint16{2}, dbQuestion, dbQuestion), "FORMERR", false},
		"two questions with OPT":          {message(rd, [4]uint16{2, 0, 0, 1}, dbQuestion, dbQuestion, optRecord), "FORMERR", true},
		"two questions, one there":        {message(rd, [4]uint16{2}, dbQuestion), "FORMERR", false},
		"65,535 questions":                {message(rd, [4]uint16{65535}, dbQuestion), "FORMERR", false},
		"a name without its end":          {message(rd, [4]uint16{1}, "\x02db\x07defa"), "FORMERR", false},
		"a name and no type":              {message(rd, [4]uint16{1}, dbName), "FORMERR", false},
		"half a class":                    {message(rd, [4]uint16{1}, dbName, "\x00\x01\x00"), "FORMERR", false},
		"a pointer to itself":             {message(rd, [4]uint16{1}, "\xc0\x0c\x00\x01\x00\x01"), "FORMERR", false},
		"a pointer to the header":         {message(rd, [4]uint16{1}, "\xc0\x00\x00\x01\x00\x01"), "FORMERR", false},
		"a pointer past the end":          {message(rd, [4]uint16{1}, "\x02db\xff\xff\x00\x01\x00\x01"), "FORMERR", false},
		"a label of 64":                   {message(rd, [4]uint16{1}, "\x40", strings.Repeat("x", 64), "\x00\x00\x01\x00\x01"), "FORMERR", false},
		"a label of type 10":              {message(rd, [4]uint16{1}, "\x80", strings.Repeat("x", 200), "\x00\x00\x01\x00\x01"), "FORMERR", false},
		"a name of 255":                   {message(rd, [4]uint16{1}, strings.Repeat("\x01x", 127), "\x00\x00\x01\x00\x01"), "REFUSED", false},
		"a name of 256":                   {message(rd, [4]uint16{1}, strings.Repeat("\x01x", 126), "\x02xx\x00\x00\x01\x00\x01"), "FORMERR", false},
		"a name of 257":                   {message(rd, [4]uint16{1}, strings.Repeat("\x01x", 128), "\x00\x00\x01\x00\x01"), "FORMERR", false},
		"octets after the question":       {message(rd, [4]uint16{1}, dbQuestion, "garbage"), ok, false},
		"octets after OPT":                {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord, "garbage"), ok, true},
		"a record that is missing":        {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion), "FORMERR", false},
		"65,535 records":                  {message(rd, [4]uint16{1, 65535, 65535, 65535}, dbQuestion, optRecord), "FORMERR", false},
		"half an OPT":                     {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:8]), "FORMERR", false},
		"OPT with data past the end":      {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x00\x09"), "FORMERR", false},
		"OPT with half an option":         {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x00\x03\x00\x0a\x00"), "FORMERR", true},
		"OPT with an option past its end": {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x00\x04\x00\x0a\x00\x01"), "FORMERR", true},
		"OPT with an empty option":        {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x00\x04\xff\xff\x00\x00"), ok, true},
		"OPT with a cookie":               {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x00\x0c\x00\x0a\x00\x0812345678"), ok, true},
		"two OPT":                         {message(rd, [4]uint16{1, 0, 0, 2}, dbQuestion, optRecord, optRecord), "FORMERR", true},
		"OPT of another name":             {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, "\x01x", optRecord), "FORMERR", true},
		"OPT of a compressed name":        {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, "\xc0\x0c", optRecord[1:]), "FORMERR", true},
		"OPT after another record":        {message(rd, [4]uint16{1, 0, 0, 2}, dbQuestion, "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00", optRecord), ok, true},
		"OPT before another record":       {message(rd, [4]uint16{1, 0, 0, 2}, dbQuestion, optRecord, "\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"), ok, true},
		"OPT in the answer section":       {message(rd, [4]uint16{1, 1}, dbQuestion, optRecord), ok, false},
		"a record in the authority":       {message(rd, [4]uint16{1, 0, 1}, dbQuestion, dbName, "\x00\x06\x00\x01\x00\x00\x00\x00\x00\x00"), ok, false},
		"a record with a reserved label":  {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, "\x80\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"), "FORMERR", false},
		"a record with half a pointer":    {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, "\xc0"), "FORMERR", false},
		"another opcode, malformed":       {message(rd|5<<11, [4]uint16{1, 7}, "\x99"), "NOTIMP", false},
		"all flags but QR":                {message(0x07ff, [4]uint16{1}, dbQuestion), ok, false},
		"an answer's code in a query":     {message(rd|3, [4]uint16{1}, dbQuestion), ok, false},
		"a query that says it was cut":    {message(rd|0x0200, [4]uint16{1}, dbQuestion), ok, false},
		"the largest query":               {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x0f\xc7\x00\x0c\x0f\xc3", strings.Repeat("\x00", 4035)), ok, true},
		"larger than that":                {message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord[:9], "\x20\x04\x00\x0c\x20\x00", strings.Repeat("\x00", 8192)), "FORMERR", false},
	}
	at := serveBook(t, Options{})
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wait := patience
			if c.want == "" {
				wait = 200 * time.Millisecond
			}
			b, err := askUDPFor(at, c.msg, wait)
			if c.want == "" {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("answer %x, error %v; want silence", b, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := unpack(b)
			if err != nil {
				t.Fatal(err)
			}
			if got := dns.RcodeToString[m.Rcode]; got != c.want || (m.IsEdns0() != nil) != c.opt || !m.Response || m.Id != 0x1234 {
				t.Errorf("answer %v, want %s, OPT %v", m, c.want, c.opt)
			}
		})
	}
}

// nobody is a Forwarder that knows nothing yet.
type nobody struct{}

func (nobody) Cached(_ forward.Query, buf []byte) ([]byte, bool) { return buf, false }

func (nobody) Resolve(context.Context, forward.Query, []byte) ([]byte, error) {
	return nil, errors.New("not asked")
}

func FuzzServe(f *testing.F) {
	f.Add(message(rd, [4]uint16{1}, dbQuestion), false)
	f.Add(message(rd, [4]uint16{1, 0, 0, 1}, dbQuestion, optRecord), false)
	f.Add(message(rd, [4]uint16{2, 0, 0, 2}, dbQuestion, dbQuestion, optRecord, optRecord), true)
	f.Add(message(rd, [4]uint16{1}, "\xc0\x0c\x00\x01\x00\x01"), true)
	for _, name := range []string{"sixty.default.cluster.local.", "many.default.cluster.local.", "web.default.cluster.local.", "slow.example.", deep + "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeANY, dns.TypeAXFR} {
			m := ask(name, kind)
			f.Add(pack(f, m), false)
			m.SetEdns0(4096, true)
			f.Add(pack(f, m), true)
		}
	}
	m := ask("_w._udp.wide.default.svc.cluster.local.", dns.TypeSRV)
	m.SetEdns0(700, false)
	f.Add(pack(f, m), false)
	z := names(f)
	r := newResponder(nobody{}, 1, 2)
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		before := bytes.Clone(msg)
		b, o := r.respond(msg, z, tcp)
		if !bytes.Equal(msg, before) {
			t.Fatal("the message was written to")
		}
		readable := len(msg) >= headerSize && msg[2]&0x80 == 0
		if (o == silent) == readable {
			t.Fatalf("outcome %d of %x", o, msg)
		}
		if o == silent || o == outside {
			if b != nil {
				t.Fatalf("answer %x", b)
			}
			return
		}
		limit := ednsSize
		switch {
		case tcp:
			limit = tcpSize
		case !r.q.edns:
			limit = plainSize
		}
		if len(b) > limit {
			t.Fatalf("%d octets, at most %d are wanted", len(b), limit)
		}
		reply, err := unpack(b)
		if err != nil {
			t.Fatalf("%v in %x", err, b)
		}
		if b[0] != msg[0] || b[1] != msg[1] || !reply.Response || (reply.IsEdns0() != nil) != r.q.edns {
			t.Fatalf("answer %v", reply)
		}
		if o == refused && len(reply.Answer)+len(reply.Ns) > 0 {
			t.Fatalf("refused, but %v", reply)
		}
	})
}
