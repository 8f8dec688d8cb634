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
	"os"
	"sync/atomic"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft"
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
	families []*family
	sets     *link.IPSets // nil: one rule a peer
	watch    *nft.Watch   // nil: no nf_tables in this kernel
	runs     atomic.Int64

	last  rules.Rules
	valid bool // the kernel held last when it looked like seen
	seen  state
}

var _ rules.Filter = (*Filter)(nil)

// family is the tables of one address family.
type family struct {
	v4     bool
	cmd    *command
	legacy *legacy
}

// state is what the kernel tells without a program being run; equal states
// mean that nobody changed anything in between.
type state struct {
	generation uint32
	legacy     [2][3]uint64
}

// tables that the filter has chains in.
func tables() [3]string { return [3]string{"raw", "mangle", "nat"} }

// New returns the filter of the calling thread's network namespace. It
// returns rules.ErrNotSupported if iptables is not installed; ip6tables may
// be missing where IPv6 is switched off.
func New(ctx context.Context, o Options) (*Filter, error) {
	f := &Filter{}
	if err := f.open(ctx, o); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Filter) open(ctx context.Context, o Options) error {
	names := map[bool]string{true: "iptables", false: "ip6tables"}
	if o.IPTables != "" {
		names[true] = o.IPTables
	}
	if o.IP6Tables != "" {
		names[false] = o.IP6Tables
	}
	if w, err := nft.OpenWatch(); err == nil {
		f.watch = w
	} else if !errors.Is(err, rules.ErrNotSupported) {
		return err
	}
	for _, v4 := range []bool{true, false} {
		if !v4 && !ipv6() {
			continue
		}
		cmd, err := newCommand(ctx, names[v4], v4, &f.runs)
		if err == nil && cmd.nft && f.watch == nil {
			// What Debian calls iptables speaks to nf_tables alone.
			cmd, err = newCommand(ctx, names[v4]+"-legacy", v4, &f.runs)
		}
		if missing(err) {
			return fmt.Errorf("%w: %w", rules.ErrNotSupported, err)
		}
		if err != nil {
			return err
		}
		l, err := openLegacy(v4)
		if err != nil {
			return err
		}
		f.families = append(f.families, &family{v4, cmd, l})
	}
	if !o.NoSets {
		f.sets, _ = link.OpenIPSets() // without ipset: one rule a peer
	}
	return nil
}

// ipv6 tells whether the kernel has IPv6 at all.
func ipv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return err == nil
}

// Close lets go of the kernel; the rules stay.
func (f *Filter) Close() error {
	var err error
	for _, fam := range f.families {
		err = errors.Join(err, fam.legacy.Close())
	}
	if f.watch != nil {
		err = errors.Join(err, f.watch.Close())
	}
	if f.sets != nil {
		err = errors.Join(err, f.sets.Close())
	}
	return err
}

// Runs is the number of programs run so far.
func (f *Filter) Runs() int64 { return f.runs.Load() }

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

// rounds bounds how often Sync writes and looks again.
const rounds = 3

// become makes the tables hold what r asks for, and looks again after it
// wrote, so that what somebody else did meanwhile is not missed.
func (f *Filter) become(ctx context.Context, r rules.Rules, local func(netip.Addr) bool) error {
	for range rounds {
		before, err := f.look()
		if err != nil {
			return err
		}
		wrote := false
		for _, fam := range f.families {
			want := planOf(r, fam.v4, fam.cmd.randomFully, f.sets != nil, local)
			for _, table := range tables() {
				did, err := fam.become(ctx, f.watch, table, want[table])
				if err != nil {
					return err
				}
				wrote = wrote || did
			}
		}
		if !wrote {
			f.valid, f.seen = true, before
			return nil
		}
	}
	return nil // others are busy with the tables: look again at the next Sync
}

// become makes one table hold these chains of ours and no others.
func (f *family) become(ctx context.Context, w *nft.Watch, table string, want []chain) (wrote bool, err error) {
	if len(want) == 0 {
		there, err := f.exists(w, table)
		if err != nil || !there {
			return false, err
		}
	}
	have, err := f.cmd.save(ctx, table)
	if err != nil {
		return false, err
	}
	todo := script(table, want, have)
	if todo == "" {
		return false, nil
	}
	return true, f.cmd.restore(ctx, todo)
}

// exists tells whether the table is there, without making it.
func (f *family) exists(w *nft.Watch, table string) (bool, error) {
	if f.cmd.nft {
		if w == nil {
			return false, nil
		}
		id, err := w.Table(f.nft(), table)
		return id != 0, err
	}
	id, err := f.legacy.digest(table)
	return id != 0, err
}

func (f *family) nft() nft.Family {
	if f.v4 {
		return nft.IPv4
	}
	return nft.IPv6
}

func (f *Filter) look() (s state, err error) {
	if f.watch != nil {
		if s.generation, err = f.watch.Generation(); err != nil {
			return s, err
		}
	}
	for i, fam := range f.families {
		for j, table := range tables() {
			if s.legacy[i][j], err = fam.legacy.digest(table); err != nil {
				return s, err
			}
		}
	}
	return s, nil
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
