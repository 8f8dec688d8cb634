package nft

import (
	"errors"
	"sync"
)

// Ledger tells changes of nf_tables in one network namespace that others made
// from those of a Filter and a Balancer that share it: what one of them writes
// is then no reason for the other to read its table again. It is safe for
// concurrent use.
type Ledger struct {
	mu sync.Mutex // guards what follows, and makes the writers take turns
	// gen grows by one with each transaction, whoever commits it.
	gen     *generation
	last    uint32 // the generation when it was last asked for
	foreign uint64
}

// NewLedger returns the ledger of the calling thread's network namespace. It
// is rules.ErrNotSupported if the kernel has no nf_tables.
func NewLedger() (*Ledger, error) {
	gen, err := openGeneration()
	if err != nil {
		return nil, err
	}
	last, err := gen.Get()
	if err != nil {
		return nil, errors.Join(err, gen.Close())
	}
	return &Ledger{gen: gen, last: last}, nil
}

// Close frees the socket.
func (l *Ledger) Close() error { return l.gen.Close() }

// check returns a number that grows with what others change.
func (l *Ledger) check() (foreign uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.account(0)
}

// commit has write make its transactions, and returns check's number after
// them: if it is what it was before something was read, what was read and
// written since is all there is. write returns how many it made; after an error
// of its own nobody knows, and the number grows.
func (l *Ledger) commit(write func() (commits int, err error)) (foreign uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	commits, err := write()
	if err != nil {
		l.foreign++
	}
	foreign, genErr := l.account(commits)
	return foreign, errors.Join(err, genErr)
}

// account finds out whether there were other transactions than ours.
func (l *Ledger) account(ours int) (foreign uint64, err error) {
	now, err := l.gen.Get()
	if err != nil {
		return l.foreign, err
	}
	if now != l.last+uint32(ours) {
		l.foreign++
	}
	l.last = now
	return l.foreign, nil
}

// shared returns l, or a ledger of the caller's own to close if there is none.
func shared(l *Ledger) (_ *Ledger, own bool, err error) {
	if l != nil {
		return l, false, nil
	}
	l, err = NewLedger()
	return l, true, err
}
