// Package link is links, addresses, routes, neighbours and forwarding entries
// of the kernel, by rtnetlink. No other package speaks it.
package link

import (
	"errors"
	"runtime"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Protocol marks our routes in the kernel (rtm_protocol), so that they can be
// told from everybody else's. Not assigned in iproute2's rt_protos.
const Protocol = 0x66

// ErrNotFound says that the kernel has no such object.
var ErrNotFound = errors.New("not found")

// Handle talks to the kernel in one network namespace: the one it was opened
// in, whatever thread calls it. It is not safe for concurrent use.
type Handle struct {
	conn *nlbatch.Conn
	ns   *netns.NS
	home netns.ID
	own  *Own // nil: nobody wants to know

	b      nlbatch.Batch // of the request being made
	writes uint64
}

// Open returns a handle for the calling thread's network namespace.
func Open() (*Handle, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	return open(ns)
}

// OpenAt returns a handle for the network namespace at a path such as
// /run/netns/web.
func OpenAt(path string) (*Handle, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	var h *Handle
	err = ns.Do(func() (err error) {
		h, err = open(ns)
		return err
	})
	return h, err
}

// open makes the handle on a thread that is in ns, and owns ns.
func open(ns *netns.NS) (_ *Handle, err error) {
	h := &Handle{ns: ns}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if h.home, err = ns.ID(); err != nil {
		return nil, err
	}
	if h.conn, err = nlbatch.Dial(unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	h.conn.SizeForBulk()
	return h, nil
}

// Close frees the sockets. It may be called again.
func (h *Handle) Close() {
	if h.conn != nil {
		h.own.forget(h.conn)
		_ = h.conn.Close()
		h.conn = nil
	}
	if h.ns != nil {
		_ = h.ns.Close()
		h.ns = nil
	}
}

// Writes counts the changes asked of the kernel through the methods of this
// handle and its batches: messages, not system calls.
func (h *Handle) Writes() uint64 { return h.writes }

// message begins the single request that do, get or dump then sends.
func (h *Handle) message(kind, flags uint16, body []byte) *nlbatch.Batch {
	h.b.Reset()
	h.b.Message(kind, flags, body)
	return &h.b
}

// do sends the change that message began and waits for the outcome.
func (h *Handle) do() error {
	h.writes++
	outcomes, err := h.conn.Do(&h.b)
	if err != nil {
		return err
	}
	return outcomes[0]
}

// get sends the question that message began and gives the answer to parse,
// which must not keep it.
func (h *Handle) get(parse func(body []byte) error) error {
	for body, err := range h.conn.Get(&h.b) {
		if err != nil {
			return err
		}
		return parse(body)
	}
	return ErrNotFound
}

// dumpAttempts bounds how often a dump is begun anew because the table
// changed under it.
const dumpAttempts = 8

// dump sends the question that message began and calls each for every
// object. begin is called before every attempt: it throws away what the one
// before collected. A table that does not exist is empty.
func (h *Handle) dump(begin func(), each func(body []byte) error) error {
	var err error
	for range dumpAttempts {
		begin()
		if err = h.conn.Dump(&h.b, each); !errors.Is(err, nlbatch.ErrInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) {
		begin()
		return nil
	}
	return err
}

// inside runs f on a thread in the handle's network namespace.
func (h *Handle) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now, err := netns.Current()
	if err == nil {
		id, err := now.ID()
		_ = now.Close()
		if err == nil && id == h.home {
			return f()
		}
	}
	return h.ns.Do(f)
}
