package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
	"github.com/miekg/dns"
)

// zoneOf is a real zone of services and n containers on the hosts 0 to n/250.
func zoneOf(n int, services ...*service.Service) *zone.Zone {
	s := zone.State{Domain: "cluster.local", Tenant: "default", TTL: bookTTL * time.Second, Services: services}
	for i := range n {
		e := &endpoint.Endpoint{Tenant: "default", Network: "default", Host: fmt.Sprintf("host%d", i/250), Container: fmt.Sprintf("%064x", i), IfName: "eth0",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(1 + i%250)})}, Labels: map[string]string{"app": "web"}}
		e.ID = e.Host + "," + e.Container + "," + e.IfName
		s.Endpoints = append(s.Endpoints, e)
	}
	return new(zone.Builder).Build(s)
}

func named(name string) *service.Service {
	return &service.Service{Tenant: "default", Network: "default", Name: name}
}

// external are services by the names that they are aliases of.
func external(targets map[string]string) (list []*service.Service) {
	list = append(list, &service.Service{Tenant: "default", Network: "default", Name: "listed", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.77")}})
	for name, target := range targets {
		s := named(name)
		s.External = target
		list = append(list, s)
	}
	return list
}

// serveZone runs a server with a zone and returns where.
func serveZone(t testing.TB, o Options, z Zone) (*Server, netip.AddrPort) {
	t.Helper()
	addr := loopback()
	s := serve(t, o, View{Name: "default", Addrs: []netip.Addr{addr}, Zone: z})
	at := netip.AddrPortFrom(addr, testPort)
	awaitListening(t, at)
	return s, at
}

func TestAliasesOfOutsideNamesAreCompleted(t *testing.T) {
	_, at := serveZone(t, Options{Forward: &outsiders{}}, zoneOf(0, external(map[string]string{
		"cached": "cached.example", "slow": "Slow.Example.", "nobody": "nobody.example", "many": "many.example", "in": "listed.default.svc.cluster.local",
		"loop": "loop.default.svc.cluster.local", "gone": "gone.default.cluster.local",
	})...))
	for q, want := range map[string]string{
		"cached A":           "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example. = cached.example. A 192.0.2.1",
		"cached A edns=1232": "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example. = cached.example. A 192.0.2.1 opt 1232",
		"cached CNAME":       "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example.",
		"cached ANY":         "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example.",
		"cached A norec":     "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example.",
		"cached A cd":        "NOERROR aa cd = cached.default.svc.cluster.local. CNAME cached.example. = cached.example. A 192.0.2.1",
		"CACHED A":           "NOERROR aa = cached.default.svc.cluster.local. CNAME cached.example. = cached.example. A 192.0.2.1",
		"slow A":             "NOERROR aa = slow.default.svc.cluster.local. CNAME slow.example. = slow.example. A 192.0.2.1",
		"slow A edns=512 do": "NOERROR aa = slow.default.svc.cluster.local. CNAME slow.example. = slow.example. A 192.0.2.1 opt 1232 do",
		"nobody A":           "NXDOMAIN aa = nobody.default.svc.cluster.local. CNAME nobody.example.",
		"many A udp":         "NOERROR aa tc = many.default.svc.cluster.local. CNAME many.example.",
		"many A tcp":         "NOERROR aa = many.default.svc.cluster.local. CNAME many.example." + strings.ReplaceAll(outsideAddresses(80), "\n", " "),
		"many A edns=4096":   "NOERROR aa tc = many.default.svc.cluster.local. CNAME many.example. opt 1232",
		"in A":               "NOERROR aa = in.default.svc.cluster.local. CNAME listed.default.svc.cluster.local. = listed.default.svc.cluster.local. A 192.0.2.77",
		"in AAAA":            "NOERROR aa = in.default.svc.cluster.local. CNAME listed.default.svc.cluster.local. ! cluster.local. SOA  hostmaster.cluster.local. 1 7200 1800 86400 5",
		"in ANY":             "NOERROR aa = in.default.svc.cluster.local. CNAME listed.default.svc.cluster.local.",
		"gone A":             "NXDOMAIN aa = gone.default.svc.cluster.local. CNAME gone.default.cluster.local. ! cluster.local. SOA  hostmaster.cluster.local. 1 7200 1800 86400 5",
		"gone ANY":           "NOERROR aa = gone.default.svc.cluster.local. CNAME gone.default.cluster.local.",
		"loop A":             "SERVFAIL",
	} {
		t.Run(q, func(t *testing.T) {
			t.Parallel()
			name, rest, _ := strings.Cut(q, " ")
			msg, only := question(t, name+".default.svc.cluster.local. "+rest)
			for proto, send := range map[string]func(netip.AddrPort, []byte) ([]byte, error){"udp": askUDP, "tcp": askTCP} {
				if only != "" && only != proto || strings.Contains(want, " tc ") && proto == "tcp" {
					continue
				}
				b, err := send(at, msg)
				if err != nil {
					t.Fatal(proto, err)
				}
				m, err := unpack(b)
				if err != nil {
					t.Fatal(proto, err)
				}
				for _, rr := range slices.Concat(m.Answer, m.Ns) {
					if ours := strings.HasSuffix(strings.ToLower(rr.Header().Name), "cluster.local."); ours != (rr.Header().Ttl == bookTTL) {
						t.Errorf("%s: TTL of %v", proto, rr)
					}
				}
				for _, rr := range m.Ns {
					rr.(*dns.SOA).Ns = "" // what it says is compared elsewhere
				}
				got := strings.ReplaceAll(render(m), "\n", " ")
				if sortedWords(got) != sortedWords(want) {
					t.Errorf("%s: %s\nwant %s", proto, got, want)
				}
				if string(b[12:12+len(name)+1]) != string(msg[12:12+len(name)+1]) {
					t.Errorf("%s: the question is spelled otherwise", proto)
				}
			}
		})
	}
}

func sortedWords(s string) string {
	words := strings.Fields(s)
	slices.Sort(words)
	return strings.Join(words, " ")
}

// upstream replies to questions as told, and counts them.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int64
	reply atomic.Pointer[func(m *dns.Msg)] // nil: it is silent
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{addr: netip.AddrPortFrom(loopback(), testPort+1)}
	started := make(chan struct{})
	srv := &dns.Server{Addr: u.addr.String(), Net: "udp", NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeHINFO { // the forwarder looks for loops
			return
		}
		u.asked.Add(1)
		if f := u.reply.Load(); f != nil {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			(*f)(m)
			_ = w.WriteMsg(m)
		}
	})}
	done := make(chan error)
	go func() { done <- srv.ListenAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := errors.Join(srv.Shutdown(), <-done); err != nil {
			t.Error(err)
		}
	})
	return u
}

