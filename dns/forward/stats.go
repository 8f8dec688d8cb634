package forward

import (
	"maps"
	"net/netip"
	"sync/atomic"
	"time"
)

// Stats is a snapshot of counters; they count from the start on.
type Stats struct {
	Cache      CacheStats
	Prefetches uint64          // hot names asked for again before their time ended
	Retries    uint64          // questions sent to an upstream once more
	Rejects    uint64          // questions refused because too many were under way
	Upstreams  []UpstreamStats // of those in use, in order
}

// CacheStats counts as CoreDNS does: success is an answer with data, denial is
// no such name, no data or a failure.
type CacheStats struct {
	HitsSuccess, HitsDenial, Misses uint64
	Stale                           uint64 // answers given although their time had ended; those from the cache are hits, too
	Evictions                       uint64
	EntriesSuccess, EntriesDenial   int
	Bytes                           int
}

// Buckets are the upper bounds of a Histogram's buckets.
func Buckets() []time.Duration {
	b := make([]time.Duration, bucketCount)
	for i := range b {
		b[i] = firstBucket << i
	}
	return b
}

const (
	firstBucket = 250 * time.Microsecond // as CoreDNS's
	bucketCount = 16
)

// Histogram counts durations.
type Histogram struct {
	Buckets [bucketCount]uint64 // not cumulated; longer ones are in Count only
	Count   uint64
	Sum     time.Duration
}

// UpstreamStats is what became of the questions to one upstream.
type UpstreamStats struct {
	Addr          netip.AddrPort
	Down          bool              // at present
	Replies       map[int]Histogram // by rcode
	Failures      uint64            // times that it did not reply when it should have
	ProbeFailures uint64
}

// counts are the counters that belong to no upstream and no shard.
type counts struct {
	prefetches, retries, refused, stale atomic.Uint64
}

// observe counts a reply. The caller holds the upstream's lock.
func (s *UpstreamStats) observe(d time.Duration, rcode int) {
	if s.Replies == nil {
		s.Replies = map[int]Histogram{}
	}
	h := s.Replies[rcode]
	h.Count++
	h.Sum += d
	for i := range h.Buckets {
		if d <= firstBucket<<i {
			h.Buckets[i]++
			break
		}
	}
	s.Replies[rcode] = h
}

// Stats returns the counters as they are now.
func (f *Forwarder) Stats() Stats {
	s := Stats{
		Prefetches: f.counts.prefetches.Load(),
		Retries:    f.counts.retries.Load(),
		Rejects:    f.counts.refused.Load(),
	}
	for i := range f.cache.shards {
		s.Cache.add(f.cache.shards[i].snapshot())
	}
	s.Cache.Stale += f.counts.stale.Load()
	for _, u := range f.ups.Load().list {
		u.mu.Lock()
		us := u.stats
		us.Down, us.Replies = u.down, maps.Clone(us.Replies)
		u.mu.Unlock()
		s.Upstreams = append(s.Upstreams, us)
	}
	return s
}

func (sh *shard) snapshot() CacheStats {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.stats
	s.Bytes = sh.bytes
	return s
}

func (c *CacheStats) add(o CacheStats) {
	c.HitsSuccess += o.HitsSuccess
	c.HitsDenial += o.HitsDenial
	c.Misses += o.Misses
	c.Stale += o.Stale
	c.Evictions += o.Evictions
	c.EntriesSuccess += o.EntriesSuccess
	c.EntriesDenial += o.EntriesDenial
	c.Bytes += o.Bytes
}
