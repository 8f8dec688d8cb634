package store

import "hash/maphash"

// Parsing is the part of Watch that every implementation shares: parse's
// results take the place of values. It belongs to one Watch.
type Parsing struct {
	parse func(KV) any
	seed  maphash.Seed
}

// NewParsing is what a Watch with this function needs; nil keeps values.
func NewParsing(parse func(KV) any) Parsing { return Parsing{parse, maphash.MakeSeed()} }

// Reuses tells whether snapshots are valid until the next only.
func (p Parsing) Reuses() bool { return p.parse != nil }

// Take puts what parse makes of kvs in place of their values. What is the same
// write as one that was taken before is not parsed again. Both lists are
// sorted by key.
func (p Parsing) Take(kvs, before []KV) {
	if p.parse == nil {
		return
	}
	for i, kv := range kvs {
		sum := maphash.Bytes(p.seed, kv.Value)
		for len(before) > 0 && before[0].Key < kv.Key {
			before = before[1:]
		}
		if len(before) > 0 && before[0].Sum == sum && before[0].sameWrite(kv) {
			kvs[i] = before[0]
			continue
		}
		kvs[i].Parsed, kvs[i].Sum, kvs[i].Value = p.parse(kv), sum, nil
	}
}

// sameWrite compares all but the values.
func (kv KV) sameWrite(o KV) bool {
	return kv.Key == o.Key && kv.ModRevision == o.ModRevision && kv.CreateRevision == o.CreateRevision && kv.Session == o.Session
}
