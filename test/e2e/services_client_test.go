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

// requests are new connections at a steady pace from several places.
type requests struct {
	quit chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	answered map[string]int
	failed   []failure
}

// failure is a request that got no answer.
type failure struct {
	from  int // which of the places
	began time.Time
	err   error
}

// startRequests begins to send them: each place sends one at a time, which may
// take so long as patience.
func startRequests(to netip.AddrPort, patience time.Duration, from ...place) *requests {
	r := &requests{quit: make(chan struct{}), answered: map[string]int{}}
	for i, at := range from {
		r.wg.Go(func() {
			err := at.Do(func() error {
				r.send(i, to, patience)
				return nil
			})
			if err != nil {
				r.note(failure{i, time.Now(), err}, answer{})
			}
		})
	}
	return r
}

func (r *requests) send(from int, to netip.AddrPort, patience time.Duration) {
	tick := time.NewTicker(2 * interval)
	defer tick.Stop()
	for {
		select {
		case <-r.quit:
			return
		case <-tick.C:
		}
		began := time.Now()
		s, err := open("tcp", to, patience)
		var a answer
		if err == nil {
			a, err = s.ask("who")
			s.conn.Close()
		}
		r.note(failure{from, began, err}, a)
	}
}

// note takes the answer to a request, or how it failed.
func (r *requests) note(f failure, a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.err != nil {
		r.failed = append(r.failed, f)
		return
	}
	r.answered[a.name]++
}

// stop ends them. The test fails if more than allowed failed, or one that began
// after a time; zero: no time is too late.
func (r *requests) stop(t *testing.T, allowed int, after time.Time) {
	t.Helper()
	close(r.quit)
	r.wg.Wait()
	tell := func(f failure) string {
		return fmt.Sprintf("from place %d at %s: %v", f.from, f.began.Format("15:04:05.000"), f.err)
	}
	late := 0
	for _, f := range r.failed {
		if !after.IsZero() && f.began.After(after) {
			if late++; late == 1 {
				t.Errorf("a request failed %s after none should: %s", f.began.Sub(after).Round(time.Millisecond), tell(f))
			}
		}
	}
	t.Logf("requests: answered %v, failed %d, of these %d late", r.answered, len(r.failed), late)
	if len(r.failed) == 0 {
		return
	}
	few := "the first and the last: " + tell(r.failed[0]) + "; " + tell(r.failed[len(r.failed)-1])
	if t.Log(few); len(r.failed) > allowed {
		t.Errorf("%d requests failed, want %d at the most", len(r.failed), allowed)
	}
}

// dialogue is a connection that asks one thing after the other and gets an
// answer to each.
type dialogue struct {
	server string
	quit   chan struct{}
	ended  chan error
	asked  int
}

// startDialogues opens a connection to each of these servers, all of which are
// behind one address, and talks with them.
func startDialogues(t *testing.T, from place, to netip.AddrPort, names ...string) (all []*dialogue) {
	t.Helper()
	have := map[string]bool{}
	for range 100 {
		s, err := openIn(from, "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.ask("who")
		if err != nil {
			t.Fatal(err)
		}
		if have[a.name] || !slices.Contains(names, a.name) {
			s.conn.Close()
			continue
		}
		have[a.name] = true
		d := &dialogue{server: a.name, quit: make(chan struct{}), ended: make(chan error, 1)}
		go func() { d.ended <- d.talk(s) }()
		if all = append(all, d); len(all) == len(names) {
			return all
		}
	}
	t.Fatalf("of %s only %v answer at %s", names, have, to)
	return nil
}

func (d *dialogue) talk(s *session) error {
	defer s.conn.Close()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-d.quit:
			return nil
		case <-tick.C:
		}
		d.asked++
		a, err := s.ask(strconv.Itoa(d.asked))
		if err == nil && a.name != d.server {
			err = fmt.Errorf("%s answers", a.name)
		}
		if err != nil {
			return fmt.Errorf("dialogue with %s, question %d: %w", d.server, d.asked, err)
		}
	}
}

// stop fails the test unless every question of each was answered.
func stopDialogues(t *testing.T, all []*dialogue) {
	t.Helper()
	asked := 0
	for _, d := range all {
		close(d.quit)
		if err := <-d.ended; err != nil {
			t.Error(err)
		}
		asked += d.asked
	}
	t.Logf("%d dialogues, %d questions", len(all), asked)
}

// underlayOf are a host's addresses, IPv4 first.
func underlayOf(h *lab.Host) []netip.Addr { return []netip.Addr{h.Addrs[0].Addr(), h.Addrs[1].Addr()} }
