package probe

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"
)

// How often a path is looked at.
const (
	every = time.Minute
	// Without the tunnel more can go wrong that nobody tells this host: one
	// that passes plain packets is looked at more often, as the sample allows.
	everyPlain = 15 * time.Second
	// sample of paths is looked at each minute at the most, the others wait
	// for their turn.
	sample = 100
	// doubtful ones are looked at sooner, and bad ones: it is good news that
	// is waited for.
	doubtful = 3 * time.Second
	bad      = 10 * time.Second
	// soon is within what time a new peer is looked at.
	soon = time.Second
)

// period is how often each of n paths is looked at, least of all.
func period(n int, least time.Duration) time.Duration {
	return max(least, time.Duration(n)*every/sample)
}

// entry is a peer and what is known of it.
type entry struct {
	peer  *Peer
	sides [2]side
	due   time.Time
	// early is how long before it may be looked at too: to wake up costs
	// several times as much as a look.
	early time.Duration
	at    int // in the queue; -1: being looked at
	gone  bool
}

// side is an entry's path in one family: 0 is IPv4, 1 is IPv6.
type side struct {
	path
	used bool
}

// queue is the entries by when they are due; for container/heap.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push is heap.Interface's.
func (q *queue) Push(x any) {
	e := x.(*entry)
	e.at = len(*q)
	*q = append(*q, e)
}

// Pop is heap.Interface's.
func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.at = -1
	return e
}

// table is the entries, and when which is due. It is plain state: pure but
// for the jitter.
type table struct {
	entries []*entry // by key
	queue   queue
	paths   int // how many there are to look at
}

// update makes the entries those of s. fresh: what was known is not to be
// trusted, all are due.
func (t *table) update(s *State, now time.Time, fresh bool) {
	old := t.entries
	t.entries, t.paths = make([]*entry, 0, len(s.Peers)), 0
	for _, p := range s.Peers {
		for len(old) > 0 && old[0].peer.Key < p.Key {
			t.drop(old[0])
			old = old[1:]
		}
		var e *entry
		if len(old) > 0 && old[0].peer.Key == p.Key {
			e, old = old[0], old[1:]
		} else {
			e = &entry{at: -1}
			heap.Push(&t.queue, e)
		}
		t.entries = append(t.entries, e)
		if changed := e.peer != p; changed || fresh {
			if old := e.peer; old != nil && !(slices.Equal(old.Addrs, p.Addrs) && slices.Equal(old.Public, p.Public)) {
				e.sides = [2]side{} // another host, or elsewhere
			}
			e.peer = p
			e.use(s)
			for i := range e.sides {
				e.sides[i].tcpAt = time.Time{}
			}
			t.set(e, now.Add(rand.N(soon)))
		}
		t.paths += e.paths()
	}
	for _, e := range old {
		t.drop(e)
	}
}

// use notes in which families the peer is probed.
func (e *entry) use(s *State) {
	for i := range e.sides {
		addr := ofFamily(e.peer.Addrs, i)
		used := addr.IsValid() && ofFamily(s.Own, i).IsValid()
		if used != e.sides[i].used {
			e.sides[i] = side{used: used}
		}
	}
}

// set changes when an entry is due, unless it is being looked at.
func (t *table) set(e *entry, due time.Time) {
	e.due = due
	if e.at >= 0 {
		heap.Fix(&t.queue, e.at)
	}
}

func (t *table) drop(e *entry) {
	e.gone = true
	if e.at >= 0 {
		heap.Remove(&t.queue, e.at)
	}
}

// next takes the entry that is due first, nil if none is. awake: so is one
// that may be looked at early.
func (t *table) next(now time.Time, awake bool) *entry {
	if len(t.queue) == 0 {
		return nil
	}
	e := t.queue[0]
	if awake {
		now = now.Add(e.early)
	}
	if e.due.After(now) {
		return nil
	}
	return heap.Pop(&t.queue).(*entry)
}

// done puts an entry back that next took.
func (t *table) done(e *entry, now time.Time) {
	if e.gone {
		return
	}
	wait := period(t.paths, every)
	for i := range e.sides {
		switch s := &e.sides[i]; {
		case !s.used:
		case s.suspect != "" || s.moved:
			wait = min(wait, doubtful)
		case s.verdict.Bad():
			wait = min(wait, bad)
		case s.plain == PlainPasses:
			wait = min(wait, period(t.paths, everyPlain))
		}
	}
	e.due, e.early = now.Add(wait-wait/10+rand.N(wait/5+1)), wait/12
	heap.Push(&t.queue, e)
}

// owed: an exchange is part of the next look, whatever it costs.
func (s *side) owed() bool { return s.tcp == TCPFails || s.moved }

// exchangeDue says whether a look is to try TCP if the budget allows: an
// exchange costs both sides as much as many pings. Looks that come sooner than
// each minute do without.
func (t *table) exchangeDue(s *side, now time.Time) bool {
	return now.Sub(s.tcpAt) > period(t.paths, every)*3/4
}

// paths counts those of one peer.
func (e *entry) paths() int {
	n := 0
	for _, s := range e.sides {
		if s.used {
			n++
		}
	}
	return n
}
