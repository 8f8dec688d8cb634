package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Balancer is our chains FLANNELD-SVC… in the tables raw, nat and filter of one
// network namespace: one chain for each frontend, found through one for 256
// addresses. It is for kernels without nftables: the time that a connection's
// first packet takes grows with the number of services, and with
// iptables-legacy every change writes the whole table anew.
//
// Affinity remembers the last clients of each slot, as many as the parameter
// ip_list_tot of the kernel module xt_recent says (100), for whole seconds.
// rules.Hash needs the module xt_bpf: without it a client is led to any slot
// first and stays there as long as that remembers it.
//
// It is not safe for concurrent use.
type Balancer struct {
	programs
	noBPF bool

	held    bool // the kernel was made to hold last
	last    rules.Services
	chains  map[*rules.Frontend]chain // of last
	valid   bool                      // the kernel held last when it looked like seen
	seen    state
	repairs uint64
}

var _ rules.Balancer = (*Balancer)(nil)

// NewBalancer returns the balancer of the calling thread's network namespace,
// with the errors of New.
func NewBalancer(ctx context.Context, o Options) (*Balancer, error) {
	b := &Balancer{programs: programs{mine: ofServices, tables: [3]string{"raw", "filter", "nat"}}}
	if err := b.open(ctx, o); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Sync implements rules.Balancer. While nobody changes a table and s stays the
// same it runs no program.
func (b *Balancer) Sync(ctx context.Context, s rules.Services) error {
	now, err := b.look()
	if err != nil {
		return err
	}
	if b.valid && now == b.seen && same(s, b.last) {
		return nil
	}
	b.valid = false
	err = b.become(ctx, s)
	if isAboutBPF(err) && !b.noBPF && slices.ContainsFunc(s.Frontends, hashes) {
		b.noBPF = true
		err = b.become(ctx, s)
	}
	if err != nil {
		return fmt.Errorf("program iptables for services: %w", err)
	}
	return nil
}

// Repairs implements rules.Balancer.
func (b *Balancer) Repairs() uint64 { return b.repairs }

// Remove implements rules.Balancer.
func (b *Balancer) Remove(ctx context.Context) error {
	b.held, b.valid = false, false
	if err := b.become(ctx, rules.Services{}); err != nil {
		return fmt.Errorf("remove iptables chains %s…: %w", servicesPrefix, err)
	}
	b.held, b.valid = false, false
	return nil
}

func (b *Balancer) become(ctx context.Context, s rules.Services) error {
	chains := make(map[*rules.Frontend]chain, len(s.Frontends))
	for _, f := range s.Frontends {
		c, ok := b.chains[f]
		if !ok {
			c = frontend(f, !b.noBPF)
		}
		chains[f] = c
	}
	var was plan
	if b.held {
		was = planOfServices(b.last, b.chains)
	}
	seen, settled, found, err := b.programs.become(ctx, was, planOfServices(s, chains))
	if err != nil {
		return err
	}
	if found {
		b.repairs++
	}
	s.Networks, s.Hosts, s.Pods, s.Subnets = slices.Clone(s.Networks), slices.Clone(s.Hosts), slices.Clone(s.Pods), slices.Clone(s.Subnets)
	s.Frontends, s.Local = slices.Clone(s.Frontends), slices.Clone(s.Local)
	b.held, b.last, b.chains = true, s, chains
	b.seen, b.valid = seen, settled
	return nil
}

func planOfServices(s rules.Services, chains map[*rules.Frontend]chain) plan {
	return func(fam *family) map[string][]chain { return servicesOf(s, chains, fam.v4, fam.cmd.randomFully) }
}

func hashes(f *rules.Frontend) bool { return f.Balance == rules.Hash }

// isAboutBPF tells whether a program or the kernel refused a match. Which
// one, many versions do not say.
func isAboutBPF(err error) bool {
	var e *runError
	return errors.As(err, &e) && (strings.Contains(e.said, "bpf") || strings.Contains(e.said, "match"))
}

// same tells whether s and o ask for the same.
func same(s, o rules.Services) bool {
	return slices.Equal(s.Networks, o.Networks) && slices.Equal(s.Hosts, o.Hosts) && slices.Equal(s.Pods, o.Pods) && slices.Equal(s.Subnets, o.Subnets) &&
		slices.Equal(s.Local, o.Local) && slices.EqualFunc(s.Frontends, o.Frontends, (*rules.Frontend).Equal)
}
