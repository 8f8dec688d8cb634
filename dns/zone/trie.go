package zone

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// trie is an immutable map: a hash array mapped trie (Bagwell, 2001) with 64
// ways. A changed one shares with the former all but the few branches on the
// way to the change, and 100,000 keys are three branches deep.
type trie[K comparable, V any] struct {
	root *branch[K, V]
}

// branch holds for each of 64 values of the next 6 bits of the hash an entry,
// another branch or nothing. Behind the last bits, where only keys with equal
// hashes come, entries is a plain list.
type branch[K comparable, V any] struct {
	made       *edit // by whom; only that edit may write to it
	has, leads uint64
	entries    []entry[K, V]   // one for each bit in has
	branches   []*branch[K, V] // one for each bit in leads
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

const (
	ways  = 6  // bits of the hash in each branch
	spent = 66 // the first shift at which none are left
)

// edit is one build: what it made it may change until it is done.
type edit struct {
	seed   maphash.Seed
	copied int // entries and branches that were copied from earlier builds
}

// get finds the key with this hash of which is says that it is the one.
func (t trie[K, V]) get(hash uint64, is func(K) bool) (value V, ok bool) {
	b := t.root
	for shift := 0; b != nil; shift += ways {
		if shift >= spent {
			for i := range b.entries {
				if is(b.entries[i].key) {
					return b.entries[i].value, true
				}
			}
			return value, false
		}
		bit := uint64(1) << (hash >> shift & (1<<ways - 1))
		if b.has&bit != 0 {
			if e := &b.entries[rank(b.has, bit)]; is(e.key) {
				return e.value, true
			}
			return value, false
		}
		if b.leads&bit == 0 {
			return value, false
		}
		b = b.branches[rank(b.leads, bit)]
	}
	return value, false
}

// rank is where the entry of bit is in the list that set tells of.
func rank(set, bit uint64) int { return bits.OnesCount64(set & (bit - 1)) }

// put returns t with value at key. hash is that of key, hashOf of any.
func (t trie[K, V]) put(e *edit, hash uint64, key K, value V, hashOf func(K) uint64) trie[K, V] {
	return trie[K, V]{put(t.root, e, 0, hash, entry[K, V]{key, value}, hashOf)}
}

// delete returns t without key, which may be absent.
func (t trie[K, V]) delete(e *edit, hash uint64, key K) trie[K, V] {
	b := remove(t.root, e, 0, hash, key)
	if b != nil && len(b.entries)+len(b.branches) == 0 {
		b = nil
	}
	return trie[K, V]{b}
}

func (t trie[K, V]) empty() bool { return t.root == nil }

// own returns b if e made it, else a copy that e may write to.
func (b *branch[K, V]) own(e *edit) *branch[K, V] {
	if b == nil {
		return &branch[K, V]{made: e}
	}
	if b.made == e {
		return b
	}
	e.copied += len(b.entries) + len(b.branches)
	return &branch[K, V]{made: e, has: b.has, leads: b.leads, entries: slices.Clone(b.entries), branches: slices.Clone(b.branches)}
}

func put[K comparable, V any](b *branch[K, V], e *edit, shift int, hash uint64, n entry[K, V], hashOf func(K) uint64) *branch[K, V] {
	b = b.own(e)
	if shift >= spent {
		if i := slices.IndexFunc(b.entries, func(o entry[K, V]) bool { return o.key == n.key }); i >= 0 {
			b.entries[i] = n
		} else {
			b.entries = append(b.entries, n)
		}
		return b
	}
	bit := uint64(1) << (hash >> shift & (1<<ways - 1))
	switch {
	case b.leads&bit != 0:
		i := rank(b.leads, bit)
		b.branches[i] = put(b.branches[i], e, shift+ways, hash, n, hashOf)
	case b.has&bit == 0:
		b.entries = insert(b.entries, rank(b.has, bit), n)
		b.has |= bit
	default:
		i := rank(b.has, bit)
		old := b.entries[i]
		if old.key == n.key {
			b.entries[i] = n
			break
		}
		below := put(nil, e, shift+ways, hashOf(old.key), old, hashOf)
		below = put(below, e, shift+ways, hash, n, hashOf)
		b.entries = slices.Delete(b.entries, i, i+1)
		b.has &^= bit
		b.branches = insert(b.branches, rank(b.leads, bit), below)
		b.leads |= bit
	}
	return b
}

// insert is slices.Insert with little space left over: there are many of
// these lists.
func insert[T any](list []T, i int, v T) []T {
	if len(list) == cap(list) {
		list = append(make([]T, 0, len(list)+1+len(list)/8), list...)
	}
	return slices.Insert(list, i, v)
}

func remove[K comparable, V any](b *branch[K, V], e *edit, shift int, hash uint64, key K) *branch[K, V] {
	if b == nil {
		return nil
	}
	if shift >= spent {
		i := slices.IndexFunc(b.entries, func(o entry[K, V]) bool { return o.key == key })
		if i < 0 {
			return b
		}
		b = b.own(e)
		b.entries = slices.Delete(b.entries, i, i+1)
		return b
	}
	bit := uint64(1) << (hash >> shift & (1<<ways - 1))
	if b.has&bit != 0 {
		i := rank(b.has, bit)
		if b.entries[i].key != key {
			return b
		}
		b = b.own(e)
		b.entries = slices.Delete(b.entries, i, i+1)
		b.has &^= bit
		return b
	}
	if b.leads&bit == 0 {
		return b
	}
	i := rank(b.leads, bit)
	below := remove(b.branches[i], e, shift+ways, hash, key)
	if below == b.branches[i] && len(below.branches)+len(below.entries) > 1 {
		return b
	}
	b = b.own(e)
	b.branches[i] = below
	switch {
	case len(below.branches) > 0 || len(below.entries) > 1:
	case len(below.entries) == 1: // needs no branch of its own any more
		b.branches = slices.Delete(b.branches, i, i+1)
		b.leads &^= bit
		b.entries = insert(b.entries, rank(b.has, bit), below.entries[0])
		b.has |= bit
	default:
		b.branches = slices.Delete(b.branches, i, i+1)
		b.leads &^= bit
	}
	return b
}
