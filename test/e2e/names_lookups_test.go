package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/test/dnswire"
)

// lookups asks for one name at a steady pace, as a resolver with the options
// that containers are given does: it repeats a question after 3 s.
type lookups struct {
	conn *net.UDPConn
	name string
	quit chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	open    map[uint16]*lookup
	asked   int
	retried int // needed a second question
	lost    int // needed more
	wrong   int // answers without an address
	refused int // errors of the socket: an ICMP error came
	slowest time.Duration
}

type lookup struct {
	first, last time.Time
	tries       int
}

// resolverTimeout is what dns.env tells resolvers.
const resolverTimeout = 3 * time.Second

func startLookups(t *testing.T, at place, server netip.Addr, name string, every time.Duration) *lookups {
	t.Helper()
	conn, err := dial(at, server)
	if err != nil {
		t.Fatal(err)
	}
	l := &lookups{conn: conn, name: name, quit: make(chan struct{}), open: map[uint16]*lookup{}}
	l.wg.Go(l.receive)
	l.wg.Go(func() { l.send(every) })
	return l
}

func (l *lookups) receive() {
	buf := make([]byte, 4096)
	for {
		n, err := l.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		l.mu.Lock()
		if err != nil {
			l.refused++
		} else if r, err := dnswire.ParseReply(buf[:n]); err != nil {
			l.wrong++
		} else if q := l.open[r.ID]; q != nil {
			delete(l.open, r.ID)
			l.slowest = max(l.slowest, time.Since(q.first))
			if len(r.Addrs) == 0 {
				l.wrong++
			}
			if q.tries > 1 {
				l.retried++
			}
		}
		l.mu.Unlock()
	}
}

func (l *lookups) send(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	defer l.conn.Close()
	quit := l.quit
	for {
		asking := quit != nil
		select {
		case <-quit:
			quit = nil
		case <-tick.C:
		}
		l.mu.Lock()
		now := time.Now()
		if asking {
			l.asked++
			l.open[uint16(l.asked)] = &lookup{first: now}
		}
		for id, q := range l.open {
			switch {
			case now.Sub(q.last) < resolverTimeout:
				continue
			case q.tries == 2:
				l.lost++
				delete(l.open, id)
				continue
			}
			q.tries++
			q.last = now
			if _, err := l.conn.Write(dnswire.Query(id, l.name, dnswire.A)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				l.refused++
			}
		}
		done := quit == nil && len(l.open) == 0
		l.mu.Unlock()
		if done {
			return
		}
	}
}

// stop ends the asking when all was answered or lost, and fails the test unless
// every lookup had an answer after at most one repetition.
func (l *lookups) stop(t *testing.T) {
	t.Helper()
	close(l.quit)
	l.wg.Wait()
	t.Logf("%d lookups of %s, %d repeated, slowest %s", l.asked, l.name, l.retried, l.slowest.Round(time.Millisecond))
	if l.lost > 0 || l.wrong > 0 || l.refused > 0 {
		t.Errorf("%d lookups were not answered after two questions, %d wrongly, %d errors of the socket", l.lost, l.wrong, l.refused)
	}
}