func (u *upstream) says(f func(m *dns.Msg)) { u.reply.Store(&f) }

func records(t *testing.T, lines ...string) (list []dns.RR) {
	t.Helper()
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rr)
	}
	return list
}

func TestAliasesThroughTheForwarder(t *testing.T) {
	u := newUpstream(t)
	f := forward.New(forward.Options{Upstreams: []netip.AddrPort{u.addr}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	s, at := serveZone(t, Options{Forward: f}, zoneOf(0, external(map[string]string{"www": "www.example.com", "none": "none.example.com", "bad": "bad.example.com", "tired": "tired.example.com"})...))
	get := func(name string, qtype uint16) *dns.Msg {
		t.Helper()
		b, err := askUDP(at, pack(t, ask(name+".default.svc.cluster.local.", qtype)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := unpack(b)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}

	// A chain outside, asked for by many at once.
	chain := records(t, "www.example.com. 300 CNAME cdn.example.net.", "cdn.example.net. 30 A 192.0.2.1", "cdn.example.net. 30 A 192.0.2.2")
	hold := make(chan struct{})
	u.says(func(m *dns.Msg) {
		<-hold
		m.Answer = chain
	})
	before := u.asked.Load()
	var askers sync.WaitGroup
	for range 20 {
		askers.Go(func() {
			if m := get("www", dns.TypeA); len(m.Answer) != 4 || m.Answer[3].Header().Ttl > 30 || m.AuthenticatedData || m.Rcode != 0 {
				t.Errorf("%v", m)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	close(hold)
	askers.Wait()
	get("www", dns.TypeA)
	if n := u.asked.Load() - before; n != 1 {
		t.Errorf("%d questions went upstream", n)
	}

	// Absence may be remembered no longer than the alias.
	u.says(func(m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		m.Ns = records(t, "example.com. 3600 SOA ns.example.com. admin.example.com. 1 2 3 4 900")
	})
	if m := get("none", dns.TypeA); m.Rcode != dns.RcodeNameError || len(m.Answer) != 1 || len(m.Ns) != 1 || m.Ns[0].Header().Ttl > bookTTL {
		t.Errorf("%v", m)
	}

	// What upstreams cannot tell is a failure that may pass.
	u.says(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused })
	if m := get("bad", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 0 || m.Authoritative || len(m.Question) != 1 {
		t.Errorf("%v", m)
	}
	// Records that cannot be taken apart: an SVCB record of nothing.
	u.says(func(m *dns.Msg) {
		m.Answer = []dns.RR{&dns.RFC3597{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeHTTPS, Class: dns.ClassINET, Ttl: 5}, Rdata: "00"}}
	})
	if m := get("tired", dns.TypeHTTPS); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 0 {
		t.Errorf("%v", m)
	}
	for _, r := range s.Stats().Responses {
		if r.Zone != "cluster.local." {
			t.Errorf("counted for another zone: %+v", r)
		}
	}
}

// TestAThousandEndpoints: what does not fit into a packet is had over TCP, and
// what does not fit there either, in part.
func TestAThousandEndpoints(t *testing.T) {
	selected := func(name string) *service.Service {
		s := named(name)
		s.Headless, s.Selector = true, map[string]string{"app": "web"}
		s.Ports = []service.Port{{Name: "http", Port: 80, Protocol: "tcp"}}
		return s
	}
	for _, c := range []struct{ endpoints, addrs, ports int }{{900, 900, 900}, {1000, 1000, 920}, {5000, 4090, 920}} {
		_, at := serveZone(t, Options{}, zoneOf(c.endpoints, selected("web")))
		for name, want := range map[string]int{"web.default.svc.cluster.local. A": c.addrs, "_http._tcp.web.default.svc.cluster.local. SRV": c.ports} {
			msg, _ := question(t, name)
			b, err := askUDP(at, msg)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := unpack(b); err != nil || !m.Truncated || len(m.Answer) != 0 {
				t.Errorf("%d endpoints, %s over UDP: %v %v", c.endpoints, name, err, m)
			}
			if b, err = askTCP(at, msg); err != nil {
				t.Fatal(err)
			}
			m, err := unpack(b)
			if err != nil || len(m.Answer) < want || m.Truncated != (len(m.Answer) < c.endpoints) {
				t.Errorf("%d endpoints, %s over TCP: %v, %d records, truncated %v", c.endpoints, name, err, len(m.Answer), m.Truncated)
			}
			seen := map[string]bool{}
			for _, rr := range m.Answer {
				seen[rr.String()] = true
			}
			if len(seen) != len(m.Answer) {
				t.Errorf("%d of %d are different", len(seen), len(m.Answer))
			}
		}
	}
}

// FuzzComplete: whatever an upstream says, what is sent is a whole message of
// the size that is wanted, an answer to the question.
func FuzzComplete(f *testing.F) {
	q := pack(f, ask("www.default.svc.cluster.local.", dns.TypeA))
	r := newResponder(&outsiders{}, 1, 2)
	answer, o := r.respond(q, zoneOf(0, external(map[string]string{"www": "slow.example"})...), false)
	if answer != nil || o != outside {
		f.Fatalf("%x %v", answer, o)
	}
	begun := r.errand(false).answer
	f.Add(pack(f, ask("slow.example.", dns.TypeA)), 512)
	f.Add([]byte{}, 512)
	m := new(dns.Msg).SetReply(ask("slow.example.", dns.TypeA))
	m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: "slow.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 250), strings.Repeat("y", 250)}}}
	f.Add(pack(f, m), 512)
	f.Fuzz(func(t *testing.T, reply []byte, size int) {
		size = max(512, min(size, tcpSize))
		b := complete(begun, reply, size)
		m, err := unpack(b)
		if err != nil || len(b) > size || len(m.Question) != 1 || m.Question[0].Name != "www.default.svc.cluster.local." || !m.Response {
			t.Fatalf("%v: %d octets %x", err, len(b), b)
		}
	})
}

// BenchmarkAlias is an alias whose target is cached.
func BenchmarkAlias(b *testing.B) {
	msg := pack(b, ask("www.default.svc.cluster.local.", dns.TypeA))
	reply, err := (&outsiders{}).Resolve(b.Context(), forward.Query{Msg: pack(b, ask("slow.example.", dns.TypeA)), Name: wire(b, "slow.example."), Size: tcpSize}, nil)
	if err != nil {
		b.Fatal(err)
	}
	r := newResponder(known(reply), 1, 2)
	z := zoneOf(0, external(map[string]string{"www": "slow.example"})...)
	b.ReportAllocs()
	for b.Loop() {
		if _, o := r.respond(msg, z, false); o != ours {
			b.Fatal(o)
		}
	}
}

// known is a Forwarder that has one reply to everything.
type known []byte

func (k known) Cached(forward.Query, []byte) ([]byte, bool) { return k, true }

func (k known) Resolve(context.Context, forward.Query, []byte) ([]byte, error) { return k, nil }
