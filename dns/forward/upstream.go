package forward

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	minHedge  = 20 * time.Millisecond // an upstream's answer is waited for before the next is asked
	maxHedge  = 250 * time.Millisecond
	doubts    = 3                       // failures in a row until an upstream is asked last, and probed
	probeTime = 900 * time.Millisecond  // for the reply to a probe
	probeRest = time.Second             // between two while questions fail
	probeLate = 10 * time.Second        // the most between two while nobody asks
	plainTime = int64(10 * time.Minute) // without EDNS, for who does not know it
)

// upstreams is whom to ask, in order. It is replaced as a whole.
type upstreams struct {
	list    []*upstream
	problem string // why it is not what resolv.conf says; or ""
}

// upstream is one server and what is known of it.
type upstream struct {
	addr netip.AddrPort

	mu      sync.Mutex // guards the fields below
	rtt     time.Duration
	spread  time.Duration // mean deviation of rtt
	fails   int           // in a row
	doubted bool          // asked last, and probed
	down    bool          // did not answer a probe
	plain   int64         // the cache's clock: until then without EDNS
	looked  bool          // whether it asks this daemon in turn was tried
	loops   bool          // it does
	stats   UpstreamStats
}

// use makes list the upstreams; what is known of those that stay is kept.
func (f *Forwarder) use(list []netip.AddrPort, problem string) {
	next := &upstreams{problem: problem}
	var former []*upstream
	if u := f.ups.Load(); u != nil {
		former = u.list
	}
	for _, a := range list {
		if slices.ContainsFunc(next.list, func(u *upstream) bool { return u.addr == a }) {
			continue
		}
		if i := slices.IndexFunc(former, func(u *upstream) bool { return u.addr == a }); i >= 0 {
			next.list = append(next.list, former[i])
		} else {
			next.list = append(next.list, &upstream{addr: a, stats: UpstreamStats{Addr: a}})
		}
	}
	f.ups.Store(next)
	f.signal(f.changed)
}

// Upstreams returns the servers that are asked, in order.
func (f *Forwarder) Upstreams() []netip.AddrPort {
	var list []netip.AddrPort
	for _, u := range f.others() {
		list = append(list, u.addr)
	}
	return list
}

// others are the upstreams but for those that are this daemon itself.
func (f *Forwarder) others() []*upstream {
	list := f.ups.Load().list
	if slices.ContainsFunc(list, f.isOwn) {
		list = slices.DeleteFunc(slices.Clone(list), f.isOwn)
	}
	return list
}

// isOwn reports whether to ask u is to ask this daemon.
func (f *Forwarder) isOwn(u *upstream) bool {
	u.mu.Lock()
	loops := u.loops
	u.mu.Unlock()
	return loops || f.opts.Own(u.addr)
}

// signal leaves word on a channel that holds one.
func (f *Forwarder) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// order returns the upstreams as they are to be asked: the doubted last.
func (f *Forwarder) order() []*upstream {
	var good, bad []*upstream
	for _, u := range f.others() {
		if u.isDoubted() {
			bad = append(bad, u)
		} else {
			good = append(good, u)
		}
	}
	bare := len(good)+len(bad) == 0
	if f.bare.Swap(bare) != bare {
		f.judge()
		if bare {
			f.log.Error("no upstream for outside names", "reason", f.noUpstream())
		}
	}
	return append(good, bad...)
}

func (f *Forwarder) noUpstream() string {
	cure := "every outside name is answered SERVFAIL: name another server in " + f.opts.ResolvConf + " or with --dns-upstream"
	switch ups := f.ups.Load(); {
	case len(f.opts.Upstreams) > 0:
		return "--dns-upstream names only this daemon itself, or who asks it in turn; every outside name is answered SERVFAIL: name another server"
	case len(ups.list) > 0:
		return f.opts.ResolvConf + " names only this daemon itself, or who asks it in turn; " + cure
	case ups.problem != "":
		return ups.problem + "; " + cure
	}
	return f.opts.ResolvConf + " names no server; " + cure
}

