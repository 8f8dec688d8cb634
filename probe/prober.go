package probe

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// parallel looks at the most: those at silent peers wait.
const parallel = 8

// Options say who is told. Its functions are called from Run's goroutine,
// one at a time, and should not wait.
type Options struct {
	// Result is told what is known of a peer after every look at it.
	Result func(Result)
	// Listening is told the port of this host's responder, which peers are to
	// know, whenever it is another; 0: there is none, and err says why unless
	// that was asked for.
	Listening func(port uint16, err error)
}

// Prober looks at the ways to all peers, in turn.
type Prober struct {
	o       Options
	bucket  *bucket
	table   table
	state   *State // nil: not told yet
	round   uint64 // counts the changes of what makes former looks worthless
	looking int
	found   chan job
	service uint16
	listens error
	links   *neighbours // set by Run

	mu     sync.Mutex
	allow  map[netip.Addr]int // mu: tunnel addresses of peers, for the responder
	answer *responder
}

// job is one look at a peer, on its way to a goroutine and back.
type job struct {
	e     *entry
	peer  *Peer
	state *State
	round uint64
	tcp   [2]bool
	known [2]int
	plain [2]Plain // as known before
	// direct: packets to it go without the tunnel. held: that is not to be
	// tried now.
	direct, held [2]bool
	links        *neighbours
	seen         [2]observation
}

// New returns a Prober; Run makes it work.
func New(o Options) *Prober {
	p := &Prober{o: o, allow: map[netip.Addr]int{}, found: make(chan job)}
	p.answer = newResponder(p.allows)
	return p
}

// Run probes the peers of the newest state until ctx ends. It needs
// CAP_NET_RAW, opens its sockets in the calling thread's network namespace
// unless the runtime moves it, and leaves nothing running.
func (p *Prober) Run(ctx context.Context, states <-chan State) error {
	n, err := openNeighbours()
	if err != nil {
		return err
	}
	defer n.close()
	p.links, p.bucket = n, newBucket(time.Now())
	var looks sync.WaitGroup
	defer looks.Wait()
	defer p.answer.close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if len(p.table.queue) > 0 && p.looking < parallel {
			timer.Reset(time.Until(p.table.queue[0].due))
		}
		select {
		case <-ctx.Done():
			return nil
		case s := <-states:
			p.take(ctx, &s)
		case j := <-p.found:
			p.looking--
			p.learn(j)
		case now := <-timer.C:
			for first := true; p.looking < parallel; first = false {
				e := p.table.next(now, !first)
				if e == nil {
					break
				}
				p.looking++
				j := p.job(e)
				looks.Go(func() {
					j.run(ctx, p.bucket)
					select {
					case p.found <- j:
					case <-ctx.Done():
					}
				})
			}
		}
	}
}

// take makes s the state.
func (p *Prober) take(ctx context.Context, s *State) {
	old := p.state
	fresh := old == nil || s.Epoch != old.Epoch || s.MTU != old.MTU ||
		!slices.Equal(s.Own, old.Own) || !slices.Equal(s.Underlay.Addrs, old.Underlay.Addrs) || s.Underlay.Index != old.Underlay.Index
	if fresh {
		p.round++
	}
	p.state = s
	p.allowPeers(old, s)
	p.table.update(s, time.Now(), fresh)
	port, err := p.answer.listen(ctx, s.Own)
	if port != p.service || (err == nil) != (p.listens == nil) {
		p.service, p.listens = port, err
		p.o.Listening(port, err)
	}
}

// allowPeers lets the responder answer the peers of s and nobody else.
func (p *Prober) allowPeers(old, s *State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var before []*Peer
	if old != nil {
		before = old.Peers
	}
	count := func(peer *Peer, n int) {
		for _, a := range peer.Addrs {
			if p.allow[a] += n; p.allow[a] == 0 {
				delete(p.allow, a)
			}
		}
	}
	// Both are sorted: what is in both costs a comparison of pointers.
	for _, peer := range s.Peers {
		for len(before) > 0 && before[0].Key < peer.Key {
			count(before[0], -1)
			before = before[1:]
		}
		if len(before) > 0 && before[0].Key == peer.Key {
			if before[0] == peer {
				before = before[1:]
				continue
			}
			count(before[0], -1)
			before = before[1:]
		}
		count(peer, 1)
	}
	for _, peer := range before {
		count(peer, -1)
	}
}

