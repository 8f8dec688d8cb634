package forward

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const testPort = 5301 // below the ports that the kernel hands out

// server is an upstream on a loopback address of its own, over UDP and TCP.
type server struct {
	addr netip.AddrPort

	mu   sync.Mutex // guards what follows
	got  []*dns.Msg
	from []netip.AddrPort
	tcp  int // how many of them
}

// handler replies to a query. tcp tells how it came.
type handler func(w dns.ResponseWriter, q *dns.Msg, tcp bool)

// serve starts the n-th upstream of this process.
func serve(t *testing.T, n int, h handler) *server {
	t.Helper()
	s := &server{addr: serverNo(n)}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(s.addr))
	if err != nil {
		udp.Close()
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, d := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		overTCP := d.Listener != nil
		d.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			s.note(w, q, overTCP)
			h(w, q, overTCP)
		})
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { d.ActivateAndServe() })
		<-started
		t.Cleanup(func() { d.Shutdown() })
	}
	return s
}

func serverNo(n int) netip.AddrPort {
	pid := os.Getpid()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(64 + pid>>8&63), byte(pid), byte(n)}), testPort)
}

func (s *server) note(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
	from, err := netip.ParseAddrPort(w.RemoteAddr().String())
	if err != nil {
		panic(err)
	}
	if q.Question[0].Qtype == dns.TypeHINFO {
		return // looks for loops
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, q)
	s.from = append(s.from, from)
	if tcp {
		s.tcp++
	}
}

// counts returns how many queries came over UDP and TCP.
func (s *server) counts() (udp, tcp int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got) - s.tcp, s.tcp
}

// replies makes a handler of what replies.
func replies(say func(*dns.Msg) *dns.Msg) handler {
	return func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		if r := say(q); r != nil {
			w.WriteMsg(r)
		}
	}
}

// forwarder runs a Forwarder for the servers until the test ends.
func forwarder(t *testing.T, servers ...*server) *Forwarder {
	var ups []netip.AddrPort
	for _, s := range servers {
		ups = append(ups, s.addr)
	}
	return running(t, Options{Upstreams: ups})
}

func running(t *testing.T, o Options) *Forwarder {
	w := &world{Forwarder: New(o)}
	t.Cleanup(w.run(t))
	return w.Forwarder
}

func TestOnlyTheReplyToTheQuestionCounts(t *testing.T) {
	wrong := answer("x.example. 60 IN A 203.0.113.66")
	for name, lie := range map[string]handler{
		"wrong id": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := wrong(q)
			for range 20 {
				r.Id++
				w.WriteMsg(r)
			}
		},
		"wrong name": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := wrong(q)
			r.Question[0].Name = "y.example."
			w.WriteMsg(r)
		},
		"wrong type": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := wrong(q)
			r.Question[0].Qtype = dns.TypeAAAA
			w.WriteMsg(r)
		},
		"no question": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := wrong(q)
			r.Question = nil
			w.WriteMsg(r)
		},
		"a query": func(w dns.ResponseWriter, q *dns.Msg, _ bool) { w.WriteMsg(q) },
		"short":   func(w dns.ResponseWriter, _ *dns.Msg, _ bool) { w.Write([]byte{1, 2, 3}) },
		"empty":   func(w dns.ResponseWriter, _ *dns.Msg, _ bool) { w.Write(nil) },
		"wrong source": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			c, err := net.Dial("udp", w.RemoteAddr().String())
			if err != nil {
				panic(err)
			}
			defer c.Close()
			b, _ := wrong(q).Pack()
			c.Write(b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, 1, func(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
				lie(w, q, tcp)
				time.Sleep(10 * time.Millisecond)
				w.WriteMsg(good(q))
			})
			f := forwarder(t, s)
			if r := a("x.example.").put(t, f); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
				t.Errorf("got %v", r)
			}
			if udp, tcp := s.counts(); udp != 1 || tcp != 0 {
				t.Errorf("asked %d times, over TCP %d times", udp, tcp)
			}
		})
	}
}

