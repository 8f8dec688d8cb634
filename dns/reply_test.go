package dns

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/miekg/dns"
)

// TestEveryOrderIsAsLikely counts the orders of four addresses, of which the
// first is local, and of three without: chi-square over all that can be.
func TestEveryOrderIsAsLikely(t *testing.T) {
	for name, c := range map[string]struct {
		n, local, orders int
		limit            float64 // of chi-square, exceeded in one of 1,000 tests
	}{
		"three":              {3, 0, 6, 20.5},
		"four":               {4, 0, 24, 49.7},
		"one local, three":   {4, 1, 6, 20.5},
		"two local, two":     {4, 2, 4, 16.3},
		"all local":          {3, 3, 6, 20.5},
		"nothing to shuffle": {1, 1, 1, 0.1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newResponder(nil, 1, 2) // seeded: the outcome is always the same
			seen := map[string]int{}
			const tries = 12000
			for range tries {
				order := r.shuffle(c.n, c.local)
				if slices.ContainsFunc(order[:c.local], func(k uint16) bool { return int(k) >= c.local }) {
					t.Fatalf("order %d: the first %d must be local", order, c.local)
				}
				var key strings.Builder
				for _, k := range order {
					key.WriteByte('0' + byte(k))
				}
				seen[key.String()]++
			}
			if len(seen) != c.orders {
				t.Fatalf("%d orders, want %d: %v", len(seen), c.orders, seen)
			}
			want, chi := tries/float64(c.orders), 0.0
			for _, n := range seen {
				chi += (float64(n) - want) * (float64(n) - want) / want
			}
			if chi > c.limit {
				t.Errorf("chi-square %.1f, above %.1f: %v", chi, c.limit, seen)
			}
		})
	}
}

