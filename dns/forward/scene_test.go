package forward

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// asked is a question as a client sends it.
type asked struct {
	name string
	kind uint16
	size uint16 // of the OPT record; 0: none
	do   bool
	cd   bool
	ad   bool
	tcp  bool
}

// wire packs the question as the server would hand it over.
func (a asked) wire(t testing.TB) (*dns.Msg, Query) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(a.name), a.kind)
	m.Id = uint16(rand.Uint32())
	m.CheckingDisabled, m.AuthenticatedData = a.cd, a.ad
	size := 512
	if a.size > 0 {
		m.SetEdns0(a.size, a.do)
		size = int(a.size)
	}
	if a.tcp {
		size = 65535
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	name := make([]byte, 256)
	n, err := dns.PackDomainName(strings.ToLower(dns.Fqdn(a.name)), name, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return m, Query{Msg: msg, Name: name[:n], Type: a.kind, Class: dns.ClassINET, EDNS: a.size > 0, DO: a.do, Size: size}
}

// put asks f and returns the reply, which must belong to the question.
func (a asked) put(t testing.TB, f *Forwarder) *dns.Msg {
	t.Helper()
	m, q := a.wire(t)
	buf, ok := f.Cached(q, make([]byte, 2, 514))
	if !ok {
		var err error
		if buf, err = f.Resolve(t.Context(), q, buf); err != nil {
			t.Fatal(err)
		}
	}
	if len(buf)-2 > q.Size {
		t.Errorf("a reply of %d bytes to who takes %d", len(buf)-2, q.Size)
	}
	r := new(dns.Msg)
	if err := r.Unpack(buf[2:]); err != nil {
		t.Fatalf("%v of %x", err, buf[2:])
	}
	if r.Id != m.Id || !r.Response || len(r.Question) != 1 || r.Question[0] != m.Question[0] || !r.RecursionAvailable ||
		r.RecursionDesired != m.RecursionDesired || r.CheckingDisabled != m.CheckingDisabled || r.Authoritative {
		t.Errorf("not the reply to\n%v\nbut\n%v", m, r)
	}
	if o := r.IsEdns0(); (o != nil) != (a.size > 0) || o != nil && o.Do() != a.do {
		t.Errorf("OPT of the reply: %v, of the question: %v", o, m.IsEdns0())
	}
	return r
}

func a(name string) asked { return asked{name: name, kind: dns.TypeA} }

// rrs parses records.
func rrs(lines ...string) []dns.RR {
	var list []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			panic(err)
		}
		list = append(list, rr)
	}
	return list
}

const soa = "example. 600 IN SOA ns.example. admin.example. 1 2 3 4 "

// answer replies with records.
func answer(lines ...string) func(*dns.Msg) *dns.Msg {
	return func(q *dns.Msg) *dns.Msg {
		r := new(dns.Msg).SetReply(q)
		r.RecursionAvailable = true
		r.Answer = rrs(lines...)
		return r
	}
}

// says replies with an rcode, and an SOA record of this minimum if there is one.
func says(rcode int, minimum string) func(*dns.Msg) *dns.Msg {
	return func(q *dns.Msg) *dns.Msg {
		r := new(dns.Msg).SetRcode(q, rcode)
		r.RecursionAvailable = true
		if minimum != "" {
			r.Ns = rrs(soa + minimum)
		}
		return r
	}
}

// silent never replies.
func silent(*dns.Msg) *dns.Msg { return nil }

// upstreamNo is the address of the i-th upstream of a world.
func upstreamNo(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}), 53)
}

// world is a Forwarder whose upstreams are functions; for synctest.
type world struct {
	*Forwarder
	mu    sync.Mutex
	say   []func(*dns.Msg) *dns.Msg
	asked []int // questions to each, without probes
	seen  []key // all questions but probes, in order
}

var errRefused = errors.New("connection refused")

func newWorld(say ...func(*dns.Msg) *dns.Msg) *world {
	w := &world{say: say, asked: make([]int, len(say))}
	var ups []netip.AddrPort
	for i := range say {
		ups = append(ups, upstreamNo(i))
	}
	w.Forwarder = New(Options{Upstreams: ups})
	w.ask = w.reply
	return w
}

func (w *world) reply(ctx context.Context, up *upstream, k key) (*entry, error) {
	i := int(up.addr.Addr().As4()[3]) - 1
	w.mu.Lock()
	say := w.say[i]
	if k.name != "\x00" && k.kind != typeHINFO {
		w.asked[i]++
		w.seen = append(w.seen, k)
	}
	w.mu.Unlock()
	query, err := k.query(true)
	if err != nil {
		return nil, err
	}
	q := new(dns.Msg)
	if err := q.Unpack(query[2:]); err != nil {
		return nil, err
	}
	said := make(chan *dns.Msg, 1)
	go func() { said <- say(q) }()
	var r *dns.Msg
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r = <-said:
	}
	if r == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	r.Compress = true
	reply, err := r.Pack()
	if err != nil {
		return nil, err
	}
	if !k.repliedBy(reply, query[2:]) {
		return nil, errMismatch
	}
	return w.read(k, reply)
}

// change makes upstream i say something else.
func (w *world) change(i int, say func(*dns.Msg) *dns.Msg) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say[i] = say
}

// count returns how many questions upstream i got since the last call.
func (w *world) count(i int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.asked[i]
	w.asked[i] = 0
	return n
}

// run runs w until the test ends.
func (w *world) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, u := range w.ups.Load().list {
		u.looked = true // asked nothing that is not of the test
	}
	wg.Go(func() { w.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}
