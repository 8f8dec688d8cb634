// Package store is the state that the hosts of a cluster share, seen as typed
// snapshots of key prefixes.
//
// Implementations live in folders of their own (etcd, mem) and each passes
// the contract in storetest.
package store

import (
	"context"
	"errors"
	"iter"
	"time"
)

// SessionID names a lease of the store: keys bound to it vanish when it ends.
// Zero means "bound to nothing".
type SessionID int64

// KV is one key as the store holds it.
type KV struct {
	Key   string
	Value []byte // nil if Parsed is in its place
	// Parsed is what the parse function of a Watch made of the value, and Sum
	// stands for the value in comparisons within that Watch.
	Parsed any
	Sum    uint64
	// ModRevision is the store's revision of the last write of this key.
	ModRevision int64
	// CreateRevision is the revision at which the key came to be.
	CreateRevision int64
	Session        SessionID
}

// Epoch names one life of the store's data. It changes when the store was
// restored from a backup or wiped: another cluster id, or a revision that
// went backwards. Epochs are only comparable within one process.
type Epoch uint64

// Snapshot is everything under one prefix at one revision. It is immutable:
// receivers share it and must not write to it.
type Snapshot struct {
	Epoch    Epoch
	Revision int64
	// KVs is sorted by key, keys complete (prefix included).
	KVs []KV
	// Fresh is the time of the listing that began the current uninterrupted
	// connection: what is absent from the snapshot may only be held against
	// its owner a session's TTL after it.
	Fresh time.Time
}

// Put writes one key.
type Put struct {
	Key     string
	Value   []byte
	Session SessionID // 0: stays until it is deleted
}

// Cond is one condition of a Txn.
type Cond struct {
	Key string
	// Prefix: the condition holds for every present key that begins with Key
	// and says that none was written after ModRevision. (Deletions do not
	// break it: they only set things free.)
	Prefix bool
	// ModRevision is what the key must be at; 0 means it must be absent.
	ModRevision int64
}

// Txn is applied whole or not at all. No key may be written twice in it. It
// holds at most 128 conditions and 128 writes, and 1.5 MB.
type Txn struct {
	If     []Cond
	Put    []Put
	Delete []string
}

// Errors that callers branch on.
var (
	// ErrConflict: a condition of the Txn did not hold. Nothing was written.
	ErrConflict = errors.New("conflict: somebody else wrote first")
	// ErrSessionLost: the session named in the call does not exist (any more).
	ErrSessionLost = errors.New("session lost")
	// ErrFull: the store takes no more writes until space is made.
	ErrFull = errors.New("store is full")
)

// Store is the state that the hosts share. All methods may be called
// concurrently. Calls try until their context ends only where they say so.
type Store interface {
	// Watch yields the present snapshot of a prefix at once and a newer one
	// after changes, possibly skipping some. Reconnecting, compaction, lost
	// events and catching up are its business; while it cannot reach the
	// store it yields the error (with the last snapshot, zero if there was
	// none) once per failure and goes on. It ends when ctx does or when the
	// consumer stops.
	//
	// With parse the snapshots hold in place of each value what parse made of
	// it, in memory of its own: values are large. It is called from the
	// consumer's goroutine for each write that was not seen before, and must
	// make the same of the same. KVs is then valid until the consumer asks for
	// the next snapshot. nil: values are as they are.
	Watch(ctx context.Context, prefix string, parse func(KV) any) iter.Seq2[Snapshot, error]
	// Get reads one key, seeing every write that was acknowledged before.
	// Absent is no error: the zero KV, with only Key set. It tries once.
	Get(ctx context.Context, key string) (KV, error)
	// List reads all keys that begin with prefix, at one revision, seeing
	// every write that was acknowledged before. It tries once.
	List(ctx context.Context, prefix string) (Snapshot, error)
	// Commit applies t and returns the revision it was written at. It tries
	// once: ErrConflict, ErrSessionLost and ErrFull are definite, after any
	// other error t may or may not have been applied.
	Commit(ctx context.Context, t Txn) (revision int64, err error)
	// Session begins a session that this process renews in the background
	// until ctx ends or Close is called. With adopt not 0 it takes over that
	// session if it still exists (renewing it at once), else ErrSessionLost.
	Session(ctx context.Context, ttl time.Duration, adopt SessionID) (Session, error)
}

// Session is a promise to be alive. It ends when it could not be renewed for
// its TTL, or when the store forgot it.
type Session interface {
	ID() SessionID
	// Done is closed when the session is lost: its keys are gone or will be.
	// After Leave, Close or the end of the session's context it stays open.
	Done() <-chan struct{}
	// Expires is when the store drops the session if it is not renewed again.
	Expires() time.Time
	// Leave stops renewing and keeps the session until it expires. It may be
	// called twice, and after Close.
	Leave()
	// Close ends the session, and its keys with it, at once.
	Close(ctx context.Context) error
}
