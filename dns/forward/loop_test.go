package forward

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestAnUpstreamThatAsksThisDaemonInTurnIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(silent)
		back := func(q *dns.Msg) *dns.Msg {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, query := asked{name: q.Question[0].Name, kind: q.Question[0].Qtype}.wire(t)
			reply, err := w.Resolve(ctx, query, nil)
			r := new(dns.Msg)
			if err != nil || r.Unpack(reply) != nil {
				return nil
			}
			r.Id = q.Id
			return r
		}
		w.say[0] = back
		stop := w.run(t)
		defer stop()
		u := w.ups.Load().list[0]
		look := func() {
			u.mu.Lock()
			u.looked = false
			u.mu.Unlock()
			w.signal(w.changed)
		}
		if r, took := timed(t, w, a("x.example.")); r.Rcode != dns.RcodeServerFailure || took > exchangeTime {
			t.Errorf("unnoticed, after %v: %v", took, r)
		}
		look()
		synctest.Wait()
		if r, took := timed(t, w, a("y.example.")); r.Rcode != dns.RcodeServerFailure || took != 0 {
			t.Errorf("after %v: %v", took, r)
		}
		if s := w.Trouble(); !strings.Contains(s, "in turn") {
			t.Errorf("trouble: %q", s)
		}
		w.change(0, good)
		time.Sleep(loopRest + time.Second)
		if r := a("z.example.").put(t, w.Forwarder); len(r.Answer) != 1 || w.Trouble() != "" {
			t.Errorf("trouble %q, got %v", w.Trouble(), r)
		}
	})
}

func TestASilentUpstreamIsKnownBeforeSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(silent)
		defer w.run(t)()
		u := w.ups.Load().list[0]
		u.mu.Lock()
		u.looked = false // as of a new one
		u.mu.Unlock()
		w.signal(w.changed)
		time.Sleep(loopTime + probeTime + time.Second)
		if s := w.Trouble(); !w.Stats().Upstreams[0].Down || !strings.Contains(s, "answers") {
			t.Errorf("trouble: %q", s)
		}
		if r, took := timed(t, w, a("x.example.")); r.Rcode != dns.RcodeServerFailure || took > goneTime {
			t.Errorf("after %v: %v", took, r)
		}
		w.change(0, good)
		time.Sleep(2 * time.Second)
		if r := a("y.example.").put(t, w.Forwarder); len(r.Answer) != 1 || w.Trouble() != "" {
			t.Errorf("trouble %q, got %v", w.Trouble(), r)
		}
	})
}
