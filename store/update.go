package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Update is the compare-and-swap loop on one key: it reads key (the zero KV
// with only Key set if it is absent), lets change make a Txn of what it
// sees, and commits that on condition that the key was not written since. On
// ErrConflict it begins again, until ctx ends.
//
// An error of change, and any error of the store but ErrConflict, ends it. A
// Txn that writes nothing is not committed: the revision is then 0.
func Update(ctx context.Context, s Store, key string, change func(KV) (Txn, error)) (revision int64, err error) {
	return swap(ctx, s, key, func() (Txn, error) {
		kv, err := s.Get(ctx, key)
		if err != nil {
			return Txn{}, err
		}
		t, err := change(kv)
		t.If = append(t.If, Cond{Key: key, ModRevision: kv.ModRevision})
		return t, err
	})
}

// UpdatePrefix is Update for decisions that depend on every key under a
// prefix: the Txn is committed on condition that none was written since they
// were listed.
func UpdatePrefix(ctx context.Context, s Store, prefix string, change func(Snapshot) (Txn, error)) (revision int64, err error) {
	return swap(ctx, s, prefix, func() (Txn, error) {
		snap, err := s.List(ctx, prefix)
		if err != nil {
			return Txn{}, err
		}
		t, err := change(snap)
		t.If = append(t.If, Cond{Key: prefix, Prefix: true, ModRevision: snap.Revision})
		return t, err
	})
}

// swap is the one loop: next reads and decides, Commit checks.
func swap(ctx context.Context, s Store, what string, next func() (Txn, error)) (int64, error) {
	pause := Backoff{Min: 4 * time.Millisecond, Max: 500 * time.Millisecond}
	for {
		t, err := next()
		if err != nil {
			return 0, err
		}
		if len(t.Put) == 0 && len(t.Delete) == 0 {
			return 0, nil
		}
		revision, err := s.Commit(ctx, t)
		if !errors.Is(err, ErrConflict) {
			return revision, err
		}
		if pause.Wait(ctx) != nil {
			return 0, fmt.Errorf("update %s: %w until %w", what, ErrConflict, context.Cause(ctx))
		}
	}
}
