package forward

import (
	"context"
	"errors"
	"time"
)

const (
	exchangeTime = 2800 * time.Millisecond // of one question with all upstreams
	goneTime     = time.Second             // the same while none answers probes
	retransmit   = 500 * time.Millisecond  // until an upstream is asked again; doubles
	rounds       = 4                       // how often each is asked
	lastChance   = time.Second             // for the others once one said that it cannot
	flightLimit  = 1000                    // exchanges under way
)

var (
	errNoUpstream = errors.New("no upstream")
	errStopped    = errors.New("stopped")
	errSilent     = errors.New("no upstream answered in time")
)

// flight is one exchange with the upstreams, for all who ask the same. result
// and stale are set before done is closed.
type flight struct {
	done   chan struct{}
	result *entry
	stale  bool // result's time had ended, nothing better was to be had
}

// board returns the exchange that answers k, a new one unless one is under
// way, and the entry, its time having ended, that may serve instead, or nil.
// Without an exchange, the entry is the answer.
func (f *Forwarder) board(k key) (*entry, *flight) {
	f.flights.mu.Lock()
	defer f.flights.mu.Unlock()
	old := f.cache.get(k)
	now := f.cache.now()
	if old != nil && now < old.expires {
		return old, nil // an exchange has ended meanwhile
	}
	if old != nil && !old.useful(now) {
		old = nil
	}
	if fl := f.flights.byKey[k]; fl != nil {
		return old, fl
	}
	if f.returned(k) {
		return failure(k, rcodeServer, now), nil
	}
	if f.flights.closed || len(f.flights.byKey) >= flightLimit {
		f.counts.refused.Add(1)
		return failure(k, rcodeServer, now), nil
	}
	fl := &flight{done: make(chan struct{})}
	f.flights.byKey[k] = fl
	f.flights.wg.Go(func() { f.fly(k, fl, old) })
	return old, fl
}

// refresh asks again for what is still good.
func (f *Forwarder) refresh(k key) {
	f.flights.mu.Lock()
	defer f.flights.mu.Unlock()
	if f.flights.byKey[k] != nil || f.flights.closed || len(f.flights.byKey) >= flightLimit/2 {
		return
	}
	fl := &flight{done: make(chan struct{})}
	f.flights.byKey[k] = fl
	f.flights.wg.Go(func() { f.fly(k, fl, f.cache.get(k)) })
}

// fly asks the upstreams for k and keeps what they say. If that is nothing,
// old serves, which may be nil.
func (f *Forwarder) fly(k key, fl *flight, old *entry) {
	e, err := f.race(k)
	now := f.cache.now()
	switch {
	case e != nil && e.succeeded():
		f.cache.put(e)
	case old != nil:
		old.staleFor(now + staleRest)
		e, fl.stale = old, now >= old.expires
	default:
		rcode := rcodeServer
		if e != nil && e.rcode() != rcodeFormat { // it was our question that was not understood
			rcode = e.rcode()
		}
		e = failure(k, rcode, now) // good from now on, not from when the first failed
		if !errors.Is(err, errStopped) {
			f.cache.put(e)
		}
	}
	fl.result = e
	f.flights.mu.Lock()
	delete(f.flights.byKey, k)
	f.flights.mu.Unlock()
	close(fl.done)
}

// attempt is one question to one upstream.
type attempt struct {
	up      *upstream
	began   time.Time
	waiting bool
}

// outcome is how an attempt ended.
type outcome struct {
	attempt int
	entry   *entry
	err     error
}

// race is one question to several upstreams, owned by the goroutine that runs
// it: the second is asked when the first said that it cannot, or said nothing
// for a short while, and so on, in several rounds. The first answer wins.
type race struct {
	order    []*upstream
	spent    []bool // by order: has said that it cannot
	attempts []attempt
	waiting  int
	outcomes chan outcome
	failed   *entry // the first reply that was no answer
}

