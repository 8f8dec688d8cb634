package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// oneName is a zone in which web has one address.
func oneName(t testing.TB, addr string) *book {
	t.Helper()
	return newBook(t, []string{"cluster.local."}, "web.default.cluster.local. A "+addr)
}

// asked asks for web's address.
func asked(t testing.TB, at netip.AddrPort) (string, error) {
	t.Helper()
	return askedFor(t, at, patience)
}

func askedFor(t testing.TB, at netip.AddrPort, wait time.Duration) (string, error) {
	t.Helper()
	b, err := askUDPFor(at, pack(t, ask("web.default.cluster.local.", dns.TypeA)), wait)
	if err != nil {
		return "", err
	}
	m, err := unpack(b)
	if err != nil {
		return "", err
	}
	if len(m.Answer) != 1 {
		return "", fmt.Errorf("answer %v", m)
	}
	return m.Answer[0].(*dns.A).A.String(), nil
}

func answers(t testing.TB, at netip.AddrPort, want string) {
	t.Helper()
	eventually(t, func() error {
		got, err := askedFor(t, at, 200*time.Millisecond)
		if err == nil && got != want {
			err = fmt.Errorf("%s, want %s", got, want)
		}
		return err
	})
}

func TestServeFollowsTheWholeState(t *testing.T) {
	one, two := loopback(), loopback()
	atOne, atTwo := netip.AddrPortFrom(one, testPort), netip.AddrPortFrom(two, testPort)
	s := serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{one}, Zone: oneName(t, "10.0.0.1")})
	answers(t, atOne, "10.0.0.1")

	s.Serve([]View{{Name: "a", Addrs: []netip.Addr{one, two}, Zone: oneName(t, "10.0.0.2")}})
	answers(t, atOne, "10.0.0.2")
	answers(t, atTwo, "10.0.0.2")

	s.Serve([]View{
		{Name: "a", Addrs: []netip.Addr{one}, Zone: oneName(t, "10.0.0.3")},
		{Name: "b", Addrs: []netip.Addr{two}, Zone: oneName(t, "10.0.0.4")},
	})
	answers(t, atOne, "10.0.0.3")
	answers(t, atTwo, "10.0.0.4")

	s.Serve([]View{{Name: "b", Addrs: []netip.Addr{two}, Zone: oneName(t, "10.0.0.4")}})
	eventually(t, func() error {
		_, err := askedFor(t, atOne, 200*time.Millisecond)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("a closed socket: %w", err)
		}
		return nil
	})
	c, err := net.ListenPacket("udp", atOne.String())
	if err != nil {
		t.Errorf("the address is not free: %v", err)
	} else {
		c.Close()
	}
	answers(t, atTwo, "10.0.0.4")
	if errs := s.Errors(); errs != nil {
		t.Errorf("errors %q", errs)
	}

	s.Serve(nil)
	eventually(t, func() error {
		if _, err := askedFor(t, atTwo, 200*time.Millisecond); err == nil {
			return errors.New("no view is left, but it answers")
		}
		return nil
	})
}

func TestNewZonesLoseNoQuery(t *testing.T) {
	addr, other := loopback(), loopback()
	at := netip.AddrPortFrom(addr, testPort)
	zones := []*book{oneName(t, "10.0.0.1"), oneName(t, "10.0.0.2")}
	s := serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{addr}, Zone: zones[0]})
	answers(t, at, "10.0.0.1")
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
			addrs := []netip.Addr{addr}
			if n%2 == 0 { // another address comes and goes
				addrs = append(addrs, other)
			}
			s.Serve([]View{{Name: "a", Addrs: addrs, Zone: zones[n%2]}})
		}
	}()
	for range 1000 {
		got, err := asked(t, at)
		if err != nil || got != "10.0.0.1" && got != "10.0.0.2" {
			t.Errorf("answer %q, error %v", got, err)
			break
		}
	}
	close(stop)
	t.Logf("%d states", <-stopped)
}

