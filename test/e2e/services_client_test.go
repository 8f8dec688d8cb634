package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// answerer is a server in a container, of this process. Over TCP it answers
// every line, and GET as HTTP does; over UDP every packet. An answer is its
// name, the address of the client as it sees it, and what it was asked.
type answerer struct {
	name string
	sick atomic.Bool // GET is answered with 503
	tcp  net.Listener
	udp  net.PacketConn
	wg   sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
}

func serveIn(t *testing.T, at place, name string, port uint16) *answerer {
	t.Helper()
	a := &answerer{name: name, conns: map[net.Conn]bool{}}
	addr := ":" + strconv.Itoa(int(port))
	err := at.Do(func() (err error) {
		if a.tcp, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		if a.udp, err = net.ListenPacket("udp", addr); err != nil {
			a.tcp.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a.wg.Go(a.accept)
	a.wg.Go(a.packets)
	t.Cleanup(a.stop)
	return a
}

// stop is what the end of the process is to clients. It may be called again.
func (a *answerer) stop() {
	a.tcp.Close()
	a.udp.Close()
	a.mu.Lock()
	for c := range a.conns {
		c.Close()
	}
	a.conns = nil // no more
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *answerer) accept() {
	for {
		conn, err := a.tcp.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		ends := a.conns == nil
		if !ends {
			a.conns[conn] = true
		}
		a.mu.Unlock()
		if ends {
			conn.Close()
			return
		}
		a.wg.Go(func() {
			a.talk(conn)
			conn.Close()
			a.mu.Lock()
			delete(a.conns, conn)
			a.mu.Unlock()
		})
	}
}

func (a *answerer) talk(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.HasPrefix(line, "GET ") {
			for err == nil && strings.TrimSpace(line) != "" { // the header
				line, err = r.ReadString('\n')
			}
			status, body := "200 OK", a.name+"\n"
			if a.sick.Load() {
				status = "503 Service Unavailable"
			}
			fmt.Fprintf(conn, "HTTP/1.0 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(body), body)
			return
		}
		if _, err := fmt.Fprint(conn, a.answer(conn.RemoteAddr(), line)); err != nil {
			return
		}
	}
}

func (a *answerer) packets() {
	b := make([]byte, 2000)
	for {
		n, from, err := a.udp.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error came for an answer
			_, _ = a.udp.WriteTo([]byte(a.answer(from, string(b[:n]))), from) // lost is lost
		}
	}
}

func (a *answerer) answer(from net.Addr, text string) string {
	at := netip.MustParseAddrPort(from.String())
	return fmt.Sprintf("%s %s %s", a.name, at.Addr().Unmap().WithZone(""), text)
}

// answer is what an answerer said.
type answer struct {
	name   string
	source netip.Addr
}

// session is a connection to an answerer.
type session struct {
	conn     net.Conn
	in       *bufio.Reader
	patience time.Duration
}

// open makes a connection from where the calling thread is.
func open(network string, to netip.AddrPort, patience time.Duration) (*session, error) {
	conn, err := net.DialTimeout(network, to.String(), patience)
	if err != nil {
		return nil, err
	}
	return &session{conn, bufio.NewReader(conn), patience}, nil
}

// openIn makes a connection from a place.
func openIn(at place, network string, to netip.AddrPort) (s *session, err error) {
	err = at.Do(func() (err error) {
		s, err = open(network, to, patience)
		return err
	})
	return s, err
}

// patience is how long clients wait for connections and answers.
const patience = 3 * time.Second

// ask says something and waits for the answer to it.
func (s *session) ask(text string) (a answer, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(s.patience)); err != nil {
		return a, err
	}
	if _, err := fmt.Fprintln(s.conn, text); err != nil {
		return a, err
	}
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			return a, err
		}
		var source, got string
		if _, err := fmt.Sscan(line, &a.name, &source, &got); err != nil {
			return a, fmt.Errorf("%q: %w", line, err)
		}
		if a.source, err = netip.ParseAddr(source); err != nil || got == text {
			return a, err
		}
	}
}

// call makes so many connections, one after the other, and asks once in each.
func call(at place, network string, to netip.AddrPort, times int) (all []answer, err error) {
	err = at.Do(func() error {
		for range times {
			s, err := open(network, to, patience)
			if err != nil {
				return err
			}
			a, err := s.ask("who")
			s.conn.Close()
			if err != nil {
				return err
			}
			all = append(all, a)
		}
		return nil
	})
	return all, err
}

// answeredBy waits until connections from a place go to these servers and to no
// others, over TCP and UDP.
func answeredBy(t *testing.T, from place, to netip.AddrPort, want ...string) {
	t.Helper()
	answeredOver(t, "tcp", from, to, want...)
	answeredOver(t, "udp", from, to, want...)
}

func answeredOver(t *testing.T, network string, from place, to netip.AddrPort, want ...string) {
	t.Helper()
	slices.Sort(want)
	within(t, 10*time.Second, fmt.Sprintf("%s at %s over %s", want, to, network), func() error {
		all, err := call(from, network, to, 25*len(want))
		if err != nil {
			return err
		}
		if got := servers(all); !slices.Equal(got, want) {
			return fmt.Errorf("%s answer, want %s", got, want)
		}
		return nil
	})
}

// servers are the names in answers, each once.
func servers(all []answer) (names []string) {
	for _, a := range all {
		names = append(names, a.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// underlayOf are a host's addresses, IPv4 first.
func underlayOf(h *lab.Host) []netip.Addr { return []netip.Addr{h.Addrs[0].Addr(), h.Addrs[1].Addr()} }
