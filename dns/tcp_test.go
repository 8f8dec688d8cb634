package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func dialTCP(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func readMsg(t *testing.T, c net.Conn) *dns.Msg {
	t.Helper()
	b, err := readFramed(c)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unpack(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestQueriesInARowOnOneConnection(t *testing.T) {
	c := dialTCP(t, serveBook(t, Options{}))
	var all []byte
	for i := range 300 {
		m := ask("web.default.cluster.local.", dns.TypeA)
		m.Id = uint16(i)
		all = append(all, framed(pack(t, m))...)
	}
	for len(all) > 0 { // in pieces that do not end where messages do
		n := min(37, len(all))
		if _, err := c.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	for i := range 300 {
		if m := readMsg(t, c); int(m.Id) != i || len(m.Answer) != 3 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
}

func TestAnswersOvertakeOnOneConnection(t *testing.T) {
	o := &outsiders{release: make(chan struct{})}
	c := dialTCP(t, serveBook(t, Options{Forward: o}))
	late, soon := ask("hang.example.", dns.TypeA), ask("web.default.cluster.local.", dns.TypeA)
	if _, err := c.Write(append(framed(pack(t, late)), framed(pack(t, soon))...)); err != nil {
		t.Fatal(err)
	}
	if m := readMsg(t, c); m.Id != soon.Id {
		t.Errorf("first answer %v", m)
	}
	close(o.release)
	if m := readMsg(t, c); m.Id != late.Id {
		t.Errorf("second answer %v", m)
	}
}

// TestHalfClosedConnection: the other side may say that it asks no more.
func TestHalfClosedConnection(t *testing.T) {
	o := &outsiders{release: make(chan struct{})}
	c := dialTCP(t, serveBook(t, Options{Forward: o}))
	m := ask("hang.example.", dns.TypeA)
	if _, err := c.Write(framed(pack(t, m))); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if o.waiting.Load() == 0 {
			return errors.New("not asked yet")
		}
		return nil
	})
	close(o.release)
	if got := readMsg(t, c); got.Id != m.Id {
		t.Errorf("answer %v", got)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the last answer: %v", err)
	}
}

func TestConnectionsThatAreClosed(t *testing.T) {
	at := serveBook(t, Options{idle: 300 * time.Millisecond})
	answer := pack(t, ask("web.default.cluster.local.", dns.TypeA))
	answer[2] |= 0x80
	for name, sent := range map[string][]byte{
		"silent":                    nil,
		"half a length":             {0},
		"half a message":            framed(answer)[:9],
		"a message of no length":    {0, 0},
		"less than a header":        {0, 3, 1, 2, 3},
		"an answer":                 framed(answer),
		"an unreasonable length":    {0xff, 0xff},
		"the length of a browser's": []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(make([]byte, 1))
			if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read %d octets, %v; want it closed", n, err)
			}
		})
	}
}

func TestMalformedQueryKeepsTheConnection(t *testing.T) {
	c := dialTCP(t, serveBook(t, Options{}))
	if _, err := c.Write(append(framed(message(rd, [4]uint16{1})), framed(message(rd, [4]uint16{1}, dbQuestion))...)); err != nil {
		t.Fatal(err)
	}
	if m := readMsg(t, c); m.Rcode != dns.RcodeFormatError {
		t.Errorf("answer %v", m)
	}
	if m := readMsg(t, c); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("answer %v", m)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	addr := loopback()
	at := netip.AddrPortFrom(addr, testPort)
	s := serve(t, Options{Conns: 3}, View{Name: "a", Addrs: []netip.Addr{addr}, Zone: names(t)})
	awaitListening(t, at)
	eventually(t, func() error { // those that waited for the socket are gone
		if n := s.conns.count(); n > 0 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	msg := framed(pack(t, ask("web.default.cluster.local.", dns.TypeA)))
	var open []net.Conn
	for range 3 {
		c := dialTCP(t, at)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		readMsg(t, c)
		open = append(open, c)
	}
	if b, err := askTCP(at, msg[2:]); err == nil {
		t.Errorf("a connection too many is answered %x", b)
	}
	open[0].Close()
	eventually(t, func() error {
		_, err := askTCP(at, msg[2:])
		return err
	})
	if got := dropped(s, "busy"); got == 0 {
		t.Error("nothing counted as dropped")
	}
}

func TestTheLargestAnswerOverTCP(t *testing.T) {
	records := []string{}
	const fit = (65535 - 12 - 23 - 11) / 16
	for i := range fit {
		records = append(records, fmt.Sprintf("all.cluster.local. A 10.%d.%d.%d", i/62500, i/250%250, i%250))
	}
	z := newBook(t, []string{"cluster.local."}, records...)
	addr := loopback()
	serve(t, Options{}, View{Name: "a", Addrs: []netip.Addr{addr}, Zone: z})
	m := ask("all.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, false)
	var b []byte
	eventually(t, func() (err error) {
		b, err = askTCP(netip.AddrPortFrom(addr, testPort), pack(t, m))
		return err
	})
	got, err := unpack(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Answer) != fit || got.Truncated {
		t.Errorf("%d of %d addresses in %d octets, cut: %v", len(got.Answer), fit, len(b), got.Truncated)
	}
	if n := binary.BigEndian.Uint16(b[6:]); n != fit {
		t.Errorf("count %d", n)
	}
}

func (q *quota) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}
