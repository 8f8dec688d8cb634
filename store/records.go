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

// WatchRecords is Watch with every key parsed once for each revision. An error
// of the store comes with the last Records, as Watch does it. parse is called
// from the consumer's goroutine and gets complete keys.
func WatchRecords[T any](ctx context.Context, st Store, prefix string, parse func(KV) (*T, error)) iter.Seq2[Records[T], error] {
	return func(yield func(Records[T], error) bool) {
		p := parser[T]{parse: parse}
		for s, err := range st.Watch(ctx, prefix) {
			if err == nil {
				p.take(s)
			}
			if !yield(p.last, err) {
				return
			}
		}
	}
}

// parser remembers what it parsed.
type parser[T any] struct {
	parse  func(KV) (*T, error)
	parsed []parsedKV[T] // by key
	last   Records[T]
}

type parsedKV[T any] struct {
	key      string
	revision int64
	value    *T
	err      error
}

// take parses what is new. A key and its revision tell whether it is known,
// but only within an epoch: a restored store numbers other writes with the
// same revisions.
func (p *parser[T]) take(s Snapshot) {
	old := p.parsed
	if s.Epoch != p.last.Epoch {
		old = nil
	}
	p.parsed = make([]parsedKV[T], 0, len(s.KVs))
	p.last = Records[T]{Values: make([]*T, 0, len(s.KVs)), Epoch: s.Epoch, Revision: s.Revision}
	for _, kv := range s.KVs {
		for len(old) > 0 && old[0].key < kv.Key { // deleted
			old = old[1:]
		}
		if len(old) == 0 || old[0].key != kv.Key || old[0].revision != kv.ModRevision {
			v, err := p.parse(kv)
			p.parsed = append(p.parsed, parsedKV[T]{kv.Key, kv.ModRevision, v, err})
		} else {
			p.parsed = append(p.parsed, old[0])
		}
		if r := p.parsed[len(p.parsed)-1]; r.err == nil {
			p.last.Values = append(p.last.Values, r.value)
		} else {
			p.last.Problems = append(p.last.Problems, r.err)
		}
	}
}