// race returns the first answer of an upstream, or a reply that is none if no
// upstream had any, or an error if none replied.
func (f *Forwarder) race(k key) (*entry, error) {
	limit := exchangeTime
	if f.gone.Load() {
		limit = goneTime
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r := &race{order: f.order()}
	if len(r.order) == 0 {
		return nil, errNoUpstream
	}
	r.spent = make([]bool, len(r.order))
	r.outcomes = make(chan outcome, rounds*len(r.order)) // nobody waits to send
	defer func() {
		cancel()
		for ; r.waiting > 0; r.waiting-- {
			<-r.outcomes
		}
	}()
	f.start(ctx, r, k)
	next := time.NewTimer(r.pause())
	defer next.Stop()
	var last <-chan time.Time // once an upstream said that it cannot
	for {
		select {
		case <-next.C:
			if f.start(ctx, r, k) {
				next.Reset(r.pause())
			}
		case o := <-r.outcomes:
			if e := f.finish(r, o); e != nil {
				return e, nil
			}
			if o.entry != nil && last == nil {
				last = time.After(lastChance)
			}
			if len(r.attempts) < len(r.order) && f.start(ctx, r, k) {
				next.Reset(r.pause())
			} else if r.over() {
				return r.failed, errSilent
			}
		case <-last:
			return r.failed, nil
		case <-ctx.Done():
			f.giveUp(r)
			return r.failed, errSilent
		case <-f.flights.stop:
			return nil, errStopped
		}
	}
}

// start asks the next upstream that is not spent, and reports whether there
// was one.
func (f *Forwarder) start(ctx context.Context, r *race, k key) bool {
	n := len(r.attempts)
	for n < cap(r.outcomes) && r.spent[n%len(r.order)] {
		r.attempts = append(r.attempts, attempt{})
		n++
	}
	if n >= cap(r.outcomes) {
		return false
	}
	up := r.order[n%len(r.order)]
	if n >= len(r.order) {
		f.counts.retries.Add(1)
		if before := &r.attempts[n-len(r.order)]; before.waiting {
			f.failed(up)
		}
	}
	r.attempts = append(r.attempts, attempt{up: up, began: time.Now(), waiting: true})
	r.waiting++
	go func() {
		e, err := f.ask(ctx, up, k)
		r.outcomes <- outcome{n, e, err}
	}()
	return true
}

// finish takes note of an attempt's end, and returns the answer if it is one.
func (f *Forwarder) finish(r *race, o outcome) *entry {
	a := &r.attempts[o.attempt]
	a.waiting = false
	r.waiting--
	if o.err != nil {
		f.failed(a.up)
		return nil
	}
	f.answered(a.up, time.Since(a.began), o.entry.rcode())
	if o.entry.succeeded() {
		f.passOver(r, o.attempt)
		return o.entry
	}
	r.spent[o.attempt%len(r.order)] = true
	if r.failed == nil {
		r.failed = o.entry
	}
	return nil
}

// passOver counts it against an upstream that another one, asked later, was
// faster.
func (f *Forwarder) passOver(r *race, winner int) {
	for _, a := range r.attempts[:winner] {
		if a.waiting {
			f.failed(a.up)
		}
	}
}

// giveUp counts it against the upstreams that said nothing at all.
func (f *Forwarder) giveUp(r *race) {
	for i, a := range r.attempts {
		if a.waiting && i+len(r.order) >= len(r.attempts) {
			f.failed(a.up)
		}
	}
}

// pause is the time until the next attempt.
func (r *race) pause() time.Duration {
	n := len(r.attempts)
	if n%len(r.order) == 0 {
		return retransmit << (n/len(r.order) - 1)
	}
	return r.attempts[n-1].up.hedge()
}

// over reports whether to wait for more is vain: all have said that they
// cannot, or nobody is there to be asked, twice.
func (r *race) over() bool {
	if r.waiting > 0 {
		return false
	}
	for _, s := range r.spent {
		if !s {
			return len(r.attempts) >= 2*len(r.order)
		}
	}
	return true
}