func TestTakenAddressIsReportedAndTriedAgain(t *testing.T) {
	taken, free := loopback(), loopback()
	at := netip.AddrPortFrom(taken, testPort)
	c, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{taken, free}, Zone: oneName(t, "10.0.0.1")})
	answers(t, netip.AddrPortFrom(free, testPort), "10.0.0.1")
	eventually(t, func() error { // TCP of the same address is not held up
		_, err := askTCP(at, pack(t, ask("web.default.cluster.local.", dns.TypeA)))
		return err
	})
	eventually(t, func() error {
		if len(s.Errors()) == 0 {
			return errors.New("nothing is reported")
		}
		return nil
	})
	errs := strings.Join(s.Errors(), "\n")
	for _, part := range []string{at.String(), "udp", fmt.Sprintf("dns.test (process %d)", os.Getpid()), "dnsmasq", "systemd-resolved", "named", "--no-dns"} {
		if !strings.Contains(errs, part) {
			t.Errorf("errors %q, want %q in them", errs, part)
		}
	}
	c.Close()
	answers(t, at, "10.0.0.1")
	eventually(t, func() error {
		if errs := s.Errors(); errs != nil {
			return fmt.Errorf("errors %q", errs)
		}
		return nil
	})
}

func TestAddressThatIsNotThereYet(t *testing.T) {
	s := serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}})
	eventually(t, func() error {
		for _, at := range []string{"192.0.2.53:5300", "[2001:db8::53]:5300"} {
			lc := net.ListenConfig{Control: prepare}
			if c, err := lc.ListenPacket(t.Context(), "udp", at); err == nil {
				c.Close()
				return fmt.Errorf("%s is not listened at", at)
			}
		}
		return nil
	})
	if errs := s.Errors(); errs != nil {
		t.Errorf("errors %q", errs)
	}
}

func TestEndDoesNotWaitForUpstreamsOrConnections(t *testing.T) {
	addr := loopback()
	at := netip.AddrPortFrom(addr, testPort)
	o := &outsiders{}
	s := New(Options{Port: testPort, Forward: o})
	s.Serve([]View{{Name: "a", Addrs: []netip.Addr{addr}, Zone: names(t)}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	awaitListening(t, at)
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hang := pack(t, ask("hang.example.", dns.TypeA))
	if _, err := c.Write(framed(hang)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = askUDPFor(at, hang, time.Second) }()
	eventually(t, func() error {
		if o.waiting.Load() != 2 {
			return errors.New("not asked yet")
		}
		return nil
	})
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not end")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.ErrNoProgress) {
		t.Errorf("the connection is open: %v", err)
	}
}

func TestTooManyOutsideQuestions(t *testing.T) {
	o := &outsiders{release: make(chan struct{})}
	addr := loopback()
	at := netip.AddrPortFrom(addr, testPort)
	s := serve(t, Options{Forward: o, Outside: 3}, View{Name: "a", Addrs: []netip.Addr{addr}, Zone: names(t)})
	awaitListening(t, at)
	held := make(chan error)
	for i := range 3 {
		go func() {
			_, err := askUDPFor(at, pack(t, ask(fmt.Sprintf("hang%d.example.", i), dns.TypeA)), 20*time.Second)
			held <- err
		}()
	}
	eventually(t, func() error {
		if o.waiting.Load() != 3 {
			return errors.New("not asked yet")
		}
		return nil
	})
	if b, err := askUDPFor(at, pack(t, ask("slow.example.", dns.TypeA)), 200*time.Millisecond); err == nil {
		t.Errorf("answer %x over UDP, want silence", b)
	}
	b, err := askTCP(at, pack(t, ask("slow.example.", dns.TypeA)))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := unpack(b); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v, error %v; want SERVFAIL over TCP", m, err)
	}
	exchange(t, "udp", at, pack(t, ask("cached.example.", dns.TypeA)), "NOERROR\n= cached.example. A 192.0.2.1")
	exchange(t, "udp", at, pack(t, ask("web.default.cluster.local.", dns.TypeA)), "NOERROR aa"+web)
	close(o.release)
	for range 3 {
		if err := <-held; err != nil {
			t.Error(err)
		}
	}
	exchange(t, "udp", at, pack(t, ask("slow.example.", dns.TypeA)), "NOERROR\n= slow.example. A 192.0.2.1")
	if got := dropped(s, "busy"); got != 2 {
		t.Errorf("%d dropped, want 2", got)
	}
}

