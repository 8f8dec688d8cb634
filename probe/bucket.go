package probe

import (
	"context"
	"sync"
	"time"
)

// What all looks together may send.
const (
	perSecond = 10
	burst     = 40
	// exchangeCost is what an exchange counts for.
	exchangeCost = 12
)

// bucket bounds what is sent. Looks that run at the same time share it.
type bucket struct {
	mu     sync.Mutex // guards what is below
	tokens float64    // negative: promised to those who wait
	at     time.Time
}

func newBucket(now time.Time) *bucket { return &bucket{tokens: burst, at: now} }

// take waits until a packet may be sent.
func (b *bucket) take(ctx context.Context) error {
	b.mu.Lock()
	b.fill()
	b.tokens--
	wait := time.Duration(max(0, -b.tokens) * float64(time.Second) / perSecond)
	b.mu.Unlock()
	if wait == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try says whether n packets may be sent now, and leaves enough for the looks
// that begin at the same time.
func (b *bucket) try(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	if b.tokens < float64(n+parallel) {
		return false
	}
	b.tokens -= float64(n)
	return true
}

func (b *bucket) fill() {
	now := time.Now()
	b.tokens = min(burst, b.tokens+now.Sub(b.at).Seconds()*perSecond)
	b.at = now
}
