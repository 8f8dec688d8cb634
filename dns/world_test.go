package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld/flanneld/dns/forward"
	"github.com/flanneld/flanneld/dns/zone"
	"github.com/miekg/dns"
)

// book is a Zone of records written out. Where a real zone follows from
// endpoints, this one shows what the server makes of any answer.
type book struct {
	apexes []string // in wire format
	names  map[string]map[uint16]*zone.Answer
	soa    []byte
}

const bookTTL = 5

// newBook parses records in the form of a zone file. "local" before one makes
// it this host's own.
func newBook(t testing.TB, apexes []string, records ...string) *book {
	t.Helper()
	b := &book{names: map[string]map[uint16]*zone.Answer{}}
	for _, a := range apexes {
		b.apexes = append(b.apexes, string(wire(t, a)))
		b.node(string(wire(t, a)))
	}
	b.soa = rdata(t, "x. SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5")
	for _, text := range records {
		text, local := strings.CutPrefix(text, "local ")
		b.add(t, text, local)
	}
	for _, a := range b.apexes {
		b.node(a)[dns.TypeSOA] = &zone.Answer{Apex: []byte(a), Set: zone.Set{Type: dns.TypeSOA, Data: [][]byte{b.soa}}}
	}
	return b
}

func (b *book) add(t testing.TB, text string, local bool) {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	owner, kind := string(wire(t, rr.Header().Name)), rr.Header().Rrtype
	sets := b.node(owner)
	if sets[kind] == nil {
		sets[kind] = &zone.Answer{Apex: []byte(b.apex(owner)), Set: zone.Set{Type: kind}}
	}
	a := sets[kind]
	if s := &a.Set; local {
		s.Data = slices.Insert(s.Data, 0, rdata(t, text))
		s.Local++
	} else {
		s.Data = append(s.Data, rdata(t, text))
	}
	// Names lead on, as a zone has it: aliases in the answer, targets beside it.
	switch rr := rr.(type) {
	case *dns.CNAME:
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if target := b.node(string(wire(t, rr.Target)))[kind]; target != nil {
				set := target.Set
				set.Owner = wire(t, rr.Target)
				sets[kind] = &zone.Answer{Apex: a.Apex, Set: a.Set, More: []zone.Set{set}}
			}
		}
	case *dns.SRV:
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if target := b.node(string(wire(t, rr.Target)))[kind]; target != nil {
				set := target.Set
				set.Owner = wire(t, rr.Target)
				a.Extra = append(a.Extra, set)
			}
		}
	}
}

// node makes a name, and those above it up to its apex.
func (b *book) node(name string) map[uint16]*zone.Answer {
	if b.names[name] == nil {
		b.names[name] = map[uint16]*zone.Answer{}
		if !slices.Contains(b.apexes, name) && len(name) > 1 {
			b.node(name[1+int(name[0]):])
		}
	}
	return b.names[name]
}

func (b *book) apex(name string) string {
	for !slices.Contains(b.apexes, name) {
		if len(name) <= 1 {
			return ""
		}
		name = name[1+int(name[0]):]
	}
	return name
}

func (b *book) Lookup(name []byte, qtype uint16) (zone.Answer, bool) {
	sets := b.names[string(name)]
	if a := sets[qtype]; a != nil {
		return *a, true
	}
	apex := b.apex(string(name))
	if apex == "" {
		return zone.Answer{}, false
	}
	return zone.Answer{Apex: name[len(name)-len(apex):], NameError: sets == nil, NoData: true}, true
}

func (b *book) SOA() []byte { return b.soa }
func (b *book) TTL() uint32 { return bookTTL }

func wire(t testing.TB, name string) []byte {
	t.Helper()
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(dns.CanonicalName(name), buf, 0, nil, false)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return buf[:n]
}

func rdata(t testing.TB, text string) []byte {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return buf[len(wire(t, rr.Header().Name))+10 : n]
}

// outsiders is a Forwarder that knows names below example: those that begin
// with "cached" at once, "slow" after a while, "hang" never, "many" with 40
// addresses; others are name errors.
type outsiders struct {
	resolved atomic.Int64
	waiting  atomic.Int64
	release  chan struct{} // nil: "hang" waits for its context only
}

