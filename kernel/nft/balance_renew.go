package nft

import (
	"context"
	"encoding/binary"
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

// renew reads what the kernel holds and writes what differs: at the start, which
// adopts what a former daemon left, and when others may have changed something:
// then s is what the kernel held, and what has to be written is a repair.
// anew: what is there is not to be trusted.
func (b *Balancer) renew(ctx context.Context, s rules.Services, foreign uint64, anew bool) error {
	begin, held := time.Now(), b.exists
	b.known = false
	r := reader{b.conn}
	have, err := r.frame()
	if err != nil {
		return err
	}
	x := fixed{networks: s.Networks, pods: s.Pods, subnets: s.Subnets}
	loopbacks, bytes := 0, 0
	for _, f := range s.Frontends {
		loopbacks += isLoopback(f)
		bytes += 64 * (len(f.Slots) + 1)
	}
	x.loopback = loopbacks > 0
	ready, err := x.plan()
	if err != nil {
		return err
	}
	c := b.change(ctx)
	if have.exists && (anew || !have.fits(ready)) {
		delTable(&c.first, ServicesTable)
		have = frame{}
	}
	b.orders = keepOrders(b.orders, s.Frontends)
	found := map[uint32]string{}
	if !have.exists {
		c.newTable()
	} else {
		err := r.elements(shapes, func(key, data []byte) { found[binary.NativeEndian.Uint32(key)] = text(data) })
		if err != nil {
			return err
		}
	}
	chains, err := b.adopt(c, s.Frontends, have, found)
	if err != nil {
		return err
	}
	a := newAudit(s.Frontends, chains, b.orders)
	plan := ready
	if have.exists {
		for range 2 { // while the kernel makes a map wider a dump leaves elements out
			if err := a.read(r); err != nil {
				return err
			}
			if a.complete() {
				break
			}
		}
	} else {
		x.loading = bytes > transactionBytes
		if plan, err = x.plan(); err != nil {
			return err
		}
	}
	b.gap = min(restFactor*time.Since(begin), longestGap)
	b.mend(c, s, have, plan, a)
	b.clear(c, have, plan, found)
	if x.loading {
		c.commit()
		x.loading = false
		c.fixedChains(frameOf(plan), ready)
	}
	b.plan, b.fixed = ready, x.clone()
	if err := b.finish(c, s, loopbacks); err != nil {
		return err
	}
	if held && c.commits > 0 {
		b.repairs++
	}
	b.looked, b.verified, b.read, b.doubted = foreign, foreign, time.Now(), time.Time{}
	return nil
}

// mend writes what is not as it shall be.
func (b *Balancer) mend(c *change, s rules.Services, have frame, plan table, a *audit) {
	c.fixedChains(have.only(plan.has), plan)
	c.keys(hosts, a.hosts, hostKeys(s.Hosts))
	a.wrong(func(i int, p place, have held, rest []strayed) {
		want := held{}
		if i >= 0 {
			f := s.Frontends[i]
			delete(b.orders, f)
			want = holding(f, a.chains[i], b.arrange(have.slots, f))
		}
		c.frontend(p, have, want)
		for _, r := range rest {
			c.del(p.slot(r.stick, r.slot))
		}
	})
	c.keys(hairpins, a.hairpins, hairpinKeys(s.Local))
}

// clear removes chains and sets that are not needed, or nobody's.
func (b *Balancer) clear(c *change, have frame, plan table, found map[uint32]string) {
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for sh, l := range b.chains {
		names[sh.name()], numbers[l.number] = true, true
	}
	for number := range found {
		if !numbers[number] {
			c.del(shapes, appendNumber(nil, int(number)))
		}
	}
	c.fixedChains(have.only(func(name string) bool { return !plan.has(name) && !names[name] }), table{})
	known := map[string]bool{}
	for s := range setID(sets) {
		known[s.name()] = true
	}
	for name := range have.sets {
		if !known[name] {
			c.delSet(name)
		}
	}
}

// only is the frame with some of its chains.
func (f frame) only(which func(name string) bool) frame {
	f.chains = maps.Clone(f.chains)
	maps.DeleteFunc(f.chains, func(name string, _ hook) bool { return !which(name) })
	return f
}

func (t table) has(name string) bool {
	return slices.ContainsFunc(t.chains, func(c chain) bool { return c.name == name })
}

// adopt notes the chains that frontends need, and makes those that are not
// there as they shall be. found are the chains that the kernel finds by numbers.
// It returns the number for each frontend.
func (b *Balancer) adopt(c *change, fs []*rules.Frontend, have frame, found map[uint32]string) ([]uint32, error) {
	b.chains, b.numbers = map[shape]*lent{}, map[uint32]bool{}
	numbers := make(map[string]uint32, len(found))
	for number, name := range found {
		numbers[name] = number
	}
	for n := range pinned {
		if _, err := b.lend(c, shape{slots: n + 1}, have, found, numbers); err != nil {
			return nil, err
		}
	}
	out := make([]uint32, len(fs))
	for i, f := range fs {
		if len(f.Slots) == 0 {
			continue
		}
		var err error
		if out[i], err = b.lend(c, shapeOf(f), have, found, numbers); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lend is use where the kernel may have the chain.
func (b *Balancer) lend(c *change, sh shape, have frame, found map[uint32]string, numbers map[string]uint32) (uint32, error) {
	if l := b.chains[sh]; l != nil {
		l.uses++
		return l.number, nil
	}
	ch, err := sh.chain()
	if err != nil {
		return 0, err
	}
	if h, there := have.chains[ch.name]; there && h != (hook{}) {
		return 0, fmt.Errorf("chain %s: %w", ch.name, &nlbatch.Error{Errno: unix.EEXIST}) // somebody else's
	}
	l := &lent{number: numbers[ch.name], uses: 1, digest: ch.digest()}
	b.chains[sh] = l
	if have.rules[ch.name] != l.digest {
		c.makeChain(ch)
		c.fill(ch)
	}
	if own := b.number(sh); l.number != own {
		l.number = own
		if found[own] != "" {
			c.del(shapes, appendNumber(nil, int(own)))
		}
		c.addChain(own, ch.name)
	}
	b.numbers[l.number] = true
	return l.number, nil
}

func frameOf(plan table) frame {
	f := frame{chains: map[string]hook{}, rules: map[string]uint64{}}
	for _, ch := range plan.chains {
		f.chains[ch.name], f.rules[ch.name] = ch.hook, ch.digest()
	}
	return f
}

// keepOrders leaves out those of frontends that are not there any more.
func keepOrders(orders map[*rules.Frontend][]int32, fs []*rules.Frontend) map[*rules.Frontend][]int32 {
	kept := map[*rules.Frontend][]int32{}
	if len(orders) == 0 {
		return kept
	}
	for _, f := range fs {
		if o := orders[f]; o != nil {
			kept[f] = o
		}
	}
	return kept
}

// probe makes a table with everything that we need and deletes it in the same
// transaction, as Filter.probe does.
func (b *Balancer) probe() error {
	c := b.change(context.Background())
	c.table += "-probe"
	some := netip.MustParsePrefix("10.0.0.0/16")
	plan, err := fixed{networks: []netip.Prefix{some}, pods: []netip.Prefix{some}, subnets: []netip.Prefix{some}, loopback: true}.plan()
	if err != nil {
		return err
	}
	c.newTable()
	c.fixedChains(frame{}, plan)
	for i, sh := range []shape{
		{slots: 2}, {slots: 2, balance: rules.Hash}, {slots: 2, balance: rules.RoundRobin, place: place{addr: some.Addr()}},
		{slots: 2, affinity: time.Hour},
	} {
		ch, err := sh.chain()
		if err != nil {
			return err
		}
		c.makeChain(ch)
		c.fill(ch)
		c.addChain(uint32(i)+1, ch.name)
	}
	c.last = append(c.last, func(m *nlbatch.Batch) { delTable(m, c.table) })
	c.commit()
	switch {
	case c.err == nil:
		return nil
	case errors.Is(c.err, unix.EPERM):
		return fmt.Errorf("nftables: needs CAP_NET_ADMIN: %w", c.err)
	}
	return fmt.Errorf("%w: nf_tables with maps, NAT, numgen, hash, reject and fib in family inet (Linux 5.4 or newer with NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_CT, NFT_NUMGEN, NFT_HASH, NFT_REJECT_INET, NFT_FIB_INET): %w",
		rules.ErrNotSupported, c.err)
}
