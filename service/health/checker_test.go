package health

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is endpoints that answer as told, and a Checker that looks at them.
type world struct {
	t      *testing.T
	checks chan []Check

	mu      sync.Mutex // guards what follows
	answers map[Subject]string
	hangs   map[Subject]bool // for the whole Timeout
	looks   map[Subject][]time.Time
	now     int // looks under way
	most    int
	reports []Verdicts
}

// short is an answer that says nothing of the endpoint.
const shortage = "this host is short of something"

func newWorld(t *testing.T) *world {
	w := &world{t: t, checks: make(chan []Check), answers: map[Subject]string{}, hangs: map[Subject]bool{}, looks: map[Subject][]time.Time{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	c := Checker{look: w.look}
	go func() {
		done <- c.Run(ctx, w.checks, func(v Verdicts) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, v)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if w.now != 0 {
			t.Errorf("%d looks are under way after the end", w.now)
		}
	})
	return w
}

func (w *world) look(ctx context.Context, c *Check) (string, bool) {
	w.mu.Lock()
	w.looks[c.Subject] = append(w.looks[c.Subject], time.Now())
	w.now++
	w.most = max(w.most, w.now)
	hangs := w.hangs[c.Subject]
	w.mu.Unlock()
	if hangs {
		select {
		case <-ctx.Done():
		case <-time.After(c.Timeout):
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now--
	why := w.answers[c.Subject]
	return why, why != shortage
}

func (w *world) answer(why string, subjects ...Subject) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range subjects {
		w.answers[s] = why
	}
}

// after waits and returns what was reported last and how often meanwhile.
func (w *world) after(d time.Duration) (last Verdicts, reports int) {
	w.t.Helper()
	w.mu.Lock()
	had := len(w.reports)
	w.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := max(had, 1); i < len(w.reports); i++ {
		if maps.Equal(w.reports[i], w.reports[i-1]) {
			w.t.Errorf("reported twice: %v", w.reports[i])
		}
	}
	if len(w.reports) == 0 {
		return nil, 0
	}
	return w.reports[len(w.reports)-1], len(w.reports) - had
}

func (w *world) expect(when string, d time.Duration, s Subject, why string) {
	w.t.Helper()
	if v, _ := w.after(d); v[s] != why {
		w.t.Errorf("%s: %q, want %q", when, v[s], why)
	}
}

func check(s Subject, former string) Check {
	return Check{Subject: s, Addrs: []netip.Addr{netip.MustParseAddr("10.1.1.2")}, Ports: []uint16{80},
		Interval: 5 * time.Second, Timeout: 2 * time.Second, Threshold: 2, Former: former}
}

const refused, silent = "connection refused", "no answer within 2s"

func TestANewEndpointWorksAsSoonAsItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		w.answer(refused, a)
		w.checks <- []Check{check(a, NotYet)}
		w.expect("it is starting", 2*time.Second, a, NotYet)
		if n := len(w.looks[a]); n < 4 || n > 7 {
			t.Errorf("%d looks in two seconds", n)
		}
		w.answer("", a)
		w.expect("it answered", 6*time.Second, a, "")
		before := len(w.looks[a])
		w.expect("it goes on", time.Minute, a, "")
		if n := len(w.looks[a]) - before; n < 10 || n > 14 {
			t.Errorf("%d looks in a minute", n)
		}
	})
}

func TestANewEndpointThatNeverAnswersSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		w.answer(refused, a)
		w.checks <- []Check{check(a, NotYet)}
		w.expect("a while", 4500*time.Millisecond, a, NotYet)
		w.expect("longer than it is waited for", 15*time.Second, a, refused)
		w.answer("", a)
		w.expect("one answer is enough", 6*time.Second, a, "")
	})
}

func TestAVerdictChangesAfterThresholdResultsInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		c := check(a, "")
		c.Threshold = 3
		w.checks <- []Check{c}
		w.expect("at first", 2*time.Second, a, "")
		for range 5 { // two failures, then one that is none
			w.answer(refused, a)
			for n := len(w.looks[a]) + 2; len(w.looks[a]) < n; {
				w.expect("failed once or twice", 100*time.Millisecond, a, "")
			}
			w.answer("", a)
			for n := len(w.looks[a]) + 1; len(w.looks[a]) < n; {
				w.expect("failed twice", 100*time.Millisecond, a, "")
			}
		}
		w.answer(refused, a)
		w.expect("failed three times", 17*time.Second, a, refused)
		w.answer("", a)
		w.expect("answered twice at most", 8*time.Second, a, refused)
		w.expect("answered three times", 9*time.Second, a, "")
		if v, n := w.after(time.Minute); n != 0 {
			t.Errorf("%d reports without a change: %v", n, v)
		}
	})
}

