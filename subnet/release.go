package subnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/store"
)

// Release deletes every lease and host record of an identity: its host leaves
// the network for good. Nothing to delete is no error.
func Release(ctx context.Context, st store.Store, prefix, identity string) error {
	if identity == "" {
		return nil // that would be all of flannel's
	}
	var errs []error
	for _, under := range []string{SubnetsPrefix(prefix), HostsPrefix(prefix)} {
		_, err := store.UpdatePrefix(ctx, st, under, func(s store.Snapshot) (store.Txn, error) {
			var t store.Txn
			for _, kv := range s.KVs {
				if identityOf(kv) == identity {
					t.Delete = append(t.Delete, kv.Key)
				}
			}
			return t, nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("release %s: %w", under, err))
		}
	}
	return errors.Join(errs...)
}

// identityOf is what a lease or a host record says; "" if it says nothing.
func identityOf(kv store.KV) string {
	var v struct{ Identity string }
	if json.Unmarshal(kv.Value, &v) != nil {
		return ""
	}
	return v.Identity
}