// TestFirstAddressBalances: what most clients take is the first one.
func TestFirstAddressBalances(t *testing.T) {
	z := names(t)
	r := newResponder(nil, 3, 4)
	m := ask("sixty.default.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, false)
	msg := pack(t, m)
	first := map[string]int{}
	const tries = 12000
	for range tries {
		b, _ := r.respond(msg, z, false)
		first[string(b[12+len("\x05sixty\x07default\x07cluster\x05local\x00")+4+12:][:4])]++
	}
	chi := 0.0
	for _, n := range first {
		chi += float64(n-tries/60) * float64(n-tries/60) / (tries / 60)
	}
	if len(first) != 60 || chi > 98.3 { // one in 1,000, 59 degrees
		t.Errorf("%d addresses come first, chi-square %.1f", len(first), chi)
	}
}

// TestNamesAreCompressed looks for the ends that names share with the question.
func TestNamesAreCompressed(t *testing.T) {
	z := names(t)
	r := newResponder(nil, 1, 2)
	for ask, longest := range map[string]int{
		// header, question, then each record with a pointer for its owner
		"web.default.cluster.local. A":                       12 + 31 + 3*16,
		"nobody.default.cluster.local. A":                    12 + 34 + 12 + 3 + 4 + 2 + 11 + 2 + 20,
		"1.2.1.10.in-addr.arpa. PTR":                         12 + 27 + 12 + 27,
		"cluster.local. NS":                                  12 + 19 + 12 + 3 + 4 + 2,
		"alias.default.cluster.local. CNAME":                 12 + 33 + 12 + 4 + 2,
		"_http._tcp.frontend.default.svc.cluster.local. SRV": 12 + 51 + 12 + 6 + 36 + 16 + 28,
	} {
		msg, _ := question(t, ask)
		b, _ := r.respond(msg, z, false)
		if _, err := unpack(b); err != nil {
			t.Errorf("%s: %v", ask, err)
		}
		if len(b) != longest {
			t.Errorf("%s: %d octets, want %d: %q", ask, len(b), longest, b)
		}
	}
}

// TestOwnersBeyondThePointersReach: a pointer has 14 bits.
func TestOwnersBeyondThePointersReach(t *testing.T) {
	records := []string{}
	for i := range 1200 {
		records = append(records, "x.cluster.local. A 10.0."+strconv.Itoa(i/250)+"."+strconv.Itoa(i%250))
	}
	for i := range 1200 {
		records = append(records, "y.other. A 10.1."+strconv.Itoa(i/250)+"."+strconv.Itoa(i%250))
	}
	z := newBook(t, []string{"cluster.local.", "other."}, records...)
	a, _ := z.Lookup(wire(t, "x.cluster.local."), dns.TypeA)
	y, _ := z.Lookup(wire(t, "y.other."), dns.TypeA)
	y.Set.Owner = wire(t, "y.other.")
	a.More = append(slices.Clip(a.More), y.Set)
	r := newResponder(nil, 1, 2)
	if _, ok := r.q.read(pack(t, ask("x.cluster.local.", dns.TypeA))); !ok {
		t.Fatal("not read")
	}
	m, err := unpack(r.answer(z, &a, tcpSize))
	if err != nil {
		t.Fatal(err)
	}
	if last := m.Answer[len(m.Answer)-1].Header().Name; len(m.Answer) != 2400 || last != "y.other." {
		t.Errorf("%d records, the last of %s", len(m.Answer), last)
	}
}

// TestAnAliasBringsItsTarget: the answer has owners other than the question's.
func TestAnAliasBringsItsTarget(t *testing.T) {
	z := names(t)
	a, _ := z.Lookup(wire(t, "alias.default.cluster.local."), dns.TypeCNAME)
	target, _ := z.Lookup(wire(t, "web.default.cluster.local."), dns.TypeA)
	set := target.Set
	set.Owner = wire(t, "web.default.cluster.local.")
	a.More = append(slices.Clip(a.More), set)
	r := newResponder(nil, 1, 2)
	if _, ok := r.q.read(pack(t, ask("Alias.default.cluster.local.", dns.TypeA))); !ok {
		t.Fatal("not read")
	}
	b := r.answer(z, &a, plainSize)
	m, err := unpack(b)
	if err != nil {
		t.Fatal(err)
	}
	want := "NOERROR aa nora\n= alias.default.cluster.local. CNAME web.default.cluster.local." + web
	if got := render(m); got != sorted(want) {
		t.Errorf("%s\nwant\n%s", got, sorted(want))
	}
	if want := 12 + 33 + 12 + 6 + 6 + 14 + 2*16; len(b) != want { // "web" and a pointer twice, then pointers only
		t.Errorf("%d octets, want %d", len(b), want)
	}
}

// remembered is a Forwarder with one answer, which it copies as it is.
type remembered struct {
	nobody
	reply []byte
}

func (r remembered) Cached(_ forward.Query, buf []byte) ([]byte, bool) {
	return append(buf, r.reply...), true
}

// hot are the questions that must cost nothing.
func hot(t testing.TB) map[string][]byte {
	m := ask("web.default.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, false)
	return map[string][]byte{
		"A":          pack(t, ask("web.default.cluster.local.", dns.TypeA)),
		"A with OPT": pack(t, m),
		"NXDOMAIN":   pack(t, ask("nobody.default.cluster.local.", dns.TypeA)),
		"SRV":        pack(t, ask("_db._tcp.peers.default.svc.cluster.local.", dns.TypeSRV)),
		"cached":     pack(t, ask("cached.example.", dns.TypeA)),
	}
}

func hotResponder(t testing.TB) *responder {
	q := pack(t, ask("cached.example.", dns.TypeA))
	reply := (&outsiders{}).reply(forward.Query{Msg: q, Name: wire(t, "cached.example."), Size: plainSize})
	return newResponder(remembered{reply: reply}, 1, 2)
}

func TestHotAnswersAllocateNothing(t *testing.T) {
	z := names(t)
	r := hotResponder(t)
	c := newCounters("default", "udp", 1)
	for name, msg := range hot(t) {
		n := testing.AllocsPerRun(100, func() {
			b, o := r.respond(msg, z, false)
			if len(b) == 0 {
				t.Fatal("no answer")
			}
			c.answered(r, o, 1)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkRespond(b *testing.B) {
	z := names(b)
	r := hotResponder(b)
	c := newCounters("default", "udp", 1)
	for name, msg := range hot(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, o := r.respond(msg, z, false)
				c.answered(r, o, 1)
			}
		})
	}
}

func TestQuestionsSpellingIsKept(t *testing.T) {
	z := names(t)
	r := newResponder(nil, 1, 2)
	msg := pack(t, ask("wEB.dEFault.CLUSTER.loCAL.", dns.TypeA))
	b, _ := r.respond(msg, z, false)
	if !bytes.Equal(b[12:len(msg)], msg[12:]) {
		t.Errorf("question %q, echoed %q", msg[12:], b[12:len(msg)])
	}
}
