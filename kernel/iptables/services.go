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

	last   rules.Services
	chains map[*rules.Frontend]chain // of last
	valid  bool                      // the kernel held last when it looked like seen
	seen   state
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
	b.last = s
	b.last.Networks, b.last.Pods, b.last.Subnets = slices.Clone(s.Networks), slices.Clone(s.Pods), slices.Clone(s.Subnets)
	b.last.Frontends, b.last.Local = slices.Clone(s.Frontends), slices.Clone(s.Local)
	return nil
}

// Remove implements rules.Balancer.
func (b *Balancer) Remove(ctx context.Context) error {
	b.valid, b.last, b.chains = false, rules.Services{}, nil
	if err := b.become(ctx, rules.Services{}); err != nil {
		return fmt.Errorf("remove iptables chains %s…: %w", servicesPrefix, err)
	}
	b.valid = false
	return nil
}

func (b *Balancer) become(ctx context.Context, s rules.Services) (err error) {
	known := b.chains
	b.chains = make(map[*rules.Frontend]chain, len(s.Frontends))
	for _, f := range s.Frontends {
		c, ok := known[f]
		if !ok {
			c = frontend(f, !b.noBPF)
		}
		b.chains[f] = c
	}
	b.seen, b.valid, err = b.programs.become(ctx, func(fam *family) map[string][]chain {
		return servicesOf(s, b.chains, fam.v4, fam.cmd.randomFully)
	})
	return err
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
	return slices.Equal(s.Networks, o.Networks) && slices.Equal(s.Pods, o.Pods) && slices.Equal(s.Subnets, o.Subnets) &&
		slices.Equal(s.Local, o.Local) && slices.EqualFunc(s.Frontends, o.Frontends, (*rules.Frontend).Equal)
}
