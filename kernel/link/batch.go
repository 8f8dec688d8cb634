package link

import (
	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// flushBytes is when a batch sends what it has gathered.
const flushBytes = 256 << 10

// Batch is a row of changes to routes, neighbours and forwarding entries,
// made in the order they are added, in few system calls. Setting replaces
// what is there; deleting what is gone and setting what is there already is
// no error. A Batch uses its handle alone until Flush.
type Batch struct {
	h       *Handle
	msgs    nlbatch.Batch
	refused func(i int, err error)
	sent    int // changes of earlier calls
	dels    []bool
	err     error
}

// Batch begins a batch. refused is called, during later calls, for each change
// that the kernel refuses, by its place in the row.
func (h *Handle) Batch(refused func(i int, err error)) *Batch {
	return &Batch{h: h, refused: refused}
}

const set = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

// SetRoute makes r the route for its destination and metric.
func (b *Batch) SetRoute(r Route) {
	addRoute(&b.msgs, unix.RTM_NEWROUTE, set, &r)
	b.added(false)
}

// DelRoute deletes the route that equals r in destination, gateway,
// interface, metric and protocol, where r has them.
func (b *Batch) DelRoute(r Route) {
	addRoute(&b.msgs, unix.RTM_DELROUTE, 0, &r)
	b.added(true)
}

// SetNeighbour makes n a permanent entry.
func (b *Batch) SetNeighbour(n Neighbour) {
	addNeighbour(&b.msgs, unix.RTM_NEWNEIGH, set, &n)
	b.added(false)
}

// DelNeighbour deletes the entry of n's address on n's link.
func (b *Batch) DelNeighbour(n Neighbour) {
	addNeighbour(&b.msgs, unix.RTM_DELNEIGH, 0, &n)
	b.h.own.wrote(echo{kind: unix.RTM_DELNEIGH, link: n.Link, addr: n.Addr})
	b.added(true)
}

// SetFDB makes f the permanent entry of its MAC.
func (b *Batch) SetFDB(f FDB) {
	addFDB(&b.msgs, unix.RTM_NEWNEIGH, set, &f)
	b.h.own.wrote(echo{kind: unix.RTM_NEWNEIGH, link: f.Link, mac: f.MAC, addr: f.Dst})
	b.added(false)
}

// DelFDB deletes the entry of f's MAC that leads to f's Dst.
func (b *Batch) DelFDB(f FDB) {
	addFDB(&b.msgs, unix.RTM_DELNEIGH, 0, &f)
	b.h.own.wrote(echo{kind: unix.RTM_DELNEIGH, link: f.Link, mac: f.MAC, addr: f.Dst})
	b.added(true)
}

func (b *Batch) added(del bool) {
	b.dels = append(b.dels, del)
	if b.msgs.Size() >= flushBytes {
		b.send()
	}
}

// Len is the number of changes added so far.
func (b *Batch) Len() int { return b.sent + b.msgs.Len() }

// Flush sends what is left and returns the first failure of a system call,
// after which the outcome of some changes is unknown. The batch is then
// empty and may be used again; places go on counting.
func (b *Batch) Flush() error {
	if b.msgs.Len() > 0 {
		b.send()
	}
	err := b.err
	b.err = nil
	return err
}

func (b *Batch) send() {
	n := b.msgs.Len()
	if b.err == nil {
		b.h.writes += uint64(n)
		b.err = b.h.conn.Apply(&b.msgs, func(i int, e *nlbatch.Error) {
			if !harmless(e.Errno, b.dels[i]) {
				b.refused(b.sent+i, e)
			}
		})
	}
	b.sent += n
	b.dels = b.dels[:0]
	b.msgs.Reset()
}

// harmless reports whether a refusal says that there was nothing to do.
func harmless(errno unix.Errno, del bool) bool {
	if del {
		return errno == unix.ESRCH || errno == unix.ENOENT || errno == unix.ENODEV
	}
	return errno == unix.EEXIST
}