func (o *outsiders) Cached(q forward.Query, buf []byte) ([]byte, bool) {
	if !strings.HasPrefix(string(q.Name[1:]), "cached") {
		return buf, false
	}
	return append(buf, o.reply(q)...), true
}

func (o *outsiders) Resolve(ctx context.Context, q forward.Query, buf []byte) ([]byte, error) {
	o.resolved.Add(1)
	o.waiting.Add(1)
	defer o.waiting.Add(-1)
	if strings.HasPrefix(string(q.Name[1:]), "hang") {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-o.release:
		}
	}
	return append(buf, o.reply(q)...), nil
}

func (o *outsiders) reply(q forward.Query) []byte {
	var in, out dns.Msg
	if err := in.Unpack(q.Msg); err != nil {
		panic(err)
	}
	out.SetReply(&in)
	out.RecursionAvailable = true
	out.CheckingDisabled = in.CheckingDisabled
	name := string(q.Name[1:])
	count := 0
	switch {
	case strings.HasPrefix(name, "many"):
		count = 80
	case strings.HasPrefix(name, "cached"), strings.HasPrefix(name, "slow"), strings.HasPrefix(name, "hang"):
		count = 1
	default:
		out.Rcode = dns.RcodeNameError
	}
	for i := range count {
		out.Answer = append(out.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: in.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   net.IPv4(192, 0, 2, byte(1+i)),
		})
	}
	if q.EDNS {
		out.SetEdns0(1232, q.DO)
	}
	out.Compress = true
	out.Truncate(q.Size)
	b, err := out.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// testPort is where test servers answer, each on a loopback address of its own.
const testPort = 5300

var serial atomic.Uint32

func loopback() netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(64 + pid/250%128), byte(1 + pid%250), byte(1 + serial.Add(1)%250)})
}

// serve runs a server for a test.
func serve(t testing.TB, o Options, views ...View) *Server {
	t.Helper()
	if o.Port == 0 {
		o.Port = testPort
	}
	s := New(o)
	s.Serve(views)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// serveBook runs a server with the test's names and returns where.
func serveBook(t testing.TB, o Options) netip.AddrPort {
	t.Helper()
	addr := loopback()
	serve(t, o, View{Name: "default", Addrs: []netip.Addr{addr}, Zone: names(t)})
	at := netip.AddrPortFrom(addr, testPort)
	awaitListening(t, at)
	return at
}

func awaitListening(t testing.TB, at netip.AddrPort) {
	t.Helper()
	eventually(t, func() error {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.Close()
		}
		return err
	})
	eventually(t, func() error {
		_, err := askUDP(at, pack(t, ask("web.default.cluster.local.", dns.TypeA)))
		return err
	})
}

func eventually(t testing.TB, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func ask(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const patience = 3 * time.Second

// askUDP sends a message and returns what comes back.
func askUDP(at netip.AddrPort, msg []byte) ([]byte, error) {
	return askUDPFor(at, msg, patience)
}

func askUDPFor(at netip.AddrPort, msg []byte, wait time.Duration) ([]byte, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	return buf[:n], err
}

func askTCP(at netip.AddrPort, msg []byte) ([]byte, error) {
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(framed(msg)); err != nil {
		return nil, err
	}
	return readFramed(c)
}

func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

func readFramed(c net.Conn) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(c, buf)
	return buf, err
}

// unpack parses an answer strictly: every record, and nothing after the last.
func unpack(b []byte) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, err
	}
	if len(b) < 12 {
		return nil, fmt.Errorf("%d octets", len(b))
	}
	off := 12
	for range binary.BigEndian.Uint16(b[4:]) {
		_, next, err := dns.UnpackDomainName(b, off)
		if err != nil {
			return nil, err
		}
		off = next + 4
	}
	records := int(binary.BigEndian.Uint16(b[6:])) + int(binary.BigEndian.Uint16(b[8:])) + int(binary.BigEndian.Uint16(b[10:]))
	for range records {
		_, next, err := dns.UnpackRR(b, off)
		if err != nil {
			return nil, err
		}
		off = next
	}
	if off != len(b) {
		return nil, fmt.Errorf("%d octets after the last record", len(b)-off)
	}
	return m, nil
}
