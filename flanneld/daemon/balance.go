package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld/flanneld/kernel/conntrack"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
)

// balancer has the kernel send connections to services where they belong.
// Everything in it belongs to the goroutine of run; others send it values
// through the channels.
type balancer struct {
	log    *slog.Logger
	kernel rules.Balancer
	filter string // name of the kernel's part

	states  latest[service.State]
	needs   latest[balanceNeeds]   // to the network
	changed chan []*rules.Frontend // to who cleans up after them

	table   service.Table
	want    rules.Services
	known   bool              // want is what the cluster says
	done    rules.Services    // what the kernel was last made to hold
	repairs uint64            // of it until then, of others' deeds
	stale   []*rules.Frontend // not handed to changed yet
	need    balanceNeeds      // what follows from want
	asked   *balanceNeeds     // nil: nothing yet
	trouble string

	shown atomic.Pointer[balanced] // for others' goroutines; never nil
}

// balanced is what others may see of a balancer. It is immutable.
type balanced struct {
	state     service.State
	frontends int
	problems  []error // services that are not served as they ask
	trouble   error   // of the kernel
}

// balanceNeeds is what connections to services need of this host beside rules.
type balanceNeeds struct {
	known    bool           // false: nobody knows yet, and what is there stays
	networks []netip.Prefix // of virtual addresses alone: processes of this host need a route
	localnet bool           // packets from 127.0.0.1 go to containers
}

func newBalancer(k *kernel, log *slog.Logger) *balancer {
	b := &balancer{
		log: log, kernel: k.balancer, filter: k.filterName,
		states: newLatest[service.State](), needs: newLatest[balanceNeeds](), changed: make(chan []*rules.Frontend),
	}
	b.shown.Store(&balanced{})
	return b
}

// run keeps the kernel as the newest state wants it until ctx ends, and leaves
// it so. Before the first state it touches nothing: a former daemon's rules
// serve on.
func (b *balancer) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.clean(ctx) })
	g.Go(func() error { return b.serve(ctx) })
	return g.Wait()
}

// serve owns the state.
func (b *balancer) serve(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		var changed chan<- []*rules.Frontend
		if len(b.stale) > 0 {
			changed = b.changed
		}
		select {
		case <-ctx.Done():
			return nil
		case s := <-b.states:
			b.take(s)
		case <-tick.C:
		case changed <- b.stale:
			b.stale = nil
			continue
		}
		if b.known {
			b.sync(ctx)
		}
	}
}

// take follows a newer state.
func (b *balancer) take(s service.State) {
	want, problems := b.table.Build(s)
	if len(want.Frontends) == 0 {
		want = rules.Services{} // a host whose cluster has no services is left alone
	}
	b.want, b.need, b.known = want, needsOf(want), true
	b.shown.Store(&balanced{state: s, frontends: len(want.Frontends), problems: problems, trouble: b.shown.Load().trouble})
}

// sync makes the kernel as it should be. What goes wrong is tried again at the
// next beat.
func (b *balancer) sync(ctx context.Context) {
	if !b.need.localnet {
		b.ask()
	}
	err := b.kernel.Sync(ctx, b.want)
	if err != nil {
		err = fmt.Errorf("services (%s): %w", b.filter, err)
	} else {
		if r := b.kernel.Repairs(); r != b.repairs {
			b.repairs, b.done = r, rules.Services{} // while rules were missing anything may have begun
			b.log.Warn("somebody else took away or changed rules of services: they are back")
		}
		b.stale = append(b.stale, conntrack.Changed(b.done, b.want)...)
		b.done = b.want
		b.ask()
	}
	if !store.Turned(&b.trouble, err) {
		return
	}
	show := *b.shown.Load()
	show.trouble = err
	b.shown.Store(&show)
	if err != nil {
		b.log.Error("connections to services not as they should be, trying again", "error", err)
		return
	}
	b.log.Info("connections to services as they should be again")
}

// ask tells the network what else want needs. The way from 127.0.0.1 to
// containers leads back as well, unless rules are in the way: it is opened after
// they came and closed before they go.
func (b *balancer) ask() {
	if b.asked == nil || !reflect.DeepEqual(b.need, *b.asked) {
		need := b.need
		b.asked = &need
		b.needs.put(need)
	}
}

// needsOf is what s needs of this host beside rules.
func needsOf(s rules.Services) balanceNeeds {
	n := balanceNeeds{known: true, localnet: slices.ContainsFunc(s.Frontends, func(f *rules.Frontend) bool { return f.Addr.IsLoopback() })}
	for _, p := range s.Networks {
		if !slices.ContainsFunc(s.Hosts, p.Contains) { // else the route would lead past them
			n.networks = append(n.networks, p)
		}
	}
	return n
}

// clean makes connections follow that do not by themselves: to the kernel flows
// of UDP never end while a client goes on. A packet that was under way while the
// rules changed makes one anew, so that they are looked at once more, and with
// them what nobody has answered until then.
func (b *balancer) clean(ctx context.Context) error {
	const settled = 2 * time.Second
	var (
		again, after []*rules.Frontend // when later comes, and when it comes next
		later        <-chan time.Time
		trouble      string
	)
	for {
		var now []*rules.Frontend
		second := false
		select {
		case <-ctx.Done():
			return nil
		case now = <-b.changed:
			after = append(after, now...)
		case <-later:
			now, second, again, later = again, true, nil, nil
		}
		if later == nil && len(after) > 0 {
			again, after, later = after, nil, time.After(settled)
		}
		_, err := conntrack.Clean(ctx, now, second)
		if store.Turned(&trouble, err) && err != nil && ctx.Err() == nil {
			b.log.Warn("flows of UDP may stay with endpoints that are gone", "error", err)
		}
	}
}
