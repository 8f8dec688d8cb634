// Package iptables makes kernel/rules true with the iptables programs, for
// hosts without nftables, and keeps pod traffic forwarded beside the FORWARD
// rules of Docker and firewalld (see Forward).
//
// Our chains are named FLANNELD-…, our rules carry a comment that begins with
// "flanneld". A table is changed by one iptables-restore, wholly or not at
// all. The kernel is asked first, without running a program, whether anything
// changed at all.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Options name the programs; the zero value is right for hosts.
type Options struct {
	IPTables  string // "": iptables
	IP6Tables string // "": ip6tables
	// NoSets lists peers one rule each, as on a kernel without ipset.
	NoSets bool
}

// Filter is our chains in the tables raw, mangle and nat of one network
// namespace. It is not safe for concurrent use.
type Filter struct {
	programs
	sets *link.IPSets // nil: one rule a peer

	last  rules.Rules
	valid bool // the kernel held last when it looked like seen
	seen  state
}

var _ rules.Filter = (*Filter)(nil)

// New returns the filter of the calling thread's network namespace. It
// returns rules.ErrNotSupported if iptables is not installed; ip6tables may
// be missing where IPv6 is switched off.
func New(ctx context.Context, o Options) (*Filter, error) {
	f := &Filter{programs: programs{mine: ofOthers, tables: [3]string{"raw", "mangle", "nat"}}}
	if err := f.open(ctx, o); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !o.NoSets {
		f.sets, _ = link.OpenIPSets() // without ipset: one rule a peer
	}
	return f, nil
}

// Close lets go of the kernel; the rules stay.
func (f *Filter) Close() error {
	err := f.programs.Close()
	if f.sets != nil {
		err = errors.Join(err, f.sets.Close())
	}
	return err
}

// Sync implements rules.Filter. While nobody changes a table and r stays the
// same it runs no program.
func (f *Filter) Sync(ctx context.Context, r rules.Rules) error {
	if err := f.syncSets(r); err != nil {
		return fmt.Errorf("program iptables: %w", err)
	}
	now, err := f.look()
	if err != nil {
		return err
	}
	if f.valid && now == f.seen && r.Equal(f.last) {
		return nil
	}
	f.valid = false
	local := func(netip.Addr) bool { return false }
	if len(r.Guard) > 0 {
		if local, err = rules.Local(); err != nil {
			return err
		}
	}
	err = f.become(ctx, r, local)
	if err != nil && f.sets != nil && len(r.Tunnel.Peers) > 0 && isAboutSets(err) {
		sets := f.sets
		f.sets = nil
		err = errors.Join(f.become(ctx, r, local), sets.Close())
	}
	if err != nil {
		return fmt.Errorf("program iptables: %w", err)
	}
	f.last = r.Clone()
	return nil
}

// Remove implements rules.Filter.
func (f *Filter) Remove(ctx context.Context) error {
	f.valid, f.last = false, rules.Rules{}
	if err := f.become(ctx, rules.Rules{}, nil); err != nil {
		return fmt.Errorf("remove iptables chains %s…: %w", prefix, err)
	}
	if f.sets == nil {
		return nil
	}
	return errors.Join(f.sets.Destroy(peers4), f.sets.Destroy(peers6))
}

// become makes the tables hold what r asks for.
func (f *Filter) become(ctx context.Context, r rules.Rules, local func(netip.Addr) bool) (err error) {
	f.seen, f.valid, _, err = f.programs.become(ctx, nil, func(fam *family) map[string][]chain {
		return planOf(r, fam.v4, fam.cmd.randomFully, f.sets != nil, local)
	})
	return err
}

// syncSets makes the sets hold the peers, before rules use them.
func (f *Filter) syncSets(r rules.Rules) error {
	if f.sets == nil || r.Tunnel.Protocol == 0 {
		return nil
	}
	peers := peersByFamily(r.Tunnel.Peers)
	var err error
	for v4, name := range maps.All(map[bool]string{true: peers4, false: peers6}) {
		err = errors.Join(err, f.sets.Sync(name, v4, peers[v4]))
	}
	return err
}
