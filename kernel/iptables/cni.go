package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/flanneld/flanneld/kernel/iptables/cnichain"
	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/nft"
)

// CleanupCNI removes what cnichain left, through whichever iptables.
// It runs no program where nothing was left.
func CleanupCNI(ctx context.Context) error {
	b, err := openBackends()
	if err != nil {
		return err
	}
	var chains []nft.Chain
	if b.watch != nil {
		chains, err = b.watch.Chains()
	}
	errs := []error{err}
	for _, x := range b.all {
		there, err := x.has(cnichain.Table, cnichain.Prefix, chains)
		if err == nil && there {
			err = b.dropChains(ctx, x)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, b.Close())...)
}

func (b *backends) dropChains(ctx context.Context, x *backend) error {
	cmd, err := b.command(ctx, x)
	if err != nil {
		return err
	}
	have, err := cmd.save(ctx, cnichain.Table)
	if err != nil {
		return err
	}
	var flush, remove strings.Builder
	for name := range have.Policy {
		if strings.HasPrefix(name, cnichain.Prefix) {
			fmt.Fprintf(&flush, "-F %s\n", name)
			fmt.Fprintf(&remove, "-X %s\n", name)
		}
	}
	for name, rules := range have.Rules {
		for _, text := range rules {
			if !strings.HasPrefix(name, cnichain.Prefix) && strings.HasPrefix(table.Target(text), cnichain.Prefix) {
				fmt.Fprintf(&flush, "-D %s %s\n", name, text)
			}
		}
	}
	return cmd.restore(ctx, "*"+cnichain.Table+"\n"+flush.String()+remove.String()+"COMMIT\n")
}

// NATWatch tells whether somebody changed the table nat of iptables-legacy,
// without running a program. It belongs to the network namespace it was opened
// in, where its methods must be called too, and is not safe for concurrent use.
type NATWatch struct{ families [2]*legacy }

// WatchNAT returns a watch on the calling thread's network namespace.
func WatchNAT() (*NATWatch, error) {
	w := &NATWatch{}
	for i, v4 := range []bool{true, false} {
		var err error
		if w.families[i], err = openLegacy(v4); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// Digest is a number that changes with every change of the table's rules, of
// either family.
func (w *NATWatch) Digest() (uint64, error) {
	var both uint64
	for _, l := range w.families {
		d, err := l.digest(cnichain.Table)
		if err != nil {
			return 0, err
		}
		both = both*31 + d
	}
	return both, nil
}

// Close frees the files.
func (w *NATWatch) Close() error {
	var errs []error
	for _, l := range w.families {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}