func (p *Prober) allows(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allow[a] > 0
}

// job says what is to be found out about a peer now.
func (p *Prober) job(e *entry) job {
	j := job{e: e, peer: e.peer, state: p.state, round: p.round, links: p.links}
	direct, now := e.direct(p.state), time.Now()
	for i := range e.sides {
		s := &e.sides[i]
		j.known[i], j.plain[i] = s.mtu, s.plain
		j.direct[i], j.held[i] = direct && s.plain == PlainPasses, s.plain == PlainFails && s.hold.on(now)
		if s.used && e.peer.Service != 0 && !e.peer.Down {
			j.tcp[i] = s.owed() || p.table.exchangeDue(s, now) && p.bucket.try(exchangeCost)
		}
	}
	return j
}

// learn takes what a look found.
func (p *Prober) learn(j job) {
	e, now := j.e, time.Now()
	if e.gone {
		return
	}
	if j.round != p.round || !slices.Equal(j.peer.Addrs, e.peer.Addrs) || !slices.Equal(j.peer.Public, e.peer.Public) {
		p.table.done(e, now)
		p.table.set(e, now) // it was about something else
		return
	}
	for i := range e.sides {
		if s := &e.sides[i]; s.used {
			s.path = s.path.after(j.seen[i], p.state.MTU, e.peer.Down)
			if !p.state.Plain || !e.peer.Plain && !e.peer.Down { // once it may again it is to show that it can
				s.plain, s.fell = PlainUnknown, false
			}
		}
	}
	p.table.done(e, now)
	r := Result{Key: e.peer.Key, Name: e.peer.Name}
	for i, s := range e.sides {
		if s.used {
			r.Paths = append(r.Paths, s.path.show(p.state, e.peer, i))
		}
	}
	p.o.Result(r)
}

// run looks at the peer, at both families at the same time.
func (j *job) run(ctx context.Context, b *bucket) {
	var both sync.WaitGroup
	for i := range j.seen {
		from, to := ofFamily(j.state.Own, i), ofFamily(j.peer.Addrs, i)
		if from.IsValid() && to.IsValid() {
			both.Go(func() {
				j.seen[i] = j.look(ctx, b, i, from, to)
				j.seen[i].at, j.seen[i].direct = time.Now(), j.direct[i]
			})
		}
	}
	both.Wait()
}

// look looks at one family's path.
func (j *job) look(ctx context.Context, b *bucket, family int, from, to netip.Addr) observation {
	ping, err := dialPing(ctx, from, to)
	if err != nil {
		return observation{err: err}
	}
	defer ping.close()
	w := wire{
		echo: func(ctx context.Context, size int) (time.Duration, error) {
			if err := b.take(ctx); err != nil {
				return 0, err
			}
			return ping.ping(ctx, size)
		},
		underlay: func(ctx context.Context) error {
			if err := b.take(ctx); err != nil {
				return err
			}
			return pingOnce(ctx, ofFamily(j.state.Underlay.Addrs, family), ofFamily(j.peer.Public, family))
		},
	}
	if j.tcp[family] {
		w.exchange = func(ctx context.Context) (TCP, error) {
			return exchangeWith(ctx, from, netip.AddrPortFrom(to, j.peer.Service))
		}
	}
	if j.state.Plain && j.peer.Plain && !j.peer.Down && !j.held[family] {
		w.plain = func(ctx context.Context) (Plain, error) {
			return ping.passes(ctx, b, j.links, j.state.Underlay.Index, ofFamily(j.peer.Public, family), j.peer.Service)
		}
	}
	return look(ctx, w, j.state.MTU, j.known[family], j.plain[family])
}

// pingOnce pings an address of the underlay.
func pingOnce(ctx context.Context, from, to netip.Addr) error {
	if !from.IsValid() || !to.IsValid() {
		return errLost
	}
	p, err := dialPing(ctx, from, to)
	if err != nil {
		return err
	}
	defer p.close()
	_, err = p.ping(ctx, small)
	return err
}
