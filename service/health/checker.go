package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Checker looks again and again. The zero value is ready.
type Checker struct {
	// look is replaced by tests; why is "" if all is well. ok is false if it is
	// unknown because this host is short of something.
	look func(ctx context.Context, c *Check) (why string, ok bool)
}

// mostLooks are under way at once. Those that hang take their Timeout each.
const mostLooks = 256

// soon is when the first look at what is not new is, at the latest.
const soon = time.Second

// Run looks at the latest of checks, whole each time, until ctx ends; it returns
// nil then. report is told the verdicts on all of them, whole, each time that
// one changed, and must not block; what was never looked at is not among them.
// While there are no checks nothing happens.
//
// A new endpoint is looked at soon and often until it answers once. Any other
// keeps its verdict until Threshold results in a row say otherwise.
func (c Checker) Run(ctx context.Context, checks <-chan []Check, report func(Verdicts)) error {
	r := &run{items: map[Subject]*item{}, results: make(chan result, mostLooks), look: c.look}
	if r.look == nil {
		r.look = newLooker().look
	}
	defer r.wg.Wait() // ctx has ended, which ends every look
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case list := <-checks:
			r.take(list, time.Now())
		case res := <-r.results:
			r.hear(res, time.Now())
			for more := true; more; {
				select {
				case res := <-r.results:
					r.hear(res, time.Now())
				default:
					more = false
				}
			}
		case <-timer.C:
		}
		if r.changed {
			r.changed = false
			report(r.verdicts())
		}
		if next, ok := r.start(ctx, time.Now()); ok {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
	}
}

// run is the state of one Run.
type run struct {
	look    func(context.Context, *Check) (string, bool)
	items   map[Subject]*item
	due     queue // of those that are not looked at just now
	running int
	results chan result // has room for all looks
	wg      sync.WaitGroup
	changed bool // the verdicts, since they were reported
}

// item is one subject.
type item struct {
	Check
	at    time.Time // of the next look
	index int       // in the queue; -1: being looked at
	looks int       // counts what there was to look at: older results mean nothing
	gone  bool

	known   bool // verdict is ours
	verdict string
	fresh   *store.Backoff // of a new endpoint until it answers; else nil
	since   time.Time
	lately  string // the last result
	row     int    // how many in a row said the same as the last: well or not
	same    int    // how many in a row gave the same reason
}

type result struct {
	*item
	looks int
	why   string
	ok    bool
}

// take makes list what is looked at.
func (r *run) take(list []Check, now time.Time) {
	old := r.items
	r.items = make(map[Subject]*item, len(list))
	for _, c := range list {
		if r.items[c.Subject] != nil {
			continue // twice
		}
		it := old[c.Subject]
		if it != nil && !slices.Equal(it.Addrs, c.Addrs) && c.Former == NotYet {
			it = nil // another life of it
		}
		if it != nil {
			delete(old, c.Subject)
		}
		switch {
		case it == nil:
			it = &item{Check: c, index: -1, verdict: c.Former, since: now}
			if c.Former == NotYet {
				it.fresh = &store.Backoff{Max: c.Interval}
				it.at = now.Add(it.fresh.Next())
			} else {
				it.at = now.Add(rand.N(min(c.Interval, soon)))
			}
			heap.Push(&r.due, it)
		case !it.sameTarget(&c):
			it.Check, it.lately, it.row, it.same = c, "", 0, 0
			it.looks++
			r.reschedule(it, now.Add(rand.N(min(c.Interval, soon))))
		default:
			it.Check = c
			if latest := now.Add(c.Interval); it.at.After(latest) {
				r.reschedule(it, latest)
			}
		}
		r.items[c.Subject] = it
	}
	for _, it := range old {
		it.gone, r.changed = true, r.changed || it.known
		if it.index >= 0 {
			heap.Remove(&r.due, it.index)
		}
	}
}

func (it *item) sameTarget(c *Check) bool {
	return slices.Equal(it.Addrs, c.Addrs) && slices.Equal(it.Ports, c.Ports) && it.Path == c.Path
}

// reschedule moves a look; one that is under way goes on.
func (r *run) reschedule(it *item, at time.Time) {
	if it.index >= 0 {
		it.at = at
		heap.Fix(&r.due, it.index)
	}
}

// start begins the looks that are due and tells when the next one is; false:
// not before something else happens.
func (r *run) start(ctx context.Context, now time.Time) (time.Duration, bool) {
	for r.running < mostLooks && len(r.due) > 0 {
		it := r.due[0]
		if wait := it.at.Sub(now); wait > 0 {
			return wait, true
		}
		heap.Pop(&r.due)
		r.running++
		check, res := it.Check, result{item: it, looks: it.looks}
		r.wg.Go(func() {
			res.why, res.ok = r.look(ctx, &check)
			r.results <- res
		})
	}
	return 0, false
}

// hear takes a result.
func (r *run) hear(res result, now time.Time) {
	r.running--
	it := res.item
	if it.gone {
		return
	}
	switch {
	case res.looks != it.looks: // at what it was before
		it.at = now
	case !res.ok:
		it.at = now.Add(it.pause())
	default:
		before, known := it.verdict, it.known
		it.judge(res.why, now)
		r.changed = r.changed || !known || it.verdict != before
		it.at = now.Add(it.pause())
	}
	heap.Push(&r.due, it)
}

// judge makes the verdict of a result and those before.
func (it *item) judge(why string, now time.Time) {
	if it.row++; (why == "") != (it.lately == "") {
		it.row = 1
	}
	if it.same++; why != it.lately {
		it.same = 1
	}
	it.lately, it.known = why, true
	switch {
	case why == "":
		if it.fresh != nil || it.row >= it.Threshold {
			it.verdict, it.fresh = "", nil
		}
	case it.verdict == "":
		if it.row >= it.Threshold {
			it.verdict = why
		}
	case it.fresh != nil && now.Sub(it.since) < it.Interval: // it is starting
	case it.same >= it.Threshold: // not each of two reasons that take turns
		it.verdict = why
	}
}

// pause is how long it is to the next look, not the same for all.
func (it *item) pause() time.Duration {
	if it.fresh != nil {
		return it.fresh.Next()
	}
	return it.Interval - it.Interval/10 + rand.N(it.Interval/5+1)
}

func (r *run) verdicts() Verdicts {
	out := make(Verdicts, len(r.items))
	for s, it := range r.items {
		if it.known {
			out[s] = it.verdict
		}
	}
	return out
}

// queue is a heap of items by their next look.
type queue []*item

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push adds an *item; use heap.Push.
func (q *queue) Push(x any) {
	it := x.(*item)
	it.index = len(*q)
	*q = append(*q, it)
}

// Pop takes the last one; use heap.Pop.
func (q *queue) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	it.index = -1
	return it
}
