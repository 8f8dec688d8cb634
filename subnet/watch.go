package subnet

import (
	"context"
	"iter"
	"sync"

	"github.com/flanneld/flanneld/store"
)

// update is what one of the watches yielded.
type update struct {
	which int
	snap  store.Snapshot
	err   error
}

// Watch yields the cluster's state: for the first time when configuration,
// leases and hosts have all been listed, and again after every change,
// possibly skipping some. While the store cannot be reached it yields, once
// for each different reason, the last View (zero if there was none) with the
// error, and with nil again when all is known anew. A View that comes with an
// error is not to be acted upon. It ends when ctx does or when the consumer
// stops, and leaves nothing running.
//
// accept, if not nil, may refuse a configuration that is valid but cannot be
// used on this host, so that the one before stays in force with all that
// follows from it. It is asked once for each, from Watch's goroutine.
func Watch(ctx context.Context, st store.Store, prefix string, accept func(Config) error) iter.Seq2[View, error] {
	return func(yield func(View, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var watches sync.WaitGroup
		defer watches.Wait()
		defer cancel()
		updates := make(chan update)
		for which, key := range [...]string{configPrefix: ConfigKey(prefix), subnetsPrefix: SubnetsPrefix(prefix), hostsPrefix: HostsPrefix(prefix)} {
			watches.Go(func() {
				for snap, err := range st.Watch(ctx, key, nil) {
					select {
					case updates <- update{which, snap, err}:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		merge(ctx, newViewer(prefix, accept), updates, yield)
	}
}

// merge is the consumer's side of Watch.
func merge(ctx context.Context, w *viewer, updates <-chan update, yield func(View, error) bool) {
	var (
		errs  [3]error
		last  View
		shown string // text of the error last yielded
	)
	take := func(u update) {
		if errs[u.which] = u.err; u.err == nil {
			w.take(u.which, u.snap)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-updates:
			take(u)
		}
		for more := true; more; {
			select {
			case u := <-updates:
				take(u)
			default:
				more = false
			}
		}
		if err := first(errs); err != nil {
			if text := err.Error(); text != shown {
				shown = text
				if !yield(last, err) {
					return
				}
			}
			continue
		}
		if !w.complete() {
			continue
		}
		shown, last = "", w.view()
		if !yield(last, nil) {
			return
		}
	}
}

func first(errs [3]error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
