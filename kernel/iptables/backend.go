package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// backends reads the tables of iptables-nft and iptables-legacy, both
// families, in one network namespace: a host may use both at once, and not
// through the program that is called iptables.
type backends struct {
	watch *nft.Watch // nil: no nf_tables
	all   []*backend
	runs  atomic.Int64
}

// errNotInstalled says that there are rules and no program that made them.
var errNotInstalled = errors.New("has rules but is not installed")

type backend struct {
	v4, nft bool
	legacy  *legacy  // nil if nft
	cmd     *command // nil until needed
}

func openBackends() (*backends, error) {
	b := &backends{}
	w, err := nft.OpenWatch()
	switch {
	case err == nil:
		b.watch = w
		b.all = []*backend{{v4: true, nft: true}, {v4: false, nft: true}}
	case !errors.Is(err, rules.ErrNotSupported):
		return nil, err
	}
	for _, v4 := range []bool{true, false} {
		l, err := openLegacy(v4)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.all = append(b.all, &backend{v4: v4, legacy: l})
	}
	return b, nil
}

// Close frees sockets and files.
func (b *backends) Close() error {
	var err error
	if b.watch != nil {
		err = b.watch.Close()
	}
	for _, x := range b.all {
		if x.legacy != nil {
			err = errors.Join(err, x.legacy.Close())
		}
	}
	return err
}

func (x *backend) family() nft.Family {
	if x.v4 {
		return nft.IPv4
	}
	return nft.IPv6
}

// command returns the programs for this backend.
func (b *backends) command(ctx context.Context, x *backend) (*command, error) {
	if x.cmd != nil {
		return x.cmd, nil
	}
	base := "ip6tables"
	if x.v4 {
		base = "iptables"
	}
	suffix := "-legacy"
	if x.nft {
		suffix = "-nft"
	}
	for _, name := range []string{base + suffix, base} {
		cmd, err := newCommand(ctx, name, x.v4, &b.runs)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if cmd.nft == x.nft {
			x.cmd = cmd
			return cmd, nil
		}
	}
	return nil, fmt.Errorf("%s%s: %w (Debian package iptables)", base, suffix, errNotInstalled)
}

// Cleanup removes what a Filter and a Balancer of this package left, through
// whichever iptables. It runs no program where nothing was left. It does not touch what
// Forward keeps.
func Cleanup(ctx context.Context) error {
	b, err := openBackends()
	if err != nil {
		return err
	}
	err = errors.Join(b.cleanup(ctx, anyOfOurs, "raw", "mangle", "nat"), b.cleanup(ctx, ofServices, "filter"))
	if sets, e := link.OpenIPSets(); e == nil {
		err = errors.Join(err, sets.Destroy(peers4), sets.Destroy(peers6), sets.Close())
	}
	return errors.Join(err, b.Close())
}

func (b *backends) cleanup(ctx context.Context, mine owner, tables ...string) error {
	var chains []nft.Chain
	var err error
	if b.watch != nil {
		if chains, err = b.watch.Chains(); err != nil {
			return err
		}
	}
	var errs error
	for _, x := range b.all {
		for _, table := range tables {
			ours, err := x.has(table, prefix, chains)
			if err == nil && ours {
				err = b.empty(ctx, x, mine, table)
			}
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// has tells whether a table has chains whose names begin so.
func (x *backend) has(table, begin string, chains []nft.Chain) (bool, error) {
	if !x.nft {
		return x.legacy.mentions(table, begin)
	}
	for _, c := range chains {
		if c.Family == x.family() && c.Table == table && strings.HasPrefix(c.Name, begin) {
			return true, nil
		}
	}
	return false, nil
}

// empty removes everything of an owner's from a table.
func (b *backends) empty(ctx context.Context, x *backend, mine owner, table string) error {
	cmd, err := b.command(ctx, x)
	if err != nil {
		return err
	}
	have, err := cmd.save(ctx, table)
	if err != nil {
		return err
	}
	if todo := script(table, mine, nil, have); todo != "" {
		return cmd.restore(ctx, todo)
	}
	return nil
}
