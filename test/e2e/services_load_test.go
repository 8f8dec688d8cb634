package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

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
