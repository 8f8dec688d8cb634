package forward

import (
	"hash/maphash"
	"sync"
	"time"
	"unsafe"
)

const (
	shards   = 32
	overhead = int(unsafe.Sizeof(entry{})) + 48 // of an entry beside its data: itself, its place in map and ring
	hotAfter = 3                                // times that an entry was asked for until it is hot
)

// key is what distinguishes outside questions.
type key struct {
	name        string // in wire format, lower case
	kind, class uint16
	flags       uint8 // keyDO, keyCD
}

func keyOf(q Query) key {
	return key{name: string(q.Name), kind: q.Type, class: q.Class, flags: flagsOf(&q)}
}

func flagsOf(q *Query) (flags uint8) {
	if q.DO {
		flags = keyDO
	}
	if q.Msg[3]&flagCD != 0 {
		flags |= keyCD
	}
	return flags
}

// cache is entries by key within a bound of memory. What is to make room is
// found by a clock's hand: entries that were asked for since it passed stay.
type cache struct {
	seed   maphash.Seed
	start  time.Time
	limit  int // bytes of a shard
	shards [shards]shard
}

type shard struct {
	mu    sync.Mutex // guards the shard's own fields, not what is in an entry
	by    map[uint64]*entry
	ring  []*entry
	hand  int
	bytes int
	stats CacheStats
	_     [64]byte // the next shard's lock is on another cache line
}

// state is what an entry is good for.
type state uint8

const (
	missing state = iota
	expired       // its time has ended; it may serve if nothing better is to be had
	stale         // its time has ended, and nothing better is to be had
	aging         // good, and the caller is to see that it is asked for again
	fresh
)

func (c *cache) init(bytes int) {
	c.seed, c.start = maphash.MakeSeed(), time.Now()
	c.limit = bytes / shards
	for i := range c.shards {
		c.shards[i].by = map[uint64]*entry{}
	}
}

// now is the cache's clock in nanoseconds.
func (c *cache) now() int64 { return int64(time.Since(c.start)) }

func (c *cache) hash(name []byte, kind, class uint16, flags uint8) uint64 {
	rest := uint64(kind)<<32 | uint64(class)<<16 | uint64(flags)
	return maphash.Bytes(c.seed, name) ^ rest*0x9e3779b97f4a7c15
}

func hashed(c *cache, q Query) uint64 { return c.hash(q.Name, q.Type, q.Class, flagsOf(&q)) }

// hit looks for the reply to q and counts the attempt. gone: no upstream
// answers.
func (c *cache) hit(hash uint64, q Query, now int64, gone bool) (*entry, state) {
	sh := &c.shards[hash%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.by[hash]
	if e == nil || !e.is(&q, flagsOf(&q)) {
		sh.stats.Misses++
		return nil, missing
	}
	s := e.state(now, gone)
	if s == expired {
		sh.stats.Misses++
		return e, s
	}
	if e.negative {
		sh.stats.HitsDenial++
	} else {
		sh.stats.HitsSuccess++
	}
	if s == stale {
		sh.stats.Stale++
	}
	e.asked.Add(1)
	if !e.visited.Load() {
		e.visited.Store(true)
	}
	return e, s
}

// state tells what e is good for now.
func (e *entry) state(now int64, gone bool) state {
	left := e.expires - now
	if left <= 0 {
		if e.useful(now) && (gone || now < e.staleUntil.Load()) {
			return stale
		}
		return expired
	}
	window := max(int64(e.ttl)*int64(time.Second)/10, int64(time.Second))
	if left < window && e.ttl > 2 && e.asked.Load() >= hotAfter && e.prefetching.CompareAndSwap(false, true) {
		return aging
	}
	return fresh
}

// get returns the entry of k, whatever its age, without counting.
func (c *cache) get(k key) *entry {
	q := Query{Msg: make([]byte, headerLen), Name: []byte(k.name), Type: k.kind, Class: k.class}
	hash := c.hash(q.Name, k.kind, k.class, k.flags)
	sh := &c.shards[hash%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e := sh.by[hash]; e != nil && e.is(&q, k.flags) {
		return e
	}
	return nil
}

// put keeps e in the place of the entry with its key, if it is not larger than
// a quarter of a shard.
func (c *cache) put(e *entry) {
	k := e.key()
	e.hash = c.hash(e.name(), k.kind, k.class, k.flags)
	sh := &c.shards[e.hash%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if former := sh.by[e.hash]; former != nil {
		sh.remove(former)
	}
	if e.cost() > c.limit/4 {
		return
	}
	for sh.bytes+e.cost() > c.limit {
		sh.evict()
	}
	e.slot = int32(len(sh.ring))
	sh.ring = append(sh.ring, e)
	sh.by[e.hash] = e
	sh.count(e, 1)
}

// cost is the memory that an entry takes, nearly.
func (e *entry) cost() int { return cap(e.data) + overhead }

func (sh *shard) count(e *entry, by int) {
	sh.bytes += by * e.cost()
	if e.negative {
		sh.stats.EntriesDenial += by
	} else {
		sh.stats.EntriesSuccess += by
	}
}

// remove takes e out; the last of the ring takes its place there.
func (sh *shard) remove(e *entry) {
	last := len(sh.ring) - 1
	sh.ring[e.slot] = sh.ring[last]
	sh.ring[e.slot].slot = e.slot
	sh.ring[last] = nil
	sh.ring = sh.ring[:last]
	delete(sh.by, e.hash)
	sh.count(e, -1)
}

// evict removes the first entry from the hand on that nobody asked for since
// the hand passed it.
func (sh *shard) evict() {
	for {
		if sh.hand >= len(sh.ring) {
			sh.hand = 0
		}
		e := sh.ring[sh.hand]
		if !e.visited.Swap(false) {
			sh.remove(e)
			sh.stats.Evictions++
			return
		}
		sh.hand++
	}
}

// sweep removes what is too old even for when nothing better is to be had.
func (c *cache) sweep() {
	now := c.now()
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		for n := len(sh.ring) - 1; n >= 0; n-- {
			if e := sh.ring[n]; now >= e.expires && !e.useful(now) {
				sh.remove(e)
			}
		}
		if len(sh.ring) == 0 && sh.stats.Evictions+sh.stats.HitsSuccess > 0 {
			sh.by, sh.ring = map[uint64]*entry{}, nil // maps do not shrink
		}
		sh.mu.Unlock()
	}
}
