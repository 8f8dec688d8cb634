package forward

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var good = answer("x.example. 60 IN A 192.0.2.1")

// timed puts a question and returns how long the reply took.
func timed(t *testing.T, w *world, q asked) (*dns.Msg, time.Duration) {
	t.Helper()
	began := time.Now()
	return q.put(t, w.Forwarder), time.Since(began)
}

func TestOneUpstreamOfSeveralAnswersInUnderASecond(t *testing.T) {
	for name, say := range map[string][]func(*dns.Msg) *dns.Msg{
		"the first is silent":          {silent, good},
		"the first two are silent":     {silent, silent, good},
		"one is silent, one fails":     {silent, says(dns.RcodeServerFailure, ""), good},
		"one fails, one is silent":     {says(dns.RcodeServerFailure, ""), silent, good},
		"server failure":               {says(dns.RcodeServerFailure, ""), good},
		"refused":                      {says(dns.RcodeRefused, ""), good},
		"not implemented":              {says(dns.RcodeNotImplemented, ""), good},
		"format error":                 {says(dns.RcodeFormatError, ""), good},
		"the last is silent":           {good, silent},
		"it refers to others":          {refers, good},
		"a reply to something else":    {elsewhere, good},
		"three fail":                   {says(dns.RcodeServerFailure, ""), says(dns.RcodeRefused, ""), elsewhere, good},
		"the first loses one question": {loses(1), silent},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(say...)
				r, took := timed(t, w, a("x.example."))
				if len(r.Answer) != 1 || took >= time.Second {
					t.Errorf("after %v:\n%v", took, r)
				}
				if !slices.ContainsFunc(say, func(f func(*dns.Msg) *dns.Msg) bool { return f(new(dns.Msg).SetQuestion("x.", 1)) == nil }) && took > 0 {
					t.Errorf("%v though nobody was silent", took)
				}
			})
		})
	}
}

func refers(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.Ns = rrs("example. 60 IN NS ns.example.")
	return r
}

func elsewhere(q *dns.Msg) *dns.Msg {
	r := good(q)
	r.Question[0].Name = "elsewhere."
	return r
}

// loses ignores the first n questions.
func loses(n int) func(*dns.Msg) *dns.Msg {
	var mu sync.Mutex
	return func(q *dns.Msg) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return nil
		}
		return good(q)
	}
}

func TestNoAnswerAtAllIsServerFailureInTime(t *testing.T) {
	for name, c := range map[string]struct {
		say    []func(*dns.Msg) *dns.Msg
		within time.Duration
		rcode  int
	}{
		"silence":               {[]func(*dns.Msg) *dns.Msg{silent, silent}, 4 * time.Second, dns.RcodeServerFailure},
		"failures":              {[]func(*dns.Msg) *dns.Msg{says(dns.RcodeServerFailure, ""), says(dns.RcodeServerFailure, "")}, 0, dns.RcodeServerFailure},
		"a failure and silence": {[]func(*dns.Msg) *dns.Msg{silent, says(dns.RcodeServerFailure, "")}, 1300 * time.Millisecond, dns.RcodeServerFailure},
		"refused":               {[]func(*dns.Msg) *dns.Msg{says(dns.RcodeRefused, "")}, 0, dns.RcodeRefused},
		"format errors":         {[]func(*dns.Msg) *dns.Msg{says(dns.RcodeFormatError, "")}, 0, dns.RcodeServerFailure},
		"nobody there":          {nil, 0, dns.RcodeServerFailure},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(c.say...)
				if len(c.say) == 0 {
					w.use(nil, "")
				}
				r, took := timed(t, w, asked{name: "x.example.", kind: dns.TypeA, size: 1232})
				if r.Rcode != c.rcode || took > c.within {
					t.Errorf("%s after %v", dns.RcodeToString[r.Rcode], took)
				}
				for i := range c.say {
					w.count(i)
				}
				if _, took := timed(t, w, a("x.example.")); took != 0 {
					t.Errorf("the second question waited %v for what had just failed", took)
				}
				for i := range c.say {
					if n := w.count(i); n != 0 {
						t.Errorf("upstream %d was asked %d times for what had just failed", i, n)
					}
				}
			})
		})
	}
}

func TestEqualQuestionsShareOneExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(func(q *dns.Msg) *dns.Msg {
			time.Sleep(100 * time.Millisecond)
			return good(q)
		})
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				q := asked{name: "x.example.", kind: dns.TypeA, size: []uint16{0, 512, 1232}[i%3]}
				if i%2 == 0 {
					q.name = strings.ToUpper(q.name)
				}
				if r := q.put(t, w.Forwarder); len(r.Answer) != 1 {
					t.Errorf("got %v", r)
				}
			})
		}
		wg.Wait()
		if n := w.count(0); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestAnAskerWhoLeavesDoesNotStopTheExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(func(q *dns.Msg) *dns.Msg {
			time.Sleep(100 * time.Millisecond)
			return good(q)
		})
		_, q := a("x.example.").wire(t)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errRefused)
		defer cancel()
		if buf, err := w.Resolve(ctx, q, nil); !errors.Is(err, errRefused) || buf != nil {
			t.Errorf("%x, %v", buf, err)
		}
		time.Sleep(time.Second)
		if _, ok := w.Cached(q, nil); !ok {
			t.Error("the answer was not kept")
		}
	})
}

func TestASilentUpstreamIsAskedLastUntilItAnswersAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(silent, good)
		defer w.run(t)()
		ask := func(name string) time.Duration {
			r, took := timed(t, w, a(name))
			if len(r.Answer) != 1 {
				t.Errorf("%s: %v", name, r)
			}
			return took
		}
		for i := range doubts {
			if took := ask("n" + string(rune('a'+i)) + ".example."); took > maxHedge {
				t.Errorf("%v until the second upstream", took)
			}
		}
		time.Sleep(2 * time.Second)
		w.count(0)
		if took := ask("second.example."); took != 0 || w.count(0) != 0 {
			t.Errorf("a silent upstream was asked first")
		}
		if !w.Stats().Upstreams[0].Down || w.Stats().Upstreams[1].Down {
			t.Errorf("%+v", w.Stats().Upstreams)
		}
		if s := w.Trouble(); s != "" {
			t.Errorf("trouble while one upstream answers: %s", s)
		}
		w.change(0, good)
		time.Sleep(2 * time.Second)
		w.count(1)
		if ask("third.example."); w.count(0) != 1 || w.count(1) != 0 || w.Stats().Upstreams[0].Down {
			t.Error("an upstream that answers again is not asked first")
		}
	})
}

func TestAFailingNameDoesNotDiscreditItsUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(says(dns.RcodeServerFailure, ""), good)
		for range 10 {
			a("x.example.").put(t, w.Forwarder)
			time.Sleep(2 * time.Minute)
		}
		if n := w.count(0); n != 10 {
			t.Errorf("the first upstream was asked %d of 10 times", n)
		}
	})
}

func TestOldAnswersServeWhileTheUpstreamsAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good, good)
		defer w.run(t)()
		for _, name := range []string{"x.example.", "y.example.", "z.example.", "w.example."} {
			a(name).put(t, w.Forwarder)
		}
		w.change(0, silent)
		w.change(1, silent)
		time.Sleep(time.Hour)

		served := func(name string, within time.Duration) {
			t.Helper()
			r, took := timed(t, w, a(name))
			if len(r.Answer) != 1 || r.Answer[0].Header().Ttl != staleTTL || took > within {
				t.Errorf("after %v:\n%v", took, r)
			}
		}
		served("x.example.", staleAfter)
		served("x.example.", 0) // at once: the exchange is still under way
		served("y.example.", staleAfter)
		time.Sleep(10 * time.Second)
		if s := w.Trouble(); !strings.Contains(s, "192.0.2.1:53, 192.0.2.2:53") {
			t.Errorf("trouble: %q", s)
		}
		served("z.example.", 0) // the upstreams are known to be gone
		if r, _ := timed(t, w, a("new.example.")); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %v", r)
		}
		if s := w.Stats().Cache; s.Stale < 4 {
			t.Errorf("%d stale answers counted", s.Stale)
		}

		w.change(1, good)
		time.Sleep(3 * time.Second)
		if r, _ := timed(t, w, a("w.example.")); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 60 {
			t.Errorf("got %v", r)
		}
		if s := w.Trouble(); s != "" {
			t.Errorf("trouble: %q", s)
		}

		w.change(1, silent)
		time.Sleep(26 * time.Hour)
		if r, _ := timed(t, w, a("w.example.")); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("after a day: %v", r)
		}
	})
}

func TestAnOldAnswerIsBetterThanAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(good)
		a("x.example.").put(t, w.Forwarder)
		w.change(0, says(dns.RcodeServerFailure, ""))
		time.Sleep(2 * time.Minute)
		w.count(0)
		for range 3 {
			if r, took := timed(t, w, a("x.example.")); len(r.Answer) != 1 || took != 0 {
				t.Errorf("after %v: %v", took, r)
			}
		}
		if n := w.count(0); n != 1 {
			t.Errorf("asked %d times for what had just failed", n)
		}
		w.change(0, says(dns.RcodeNameError, "5")) // that is an answer
		time.Sleep(6 * time.Second)
		if r, _ := timed(t, w, a("x.example.")); r.Rcode != dns.RcodeNameError {
			t.Errorf("got %v", r)
		}
	})
}

func TestRunEndsWithWhatItStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(silent)
		stop := w.run(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if r, took := timed(t, w, a("x.example.")); r.Rcode != dns.RcodeServerFailure || took != 100*time.Millisecond {
				t.Errorf("after %v: %v", took, r)
			}
		})
		time.Sleep(100 * time.Millisecond)
		stop()
		wg.Wait()
		if r, took := timed(t, w, a("y.example.")); r.Rcode != dns.RcodeServerFailure || took != 0 {
			t.Errorf("after %v: %v", took, r)
		}
	}) // synctest waits for every goroutine
}

func TestTooManyExchangesAreRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(silent)
		var wg sync.WaitGroup
		var mu sync.Mutex
		atOnce := 0
		for i := range flightLimit + 10 {
			wg.Go(func() {
				name := strings.Repeat("a", i%60+1) + "." + strings.Repeat("b", i/60+1) + ".example."
				r, took := timed(t, w, a(name))
				if r.Rcode != dns.RcodeServerFailure {
					t.Errorf("got %v", r)
				}
				if took == 0 {
					mu.Lock()
					atOnce++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if atOnce != 10 || w.Stats().Rejects != 10 {
			t.Errorf("%d answered at once, %d counted", atOnce, w.Stats().Rejects)
		}
	})
}

func TestADIsToldToWhoAsks(t *testing.T) {
	w := newWorld(func(q *dns.Msg) *dns.Msg {
		r := good(q)
		r.AuthenticatedData = q.AuthenticatedData
		return r
	})
	for _, c := range []struct {
		q    asked
		want bool
	}{
		{asked{name: "x.example.", kind: dns.TypeA}, false},
		{asked{name: "x.example.", kind: dns.TypeA, ad: true}, true},
		{asked{name: "x.example.", kind: dns.TypeA, size: 1232, do: true}, true},
	} {
		if r := c.q.put(t, w.Forwarder); r.AuthenticatedData != c.want {
			t.Errorf("%+v: AD %v", c.q, r.AuthenticatedData)
		}
	}
}

func TestAFastUpstreamThatFallsSilentIsNotAskedFirstForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soon := func(q *dns.Msg) *dns.Msg {
			time.Sleep(time.Millisecond)
			return good(q)
		}
		w := newWorld(soon, soon)
		defer w.run(t)()
		name := func(i int) asked { return a(strings.Repeat("n", i+1) + ".example.") }
		for i := range 20 {
			name(i).put(t, w.Forwarder)
		}
		w.change(0, silent)
		for i := range doubts {
			if _, took := timed(t, w, name(20+i)); took > 2*minHedge {
				t.Errorf("%v until the second upstream", took)
			}
		}
		w.count(0)
		if _, took := timed(t, w, name(40)); took > time.Millisecond || w.count(0) != 0 {
			t.Errorf("after %v", took)
		}
	})
}
