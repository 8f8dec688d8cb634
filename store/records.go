package store

import (
	"context"
	"iter"
)

// Records is what the keys under a prefix mean, parsed. It is immutable.
type Records[T any] struct {
	// Values of the keys that could be parsed, sorted by key. A value keeps its
	// pointer as long as nobody writes its key: what did not change is found
	// by comparing pointers.
	Values []*T
	// Problems are the keys that were skipped, one error each, stable text.
	Problems []error
	// Of the Snapshot that it was made from.
	Epoch    Epoch
	Revision int64
}

// WatchRecords is Watch with parse: it is called from the consumer's
// goroutine, gets complete keys, and must keep nothing of kv.Value. An error of
// the store comes with the last Records, as Watch does it.
func WatchRecords[T any](ctx context.Context, st Store, prefix string, parse func(KV) (*T, error)) iter.Seq2[Records[T], error] {
	return func(yield func(Records[T], error) bool) {
		either := func(kv KV) any {
			v, err := parse(kv)
			if err != nil {
				return err
			}
			return v
		}
		var last Records[T]
		for s, err := range st.Watch(ctx, prefix, either) {
			if err == nil {
				last = recordsOf[T](s)
			}
			if !yield(last, err) {
				return
			}
		}
	}
}

// recordsOf lists what was parsed, a *T or an error each.
func recordsOf[T any](s Snapshot) Records[T] {
	r := Records[T]{Values: make([]*T, 0, len(s.KVs)), Epoch: s.Epoch, Revision: s.Revision}
	for _, kv := range s.KVs {
		switch v := kv.Parsed.(type) {
		case *T:
			r.Values = append(r.Values, v)
		case error:
			r.Problems = append(r.Problems, v)
		}
	}
	return r
}
