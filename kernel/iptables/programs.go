package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// programs keep the chains of one owner in three tables of one network
// namespace.
type programs struct {
	mine     owner
	tables   [3]string
	families []*family
	watch    *nft.Watch // nil: no nf_tables in this kernel
	runs     atomic.Int64
}

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

// open finds the programs of the calling thread's network namespace; close
// what it opened even if it fails.
func (p *programs) open(ctx context.Context, o Options) error {
	names := map[bool]string{true: "iptables", false: "ip6tables"}
	if o.IPTables != "" {
		names[true] = o.IPTables
	}
	if o.IP6Tables != "" {
		names[false] = o.IP6Tables
	}
	if w, err := nft.OpenWatch(); err == nil {
		p.watch = w
	} else if !errors.Is(err, rules.ErrNotSupported) {
		return err
	}
	for _, v4 := range []bool{true, false} {
		if !v4 && !ipv6() {
			continue
		}
		cmd, err := newCommand(ctx, names[v4], v4, &p.runs)
		if err == nil && cmd.nft && p.watch == nil {
			// What Debian calls iptables speaks to nf_tables alone.
			cmd, err = newCommand(ctx, names[v4]+"-legacy", v4, &p.runs)
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
		p.families = append(p.families, &family{v4, cmd, l})
	}
	return nil
}

// ipv6 tells whether the kernel has IPv6 at all.
func ipv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return err == nil
}

// Close lets go of the kernel; the rules stay.
func (p *programs) Close() error {
	var err error
	for _, fam := range p.families {
		err = errors.Join(err, fam.legacy.Close())
	}
	if p.watch != nil {
		err = errors.Join(err, p.watch.Close())
	}
	return err
}

// Runs is the number of programs run so far.
func (p *programs) Runs() int64 { return p.runs.Load() }

// Writes is the number of them that wrote.
func (p *programs) Writes() (n int64) {
	for _, fam := range p.families {
		n += fam.cmd.writes.Load()
	}
	return n
}

// rounds bounds how often become writes and looks again.
const rounds = 3

// plan says what chains the tables must hold for a family, by table.
type plan func(*family) map[string][]chain

// become makes the tables hold these chains and no others of the owner's, and
// looks again after it wrote, so that what somebody else did meanwhile is not
// missed. If others are busy with the tables it is not settled: look again at
// the next Sync. found tells whether the tables were at first other than was,
// which they were made once; nil: nobody asks.
func (p *programs) become(ctx context.Context, was, now plan) (seen state, settled, found bool, err error) {
	for round := range rounds {
		before, err := p.look()
		if err != nil {
			return state{}, false, found, err
		}
		wrote := false
		for _, fam := range p.families {
			want := now(fam)
			var former map[string][]chain
			if was != nil && round == 0 {
				former = was(fam)
			}
			for _, table := range p.tables {
				did, other, err := p.one(ctx, fam, table, former[table], want[table])
				if err != nil {
					return state{}, false, found, err
				}
				wrote, found = wrote || did, found || other
			}
		}
		if !wrote {
			return before, true, found, nil
		}
	}
	return state{}, false, found, nil
}

// one does one table of one family. other tells whether it was not as it was
// made once.
func (p *programs) one(ctx context.Context, f *family, table string, was, want []chain) (wrote, other bool, err error) {
	if len(want) == 0 {
		there, err := f.exists(p.watch, table)
		if err != nil || !there {
			return false, false, err
		}
	}
	have, err := f.cmd.save(ctx, table)
	if err != nil {
		return false, false, err
	}
	other = len(was) > 0 && script(table, p.mine, was, have) != ""
	todo := script(table, p.mine, want, have)
	if todo == "" {
		return false, other, nil
	}
	return true, other, f.cmd.restore(ctx, todo)
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

func (p *programs) look() (s state, err error) {
	for i, fam := range p.families {
		if fam.cmd.nft {
			if s.generation, err = p.watch.Generation(); err != nil {
				return s, err
			}
			continue
		}
		for j, table := range p.tables {
			if s.legacy[i][j], err = fam.legacy.digest(table); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}