func dropped(s *Server, reason string) (n uint64) {
	for _, d := range s.Stats().Dropped {
		if d.Reason == reason {
			n += d.Count
		}
	}
	return n
}

// faulty is a Zone with a fault.
type faulty struct{ Zone }

func TestAFaultCostsOneQuery(t *testing.T) {
	addr := loopback()
	at := netip.AddrPortFrom(addr, testPort)
	s := serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{addr}, Zone: faulty{}})
	msg := pack(t, ask("web.default.cluster.local.", dns.TypeA))
	eventually(t, func() error {
		if _, err := askUDPFor(at, msg, 50*time.Millisecond); err == nil {
			t.Error("an answer of a fault")
		}
		if _, err := askTCP(at, msg); err == nil {
			t.Error("an answer of a fault")
		}
		if n := s.Stats().Panics; n < 2 {
			return fmt.Errorf("%d faults counted", n)
		}
		return nil
	})
	s.Serve([]View{{Name: "a", Addrs: []netip.Addr{addr}, Zone: oneName(t, "10.0.0.1")}})
	answers(t, at, "10.0.0.1")
}

func TestViewsOfOneAddressAreToldApartByTheSource(t *testing.T) {
	addr, one, two := loopback(), loopback(), loopback()
	at := netip.AddrPortFrom(addr, testPort)
	view := func(source netip.Addr, answer string) View {
		return View{Name: answer, Addrs: []netip.Addr{addr}, Sources: []netip.Prefix{netip.PrefixFrom(source, 32)}, Zone: oneName(t, answer)}
	}
	s := serve(t, Options{}, view(one, "10.0.0.1"), view(two, "10.0.0.2"))
	answers(t, at, "10.0.0.1") // the host itself: the first
	for source, want := range map[netip.Addr]string{one: "10.0.0.1", two: "10.0.0.2"} {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(pack(t, ask("web.default.cluster.local.", dns.TypeA))); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		m, err := unpack(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Answer[0].(*dns.A).A.String(); got != want {
			t.Errorf("%s is answered %s, want %s", source, got, want)
		}
	}
	eventually(t, func() error { // an answer is counted after it was sent
		var views []string
		for _, r := range s.Stats().Requests {
			views = append(views, r.View)
		}
		if len(views) != 2 {
			return fmt.Errorf("views counted: %q", views)
		}
		return nil
	})
}

// TestHitsOverUDPAllocateNothing counts what the whole process allocates, from
// the client's write to its read.
func TestHitsOverUDPAllocateNothing(t *testing.T) {
	at := serveBook(t, Options{})
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	for name, msg := range hot(t) {
		if name == "cached" {
			continue
		}
		n := testing.AllocsPerRun(500, func() {
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestWhoHoldsAPort(t *testing.T) {
	for name, c := range map[string]struct {
		line, proto, at string
		want            bool
	}{
		"IPv4":              {" 0: 0113010A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "udp", "10.1.19.1:53", true},
		"another address":   {" 0: 0213010A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "udp", "10.1.19.1:53", false},
		"another port":      {" 0: 0113010A:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "udp", "10.1.19.1:53", false},
		"every address":     {" 0: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "udp", "10.1.19.1:53", true},
		"every IPv6":        {" 0: 00000000000000000000000000000000:0035 0:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "tcp", "10.1.19.1:53", true},
		"IPv6":              {" 0: 0100000000DF0000000000001C000000:0035 0:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "tcp", "[1:0:df00::1c]:53", false},
		"IPv6, its words":   {" 0: 00DF00FD000000000000000001000000:0035 0:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "tcp", "[fd00:df00::1]:53", true},
		"a connection":      {" 0: 0113010A:0035 0213010A:1234 01 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "tcp", "10.1.19.1:53", false},
		"the table's title": {"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", "udp", "10.1.19.1:53", false},
		"no hexadecimal":    {" 0: 0113:010A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4711 2 0 0", "udp", "10.1.19.1:53", false},
		"nothing":           {"", "udp", "10.1.19.1:53", false},
	} {
		inode, ok := holds(c.line, c.proto, netip.MustParseAddrPort(c.at))
		if ok != c.want || ok && inode != "4711" {
			t.Errorf("%s: %v, inode %q", name, ok, inode)
		}
	}
}