// Trouble returns what keeps outside names from being answered as they should,
// with the cure, or "".
func (f *Forwarder) Trouble() string {
	list := f.others()
	problem := f.ups.Load().problem
	switch {
	case len(list) == 0:
		return "no upstream for outside names: " + f.noUpstream()
	case f.gone.Load():
		return "no upstream for outside names answers: " + join(list) + ": check that this host reaches them, or name others with --dns-upstream"
	case len(list) < len(f.ups.Load().list) && len(f.opts.Upstreams) > 0:
		return "--dns-upstream names this daemon itself, or who asks it in turn; outside names are asked of " + join(list) + " only"
	case problem != "":
		return problem + "; outside names go on being asked of " + join(list)
	}
	return ""
}

func join(list []*upstream) string {
	var names []string
	for _, u := range list {
		names = append(names, u.addr.String())
	}
	return strings.Join(names, ", ")
}

// hedge is how long to wait for u until the next upstream is asked as well.
func (u *upstream) hedge() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rtt == 0 {
		return maxHedge
	}
	return min(max(u.rtt+4*u.spread, 2*u.rtt, minHedge), maxHedge)
}

// answered takes note that u replied after d; as RFC 6298 smooths.
func (f *Forwarder) answered(u *upstream, d time.Duration, rcode int) {
	u.mu.Lock()
	if u.rtt == 0 {
		u.rtt, u.spread = d, d/2
	} else {
		u.spread += ((u.rtt - d).Abs() - u.spread) / 4
		u.rtt += (d - u.rtt) / 8
	}
	u.stats.observe(d, rcode)
	u.mu.Unlock()
	f.trust(u)
}

// trust takes note that u is there.
func (f *Forwarder) trust(u *upstream) {
	u.mu.Lock()
	wasDown := u.down
	u.fails, u.doubted, u.down = 0, false, false
	u.mu.Unlock()
	if wasDown {
		f.log.Info("upstream for outside names answers again", "upstream", u.addr)
	}
	if wasDown || f.gone.Load() {
		f.judge()
	}
}

// failed takes note that u did not reply.
func (f *Forwarder) failed(u *upstream) {
	u.mu.Lock()
	u.fails++
	u.stats.Failures++
	if u.fails >= doubts {
		u.doubted = true
	}
	doubted := u.doubted
	u.mu.Unlock()
	if doubted {
		f.signal(f.down)
	}
}

// doubt has u probed, and asked last until it answers.
func (f *Forwarder) doubt(u *upstream) {
	u.mu.Lock()
	u.doubted = true
	u.mu.Unlock()
	f.signal(f.down)
}

// judge finds out whether there is anybody to ask.
func (f *Forwarder) judge() {
	f.judging.Lock()
	defer f.judging.Unlock()
	gone := true
	for _, u := range f.others() {
		u.mu.Lock()
		gone = gone && u.down
		u.mu.Unlock()
	}
	f.gone.Store(gone)
}

// probeDown probes doubted upstreams until they answer: every second while
// somebody's questions fail, else less and less often.
func (f *Forwarder) probeDown(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.down:
		}
		for rest := probeRest; f.probe(ctx); rest = min(2*rest, probeLate) {
			if !sleep(ctx, probeRest) {
				return
			}
			idle := time.NewTimer(rest - probeRest)
			select {
			case <-ctx.Done():
			case <-f.down:
				rest = probeRest
			case <-idle.C:
			}
			idle.Stop()
		}
	}
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// probe asks the doubted upstreams for the root's servers and reports whether
// any is still doubted.
func (f *Forwarder) probe(ctx context.Context) bool {
	var wg sync.WaitGroup
	for _, u := range f.others() {
		if u.isDoubted() {
			wg.Go(func() { f.probeOne(ctx, u) })
		}
	}
	wg.Wait()
	f.judge()
	return slices.ContainsFunc(f.others(), (*upstream).isDoubted)
}

// probeOne asks u. Whatever it replies proves that it is there.
func (f *Forwarder) probeOne(ctx context.Context, u *upstream) {
	within, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	_, err := f.ask(within, u, key{name: "\x00", kind: typeNS, class: classIN})
	if err == nil || errors.Is(err, errMalformed) {
		f.trust(u)
		return
	}
	if ctx.Err() != nil {
		return
	}
	u.mu.Lock()
	wasDown := u.down
	u.down = u.doubted
	u.looked = u.looked && wasDown
	u.stats.ProbeFailures++
	u.mu.Unlock()
	if !wasDown {
		f.signal(f.changed)
		f.log.Warn("upstream for outside names does not answer", "upstream", u.addr, "error", err)
	}
}

func (u *upstream) isDoubted() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.doubted
}
