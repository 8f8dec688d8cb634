package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
)

// ServicesTable is the name of the Balancer's table, of family inet.
const ServicesTable = "flanneld-services"

// Balancer is the table of services in one network namespace: maps that find a
// connection's frontend and its endpoint, and a chain for each number of
// endpoints to choose from. What changes is elements.
//
// It knows what the kernel holds from the frontends that it last got. When
// others have changed rules of any table it looks at once whether its chains
// are whole. Elements are read again only if the last reading was at least a
// hundred times as long ago as it took, or 8 s: reading a quarter of a million
// takes half a second, and container engines and our own CNI plugins change
// their tables all the time. What s changes does not wait for it. So a deleted
// or flushed table is seen by the next Sync, a flushed map by the first one 8 s
// after a reading that changes nothing, or 3 s later.
//
// It is not safe for concurrent use.
type Balancer struct {
	conn   *nlbatch.Conn
	ledger *Ledger
	own    bool // the ledger is nobody else's

	// known: what follows is what the kernel holds.
	known     bool
	exists    bool // the table
	fixed     fixed
	plan      table
	frontends []*rules.Frontend
	// orders are of frontends whose slots are in another order than they say:
	// those that stay keep their place.
	orders    map[*rules.Frontend][]int32
	local     []netip.Addr
	hosts     []netip.Addr
	chains    map[shape]*lent
	numbers   map[uint32]bool // of chains
	loopbacks int             // frontends at addresses of the loopback interface

	looked   uint64 // what the ledger said when rules were last looked at
	verified uint64 // and when elements were last read
	read     time.Time
	gap      time.Duration
	doubted  time.Time // since when others may have changed elements; zero: they did not
	repairs  uint64
	// For tests: elements that were written, and attempts that were refused.
	elements, refused int
}

// lent is a chain that frontends share.
type lent struct {
	number uint32 // by which it is found
	uses   int
	digest uint64
}

var _ rules.Balancer = (*Balancer)(nil)

// Bounds of how often elements are read.
const (
	restFactor = 100
	longestGap = 8 * time.Second
)