func TestAnUpstreamThatTalksNonsenseIsPassedOver(t *testing.T) {
	for name, h := range map[string]handler{
		"data of a wrong size": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			b, _ := good(q).Pack()
			b[len(b)-5]++
			w.Write(b)
		},
		"more records than there are": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			b, _ := good(q).Pack()
			b[7] = 9
			w.Write(b)
		},
		"truncated, and TCP hangs up": func(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
			r := answer()(q)
			r.Truncated = true
			if tcp {
				w.Close()
				return
			}
			w.WriteMsg(r)
		},
		"truncated, and TCP replies to something else": func(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
			r := answer()(q)
			r.Truncated = !tcp
			if tcp {
				r.Id++
			}
			w.WriteMsg(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := forwarder(t, serve(t, 1, h), serve(t, 2, replies(good)))
			if r := a("x.example.").put(t, f); len(r.Answer) != 1 {
				t.Errorf("got %v", r)
			}
		})
	}
}

func TestNobodyAtTheUpstreamsPortIsNoticedAtOnce(t *testing.T) {
	f := running(t, Options{Upstreams: []netip.AddrPort{serverNo(9), serve(t, 1, replies(good)).addr}})
	if r := a("x.example.").put(t, f); len(r.Answer) != 1 {
		t.Errorf("got %v", r)
	}
	if s := f.Stats().Upstreams[0]; s.Failures != 1 {
		t.Errorf("%+v", s)
	}
}

func TestASilentUpstreamIsFollowedByTheNext(t *testing.T) {
	quiet, s := serve(t, 1, replies(silent)), serve(t, 2, replies(good))
	f := forwarder(t, quiet, s)
	began := time.Now()
	r := a("x.example.").put(t, f)
	if took := time.Since(began); len(r.Answer) != 1 || took > time.Second {
		t.Errorf("after %v: %v", took, r)
	}
	if udp, _ := quiet.counts(); udp != 1 {
		t.Errorf("the first was asked %d times", udp)
	}
}

func TestLargeAnswersComeOverTCPAndWhole(t *testing.T) {
	big := func(q *dns.Msg) *dns.Msg {
		r := answer()(q)
		for i := range 1000 {
			r.Answer = append(r.Answer, rrs(fmt.Sprintf("x.example. 60 IN TXT \"%040d\"", i))...)
		}
		return r
	}
	for name, udp := range map[string]handler{
		"truncated": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := answer()(q)
			r.Truncated = true
			w.WriteMsg(r)
		},
		"larger than asked for": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
			r := big(q)
			r.Answer = r.Answer[:150]
			w.WriteMsg(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, 1, func(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
				if tcp {
					w.WriteMsg(big(q))
				} else {
					udp(w, q, tcp)
				}
			})
			f := forwarder(t, s)
			q := asked{name: "x.example.", kind: dns.TypeTXT, size: 1232}
			for range 2 {
				if r := q.put(t, f); !r.Truncated || len(r.Answer) != 0 {
					t.Errorf("over UDP: TC %v, %d records", r.Truncated, len(r.Answer))
				}
			}
			q.tcp = true
			if r := q.put(t, f); r.Truncated || len(r.Answer) != 1000 || r.Answer[999].(*dns.TXT).Txt[0] != fmt.Sprintf("%040d", 999) {
				t.Errorf("over TCP: TC %v, %d records", r.Truncated, len(r.Answer))
			}
			if udp, tcp := s.counts(); udp != 1 || tcp != 1 {
				t.Errorf("asked %d times over UDP, %d over TCP", udp, tcp)
			}
		})
	}
}