func TestReasonsThatTakeTurnsAreFailuresAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		w.checks <- []Check{check(a, "")}
		w.after(2 * time.Second)
		turn := func() {
			for i := range 10 {
				w.answer([]string{refused, silent}[i%2], a)
				for n := len(w.looks[a]) + 1; len(w.looks[a]) < n; {
					w.after(100 * time.Millisecond)
				}
			}
		}
		turn()
		v, _ := w.after(0)
		if v[a] == "" {
			t.Error("ten failures change nothing")
		}
		had := len(w.reports)
		if turn(); len(w.reports) != had {
			t.Errorf("%d reports of the same trouble", len(w.reports)-had)
		}
		w.answer("HTTP 503 from /", a)
		w.expect("another reason, for good", 12*time.Second, a, "HTTP 503 from /")
	})
}

func TestARestartChangesNoVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		well, ill := Subject{"a", "web"}, Subject{"b", "web"}
		w.answer(refused, well)
		w.checks <- []Check{check(well, ""), check(ill, refused)}
		// Both changed while nobody looked, but one result is not enough.
		v, _ := w.after(1500 * time.Millisecond)
		if want := (Verdicts{well: "", ill: refused}); !maps.Equal(v, want) {
			t.Errorf("%v, want %v", v, want)
		}
		v, _ = w.after(6 * time.Second)
		if want := (Verdicts{well: refused, ill: ""}); !maps.Equal(v, want) {
			t.Errorf("%v, want %v", v, want)
		}
	})
}

func TestWhatThisHostLacksIsNotTheEndpointsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		w.answer(shortage, a)
		w.checks <- []Check{check(a, "")}
		if v, n := w.after(time.Minute); n != 0 {
			t.Errorf("%v", v)
		}
		if len(w.looks[a]) < 10 {
			t.Errorf("%d looks", len(w.looks[a]))
		}
	})
}

func TestOnlyTheLatestChecksCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := Subject{"a", "web"}, Subject{"a", "db"}
		w.hangs[a] = true
		w.answer(refused, a)
		w.checks <- []Check{check(a, NotYet), check(b, NotYet), check(b, NotYet)}
		w.expect("both", 10*time.Second, b, "")
		// Gone while it is looked at.
		w.checks <- []Check{check(b, NotYet)}
		v, _ := w.after(10 * time.Second)
		if want := (Verdicts{b: ""}); !maps.Equal(v, want) {
			t.Errorf("%v, want %v", v, want)
		}
		// Another port is looked at soon, and older results mean nothing.
		w.answer(refused, b)
		c := check(b, "")
		c.Interval = time.Hour
		for port := range uint16(4) {
			c.Ports = []uint16{port}
			before := len(w.looks[b])
			w.checks <- []Check{c}
			if w.after(soon); len(w.looks[b]) <= before {
				t.Error("the new port was not looked at")
			}
		}
		w.expect("one failure each", time.Minute, b, "")
		c.Interval = time.Second
		w.checks <- []Check{c}
		w.expect("a shorter interval", 4*time.Second, b, refused)
		before := len(w.reports)
		w.checks <- nil
		if v, _ := w.after(time.Second); len(w.reports) != before+1 || len(v) != 0 {
			t.Errorf("%d reports, %v", len(w.reports)-before, v)
		}
		had := len(w.looks[a]) + len(w.looks[b])
		if w.after(time.Hour); len(w.looks[a])+len(w.looks[b]) != had {
			t.Error("what is gone is looked at")
		}
	})
}

func TestAnotherLifeOfAnEndpointIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t), Subject{"a", "web"}
		w.checks <- []Check{check(a, NotYet)}
		w.expect("it answers", time.Second, a, "")
		w.answer(refused, a)
		c := check(a, NotYet)
		c.Addrs = []netip.Addr{netip.MustParseAddr("10.1.1.3")}
		w.checks <- []Check{c}
		w.expect("with another address", 2*time.Second, a, NotYet)
		// Its record has the new address by now, and the checks come again.
		c.Former = ""
		w.checks <- []Check{c}
		w.expect("still starting", time.Second, a, NotYet)
		w.answer("", a)
		w.expect("answered", 6*time.Second, a, "")
	})
}

func TestManyAreSpreadInTimeAndFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var list []Check
		for i := range 1000 {
			list = append(list, check(Subject{fmt.Sprint(i), "web"}, ""))
		}
		w.checks <- list
		w.after(soon)
		for _, c := range list {
			if len(w.looks[c.Subject]) != 1 {
				t.Fatalf("%d looks at %s within %v", len(w.looks[c.Subject]), c.Endpoint, soon)
			}
		}
		w.after(time.Minute)
		perSlice := map[int]int{}
		for _, times := range w.looks {
			for _, at := range times[len(times)-5:] {
				perSlice[int(at.UnixMilli()/10)]++
			}
		}
		if most := slices.Max(slices.Collect(maps.Values(perSlice))); most > 20 {
			t.Errorf("%d looks within 10 ms", most)
		}
		// All hang: those that wait for their turn have it.
		for _, c := range list {
			w.hangs[c.Subject] = true
			w.answer(silent, c.Subject)
		}
		v, _ := w.after(time.Minute)
		for _, c := range list {
			if v[c.Subject] != silent {
				t.Fatalf("%s: %q", c.Endpoint, v[c.Subject])
			}
		}
		if w.most != mostLooks {
			t.Errorf("%d looks at once, want %d", w.most, mostLooks)
		}
	})
}