// NewBalancer returns the balancer of the calling thread's network namespace,
// which is l's; nil: nobody else of this process writes there. It returns
// rules.ErrNotSupported, with the reason, if the kernel lacks nf_tables or an
// expression that we need; Linux 5.4 with CONFIG_NF_TABLES_INET, NFT_NAT,
// NFT_MASQ, NFT_CT, NFT_NUMGEN, NFT_HASH, NFT_REJECT_INET and NFT_FIB_INET has
// them all. It leaves nothing in the kernel.
func NewBalancer(l *Ledger) (*Balancer, error) {
	b, err := openBalancer(l)
	if err != nil {
		return nil, err
	}
	if err := b.probe(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func openBalancer(l *Ledger) (*Balancer, error) {
	l, own, err := shared(l)
	if err != nil {
		return nil, err
	}
	b := &Balancer{ledger: l, own: own}
	if b.conn, err = nlbatch.Dial(unix.NETLINK_NETFILTER); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.conn.SizeForBulk()
	return b, nil
}

// Close lets go of the sockets; the rules stay.
func (b *Balancer) Close() error {
	var errs []error
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
	}
	if b.own {
		errs = append(errs, b.ledger.Close())
	}
	return errors.Join(errs...)
}

// Sync implements rules.Balancer. While nobody else writes to nf_tables and s
// stays the same it is one small request to the kernel.
func (b *Balancer) Sync(ctx context.Context, s rules.Services) error {
	var errs error
	for attempt := range 3 { // with what is known, with what is read, from nothing
		if err := ctx.Err(); err != nil {
			return err
		}
		err := b.sync(ctx, s, attempt == 2)
		if err == nil {
			return nil
		}
		b.known = false
		b.refused++
		errs = errors.Join(errs, err)
		if _, ok := errors.AsType[*nlbatch.Error](err); !ok {
			break
		}
	}
	return fmt.Errorf("program nftables table inet %s: %w", ServicesTable, errs)
}

// Remove implements rules.Balancer.
func (b *Balancer) Remove(ctx context.Context) error {
	b.known = false
	return b.Sync(ctx, rules.Services{})
}

func (b *Balancer) sync(ctx context.Context, s rules.Services, anew bool) error {
	foreign, err := b.ledger.check()
	if err != nil {
		return err
	}
	if b.known && foreign != b.looked {
		if b.known, err = b.whole(); err != nil {
			return err
		}
		b.looked = foreign
	}
	if b.doubtful(foreign) && !(b.known && b.exists && b.changed(s) && time.Since(b.doubted) < patience) {
		b.known = false
	}
	switch {
	case len(s.Networks) == 0 && len(s.Frontends) == 0:
		return b.remove(ctx, foreign)
	case b.exists && !b.known && !anew:
		// What others did shows against what was there; what s changes comes after.
		if err := b.renew(ctx, b.former(), foreign, false); err != nil {
			return err
		}
	}
	if b.known && b.exists {
		return b.update(ctx, s)
	}
	return b.renew(ctx, s, foreign, anew)
}

// doubtful tells whether elements are to be read again.
func (b *Balancer) doubtful(foreign uint64) bool {
	if foreign == b.verified {
		return false
	}
	if b.doubted.IsZero() {
		b.doubted = time.Now()
	}
	return time.Since(b.read) >= b.gap
}

// patience is how long reading is put off in favour of changes.
const patience = 3 * time.Second

// changed tells whether s is something else than what the kernel holds.
func (b *Balancer) changed(s rules.Services) bool {
	x := fixed{networks: s.Networks, pods: s.Pods, subnets: s.Subnets, loopback: b.fixed.loopback}
	return !x.equal(b.fixed) || !slices.Equal(b.frontends, s.Frontends) || !slices.Equal(b.local, s.Local) || !slices.Equal(b.hosts, s.Hosts)
}

// former is what the kernel was last made to hold.
func (b *Balancer) former() rules.Services {
	return rules.Services{
		Networks: b.fixed.networks, Pods: b.fixed.pods, Subnets: b.fixed.subnets,
		Frontends: b.frontends, Local: b.local, Hosts: b.hosts,
	}
}

// Repairs implements rules.Balancer.
func (b *Balancer) Repairs() uint64 { return b.repairs }

// whole looks at everything but elements.
func (b *Balancer) whole() (bool, error) {
	if !b.exists {
		exists, _, err := reader{b.conn}.table()
		return !exists, err
	}
	want := make(map[string]uint64, len(b.chains)+len(b.plan.chains))
	for _, c := range b.plan.chains {
		want[c.name] = c.digest()
	}
	for sh, l := range b.chains {
		want[sh.name()] = l.digest
	}
	return reader{b.conn}.sound(want, b.plan)
}

func (b *Balancer) remove(ctx context.Context, foreign uint64) error {
	if b.known && !b.exists {
		return nil
	}
	exists, _, err := reader{b.conn}.table()
	if err != nil {
		return err
	}
	c := b.change(ctx)
	if exists {
		delTable(&c.first, ServicesTable)
		c.commit()
	}
	b.forget()
	b.known, b.exists = c.err == nil, false
	b.looked, b.verified = foreign, foreign
	return c.err
}

func (b *Balancer) forget() {
	*b = Balancer{conn: b.conn, ledger: b.ledger, own: b.own, repairs: b.repairs, elements: b.elements, refused: b.refused}
}

// change begins a change of the table.
func (b *Balancer) change(ctx context.Context) *change {
	return &change{table: ServicesTable, send: func(batch *nlbatch.Batch) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := b.ledger.commit(func() (int, error) {
			_, err := b.conn.Commit(batch)
			return 1, err
		})
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	}}
}

// pair is a frontend before and after.
type pair struct{ old, now *rules.Frontend }

func (p pair) any() *rules.Frontend {
	if p.now != nil {
		return p.now
	}
	return p.old
}

// differences compares sorted lists by pointers.
func differences(old, now []*rules.Frontend) (out []pair) {
	old, now = trim(old, now)
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		case old[0] != now[0]:
			order = old[0].Compare(now[0])
		}
		var p pair
		if order <= 0 {
			p.old, old = old[0], old[1:]
		}
		if order >= 0 {
			p.now, now = now[0], now[1:]
		}
		if p.old != p.now {
			out = append(out, p)
		}
	}
	return out
}