func TestAnUpstreamWithoutEDNSIsAskedWithout(t *testing.T) {
	for name, refusal := range map[string]func(w dns.ResponseWriter, q *dns.Msg){
		"format error":      func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(says(dns.RcodeFormatError, "")(q)) },
		"not implemented":   func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(says(dns.RcodeNotImplemented, "")(q)) },
		"without question":  func(w dns.ResponseWriter, q *dns.Msg) { w.Write([]byte{byte(q.Id >> 8), byte(q.Id), 0x80, 1, 11: 0}) },
		"unknown version":   func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(badVersion(q)) },
		"version, and more": func(w dns.ResponseWriter, q *dns.Msg) { r := badVersion(q); r.Answer = good(q).Answer; w.WriteMsg(r) },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, 1, func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
				if q.IsEdns0() != nil {
					refusal(w, q)
				} else {
					w.WriteMsg(good(q))
				}
			})
			f := forwarder(t, s)
			for _, name := range []string{"x.example.", "y.example.", "z.example."} {
				if r := (asked{name: name, kind: dns.TypeA, size: 1232, do: true}).put(t, f); len(r.Answer) != 1 {
					t.Errorf("got %v", r)
				}
			}
			if udp, _ := s.counts(); udp != 4 {
				t.Errorf("asked %d times for 3 names", udp)
			}
		})
	}
}

func badVersion(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.SetEdns0(1232, false)
	r.Rcode = dns.RcodeBadVers
	return r
}

func TestAnswersPassWholeAlsoOfUnknownTypes(t *testing.T) {
	lines := map[uint16][]string{
		dns.TypeHTTPS: {`x.example. 60 IN HTTPS 1 . alpn="h2,h3" ipv4hint="192.0.2.1"`, `x.example. 60 IN HTTPS 2 svc.example. port="8443"`},
		dns.TypeSVCB:  {`x.example. 60 IN SVCB 0 y.example.`},
		65280:         {`x.example. 60 IN TYPE65280 \# 5 0102030405`},
		dns.TypeNAPTR: {`x.example. 60 IN NAPTR 100 10 "u" "sip+E2U" "!^.*$!sip:x@example!" .`},
		dns.TypeMX:    {`x.example. 60 IN MX 10 mail.example.`, `x.example. 60 IN MX 20 mail.x.example.`},
		dns.TypeCAA:   {`x.example. 60 IN CAA 0 issue "example"`},
		dns.TypeSRV:   {`x.example. 60 IN SRV 0 1 80 x.example.`},
		dns.TypeTXT:   {`x.example. 60 IN TXT "a" "b"`},
		dns.TypeANY:   {`x.example. 60 IN A 192.0.2.1`, `x.example. 60 IN AAAA 2001:db8::1`, `x.example. 60 IN MX 10 x.example.`},
	}
	s := serve(t, 1, replies(func(q *dns.Msg) *dns.Msg {
		r := answer(lines[q.Question[0].Qtype]...)(q)
		r.Ns = rrs("example. 60 IN NS ns.example.")
		r.Extra = append(rrs("ns.example. 60 IN A 192.0.2.53"), r.Extra...)
		r.SetEdns0(1232, false)
		r.Compress = true
		return r
	}))
	f := forwarder(t, s)
	for kind, want := range lines {
		for range 2 { // from upstream, from the cache
			r := asked{name: "x.example.", kind: kind}.put(t, f)
			if fmt.Sprint(r.Answer) != fmt.Sprint(rrs(want...)) || len(r.Ns) != 1 || len(r.Extra) != 1 {
				t.Errorf("%s: got %v", dns.Type(kind), r)
			}
		}
	}
}

func TestEachQueryHasAnIDAndAPortOfItsOwn(t *testing.T) {
	s := serve(t, 1, replies(good))
	f := forwarder(t, s)
	const n = 100
	for i := range n {
		asked{name: fmt.Sprintf("N%d.example.", i), kind: dns.TypeA, size: 4096, do: i%2 == 0, cd: i%3 == 0}.put(t, f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	for i, q := range s.got {
		ids[q.Id], ports[s.from[i].Port()] = true, true
		o := q.IsEdns0()
		if !q.RecursionDesired || !q.AuthenticatedData || q.CheckingDisabled != (i%3 == 0) ||
			q.Question[0].Name != fmt.Sprintf("n%d.example.", i) || o == nil || o.UDPSize() != udpSize || o.Do() != (i%2 == 0) {
			t.Errorf("asked %v", q)
		}
	}
	if len(s.got) != n || len(ids) < n-5 || len(ports) < n-8 {
		t.Errorf("%d queries, %d ids, %d ports", len(s.got), len(ids), len(ports))
	}
}
