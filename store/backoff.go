package store

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the project's one way to wait between attempts: each pause is
// about twice as long as the one before, with jitter, so that many hosts that
// failed together do not try again together. The zero value waits 100 ms to
// 10 s. It belongs to one goroutine.
type Backoff struct {
	Min time.Duration // the first pause at most; 0: 100 ms
	Max time.Duration // no pause is longer; 0: 10 s

	last time.Duration
}

// Next returns the pause that is due, between half of it and all of it, and
// doubles the one after.
func (b *Backoff) Next() time.Duration {
	low, high := b.Min, b.Max
	if low <= 0 {
		low = 100 * time.Millisecond
	}
	if high <= 0 {
		high = 10 * time.Second
	}
	b.last = min(max(2*b.last, low), high)
	return b.last/2 + rand.N(b.last/2+1)
}

// Wait pauses for Next, or until ctx ends: then it returns the cause.
func (b *Backoff) Wait(ctx context.Context) error {
	t := time.NewTimer(b.Next())
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Reset makes the next pause the shortest again; to be called after a success.
func (b *Backoff) Reset() { b.last = 0 }
