package dns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// limiter holds every source to a rate: a token bucket each, as the time at
// which it will be full again (the generic cell rate algorithm). It remembers
// a bounded number of sources; who is forgotten for another one has been idle
// the longest among those that share a place, and begins with a full bucket.
type limiter struct {
	cost  time.Duration // of one query: the time in which one more is due
	depth time.Duration // of the bucket
	seed  maphash.Seed
	parts [limiterParts]limiterPart
}

const (
	limiterParts = 32
	limiterSets  = 64 // in a part
	limiterWays  = 4  // sources in a set
)

type limiterPart struct {
	mu   sync.Mutex    // guards sets
	sets []limiterSet  // made with the first source
	_    [64 - 32]byte // one cache line
}

type limiterSet [limiterWays]struct {
	source netip.Addr
	full   time.Duration
}

// newLimiter lets every source ask rate times a second, burst times at once.
func newLimiter(rate, burst int) *limiter {
	cost := time.Second / time.Duration(rate)
	return &limiter{cost: cost, depth: cost * time.Duration(burst), seed: maphash.MakeSeed()}
}

// wait counts a query at a time and returns 0, or, if it is one too many,
// returns how long until it would not be.
func (l *limiter) wait(source netip.Addr, now time.Duration) time.Duration {
	h := maphash.Comparable(l.seed, source)
	p := &l.parts[h%limiterParts]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sets == nil {
		p.sets = make([]limiterSet, limiterSets)
	}
	set := &p.sets[h/limiterParts%limiterSets]
	oldest := 0
	for i := range set {
		if set[i].source == source {
			full := max(set[i].full, now) + l.cost
			if full > now+l.depth {
				return full - now - l.depth
			}
			set[i].full = full
			return 0
		}
		if set[i].full < set[oldest].full {
			oldest = i
		}
	}
	set[oldest].source, set[oldest].full = source, now+l.cost
	return 0
}

// quota bounds what is under way at once, in all and per source, so that one
// source cannot take all the room.
type quota struct {
	all, each int

	mu    sync.Mutex // guards what follows
	total int
	from  map[netip.Addr]int
}

func newQuota(all, each int) *quota {
	return &quota{all: all, each: each, from: map[netip.Addr]int{}}
}

// begin reports whether there is room for one more; then end must follow. A
// source that is exempt is bounded by what there is for all.
func (q *quota) begin(source netip.Addr, exempt bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total >= q.all || q.from[source] >= q.each && !exempt {
		return false
	}
	q.total++
	q.from[source]++
	return true
}

func (q *quota) end(source netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.from[source]--; q.from[source] == 0 {
		delete(q.from, source)
	}
}