func isLoopback(f *rules.Frontend) int {
	if f != nil && f.Addr.IsLoopback() {
		return 1
	}
	return 0
}

// update writes what differs from what is known.
func (b *Balancer) update(ctx context.Context, s rules.Services) error {
	if !b.changed(s) {
		return nil
	}
	pairs := differences(b.frontends, s.Frontends)
	loopbacks := b.loopbacks
	for _, p := range pairs {
		loopbacks += isLoopback(p.now) - isLoopback(p.old)
	}
	x := fixed{networks: s.Networks, pods: s.Pods, subnets: s.Subnets, loopback: loopbacks > 0}
	same := x.equal(b.fixed)
	b.known = false
	c := b.change(ctx)
	if !same {
		plan, err := x.plan()
		if err != nil {
			return err
		}
		c.fixedChains(frameOf(b.plan), plan)
		b.plan, b.fixed = plan, x.clone()
	}
	c.keys(hairpins, hairpinKeys(b.local), hairpinKeys(s.Local))
	c.keys(hosts, hostKeys(b.hosts), hostKeys(s.Hosts))
	for _, p := range pairs {
		have := holding(p.old, b.leave(p.old), b.orders[p.old])
		delete(b.orders, p.old)
		chain, err := b.use(c, p.now)
		if err != nil {
			return err
		}
		c.frontend(placeOf(p.any()), have, holding(p.now, chain, b.arrange(have.slots, p.now)))
	}
	return b.finish(c, s, loopbacks)
}

// finish commits and notes that the kernel holds s.
func (b *Balancer) finish(c *change, s rules.Services, loopbacks int) error {
	for sh, l := range b.chains {
		if l.uses == 0 {
			c.del(shapes, appendNumber(nil, int(l.number)))
			c.delChain(sh.name())
			delete(b.chains, sh)
			delete(b.numbers, l.number)
		}
	}
	c.commit()
	b.elements += c.elements
	if c.err != nil {
		return c.err
	}
	kept := len(b.frontends)
	b.frontends = append(b.frontends[:0], s.Frontends...)
	clear(b.frontends[len(b.frontends):max(kept, len(b.frontends))])
	b.local, b.hosts = append(b.local[:0], s.Local...), append(b.hosts[:0], s.Hosts...)
	b.loopbacks = loopbacks
	b.known, b.exists = true, true
	return nil
}

// arrange remembers how the slots of f, which comes, are arranged.
func (b *Balancer) arrange(have []netip.AddrPort, f *rules.Frontend) []int32 {
	if f == nil || len(f.Slots) == 0 {
		return nil
	}
	order := arrange(have, f)
	if order != nil {
		b.orders[f] = order
	}
	return order
}

func (x fixed) equal(o fixed) bool {
	return slices.Equal(x.networks, o.networks) && slices.Equal(x.pods, o.pods) && slices.Equal(x.subnets, o.subnets) &&
		x.loopback == o.loopback && x.loading == o.loading
}

func (x fixed) clone() fixed {
	x.networks, x.pods, x.subnets = slices.Clone(x.networks), slices.Clone(x.pods), slices.Clone(x.subnets)
	return x
}

// fixedChains turns the chains that are always there into plan. Those that go
// are in an order in which nothing jumps to them any more.
func (c *change) fixedChains(have frame, plan table) {
	var changed []chain
	wanted := map[string]bool{}
	for _, ch := range plan.chains {
		wanted[ch.name] = true
		if _, there := have.chains[ch.name]; !there || have.rules[ch.name] != ch.digest() {
			changed = append(changed, ch)
		}
	}
	for _, ch := range changed {
		c.makeChain(ch)
	}
	for _, ch := range changed {
		c.fill(ch)
	}
	gone := slices.DeleteFunc(slices.Sorted(maps.Keys(have.chains)), func(name string) bool { return wanted[name] })
	for _, name := range gone {
		c.flushChain(name)
		c.delChain(name)
	}
}
