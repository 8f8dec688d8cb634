package probe

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// many makes a state with n peers.
func many(n int) *State {
	s := &State{Own: []netip.Addr{netip.MustParseAddr("10.0.0.0")}}
	for i := range n {
		s.Peers = append(s.Peers, &Peer{
			Key:    fmt.Sprintf("%06d", i),
			Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0})},
			Public: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
		})
	}
	return s
}

// looks runs a table for a while of a clock of its own and counts the looks
// at each peer. found says what is seen.
func looks(t *table, now time.Time, d time.Duration, found func(e *entry) observation) (map[string]int, time.Time) {
	out := map[string]int{}
	for end := now.Add(d); now.Before(end); now = now.Add(100 * time.Millisecond) {
		for e := t.next(now, false); e != nil; e = t.next(now, true) {
			out[e.peer.Key]++
			for i := range e.sides {
				if e.sides[i].used {
					e.sides[i].path = e.sides[i].after(found(e), size, false)
				}
			}
			t.done(e, now)
		}
	}
	return out, now
}

func wellAlways(*entry) observation { return well() }

func TestPeersAreProbedAtOnceAndEveryMinute(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(3), now, true)
	seen, now := looks(&tab, now, 2*soon, wellAlways)
	if len(seen) != 3 {
		t.Errorf("%d of 3 within %v", len(seen), 2*soon)
	}
	seen, _ = looks(&tab, now, 10*time.Minute, wellAlways)
	for key, n := range seen {
		if n < 9 || n > 11 {
			t.Errorf("%s: %d looks in 10 minutes", key, n)
		}
	}
}

func TestManyPeersAreSampledAndEachGetsItsTurn(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(1000), now, true)
	_, now = looks(&tab, now, 2*soon, wellAlways)
	seen, _ := looks(&tab, now, 11*time.Minute, wellAlways)
	total := 0
	for _, n := range seen {
		total += n
	}
	if total > 11*sample*12/10 {
		t.Errorf("%d looks in 11 minutes, at most %d a minute are meant", total, sample)
	}
	if len(seen) != 1000 {
		t.Errorf("%d of 1000 peers had their turn", len(seen))
	}
}

func TestDoubtIsSettledSoon(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(2), now, true)
	_, now = looks(&tab, now, 2*soon, wellAlways)
	seen, _ := looks(&tab, now, 2*time.Minute, func(e *entry) observation {
		if e.peer.Key == "000001" {
			return silent()
		}
		return well()
	})
	if got := tab.entries[1].sides[0].verdict; got != Unreachable {
		t.Errorf("verdict %q", got)
	}
	if seen["000001"] < 5 || seen["000000"] > 3 {
		t.Errorf("looks: %v", seen)
	}
}

func TestWhoIsGoneIsNotProbed(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(3), now, true)
	busy := tab.next(now.Add(soon), false)
	s := many(3)
	s.Peers = s.Peers[1:2]
	tab.update(s, now, false)
	if busy.gone {
		tab.done(busy, now)
	}
	seen, _ := looks(&tab, now, 5*time.Minute, wellAlways)
	if len(seen) > 1 || len(tab.queue) > 1 {
		t.Errorf("probed %v, queue %d", seen, len(tab.queue))
	}
}

// A peer that says something else keeps what is known of it, one that lives
// elsewhere does not.
func TestWhatIsKnownOfAPeer(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(2), now, true)
	_, now = looks(&tab, now, 2*soon, wellAlways)
	s := many(2)
	s.Peers[0].Service = Port
	s.Peers[1].Public = []netip.Addr{netip.MustParseAddr("192.168.9.9")}
	tab.update(s, now, false)
	if a, b := tab.entries[0].sides[0].verdict, tab.entries[1].sides[0].verdict; a != OK || b != "" {
		t.Errorf("verdicts %q and %q", a, b)
	}
}

func TestFamiliesThatBothHave(t *testing.T) {
	var tab table
	s := many(1)
	s.Own = append(s.Own, netip.MustParseAddr("fd00::"))
	tab.update(s, time.Unix(0, 0), true)
	if tab.paths != 1 || !tab.entries[0].sides[0].used || tab.entries[0].sides[1].used {
		t.Errorf("%+v", tab.entries[0])
	}
	s.Own = s.Own[1:]
	tab.update(s, time.Unix(0, 0), true)
	if tab.paths != 0 {
		t.Errorf("%d paths without a common family", tab.paths)
	}
}

func TestNoMoreThanAFewPacketsASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b := newBucket(time.Now())
		n := 0
		for b.take(ctx) == nil {
			n++
		}
		if most := burst + 60*perSecond; n > most || n < most-perSecond {
			t.Errorf("%d packets in a minute, want %d", n, most)
		}
		if b.try(1) {
			t.Error("a bucket that others wait for has something left")
		}
	})
}

// The exchange costs more than all else of a look: it is not part of those that
// come every quarter of a minute.
func TestExchangesAreOnceAMinuteHoweverOftenIsLooked(t *testing.T) {
	now := time.Unix(0, 0)
	var tab table
	tab.update(many(3), now, true)
	exchanges := 0
	look := func(e *entry) observation {
		o := well()
		o.at, o.plain, o.tcp = e.due, PlainPasses, TCPUntried
		if s := &e.sides[0]; s.owed() || tab.exchangeDue(s, e.due) {
			exchanges++
			o.tcp = TCPWorks
		}
		return o
	}
	seen, now := looks(&tab, now, 20*time.Minute, look)
	total := 0
	for _, n := range seen {
		total += n
	}
	if exchanges < 3*17 || exchanges > 3*28 || total < 3*70 {
		t.Errorf("%d exchanges in %d looks of 20 minutes at 3 peers", exchanges, total)
	}
	exchanges = 0
	tab.update(many(3), now, true)
	if looks(&tab, now, 2*soon, look); exchanges < 3 {
		t.Errorf("%d exchanges when all is to be looked at anew, want 3", exchanges)
	}
}
