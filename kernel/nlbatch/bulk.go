package nlbatch

import (
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// Limits of one system call of Apply. The kernel takes at most the send
// buffer's size, and its refusals, about 1.3 kB of memory each, must fit into
// the receive buffer.
const (
	chunkBytes    = 256 << 10
	chunkMessages = 4096
	retryMessages = 64
	sendBuffer    = 1 << 20
	receiveBuffer = 4 << 20 // the kernel doubles it
)

// ErrInterrupted says that the table changed while it was dumped, so that
// entries may be missing from the dump or be in it twice.
var ErrInterrupted = errors.New("netlink dump interrupted by a change")

// SizeForBulk gives the socket the buffers that Apply needs for long batches.
// Without CAP_NET_ADMIN it gets what the system's limits allow.
func (c *Conn) SizeForBulk() {
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// Port is the socket's port id: notifications of what was done through it
// carry it as nlmsg_pid.
func (c *Conn) Port() (uint32, error) {
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return 0, fmt.Errorf("netlink socket's port: %w", err)
	}
	nl, ok := sa.(*unix.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("netlink socket's port: address is a %T", sa)
	}
	return nl.Pid, nil
}

// Apply sends any number of messages in few system calls and without
// acknowledgements: the kernel answers only what it refuses, which refused is
// told by the message's index, in order. Where refusals were lost for lack of
// memory the messages are sent again, so twice must do no harm. The error is
// the failure of a call, after which some messages were not sent.
func (c *Conn) Apply(b *Batch, refused func(i int, err *Error)) error {
	return c.apply(b, 0, b.Len(), chunkMessages, refused)
}

func (c *Conn) apply(b *Batch, from, to, most int, refused func(int, *Error)) error {
	for from < to {
		end := from + 1
		for end < to && end-from < most && b.end(end)-b.starts[from] <= chunkBytes {
			end++
		}
		refusals, err := c.chunk(b, from, end)
		switch {
		case errors.Is(err, unix.ENOBUFS) && most > retryMessages:
			if err := c.apply(b, from, end, retryMessages, refused); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		for _, r := range refusals {
			refused(r.index, r.err)
		}
		from = end
	}
	return nil
}

// end is where message i ends.
func (b *Batch) end(i int) int {
	if i+1 < len(b.starts) {
		return b.starts[i+1]
	}
	return len(b.buf)
}

type refusal struct {
	index int
	err   *Error
}

// chunk sends messages from (included) to (excluded) in one call and reads
// what the kernel refused, all of which is there when the call returns.
func (c *Conn) chunk(b *Batch, from, to int) ([]refusal, error) {
	first := c.seq + 1
	for i := from; i < to; i++ {
		at := b.starts[i]
		c.seq++
		native.PutUint32(b.buf[at+8:], c.seq)
		native.PutUint16(b.buf[at+6:], native.Uint16(b.buf[at+6:])&^unix.NLM_F_ACK)
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := retry(func() error { return unix.Sendto(c.fd, b.buf[b.starts[from]:b.end(to-1)], 0, kernel) }); err != nil {
		return nil, fmt.Errorf("send %d netlink messages: %w", to-from, err)
	}
	var out []refusal
	lost := false
	for {
		n, err := c.receiveNow()
		switch {
		case errors.Is(err, unix.EAGAIN) && lost:
			return nil, fmt.Errorf("answers to %d netlink messages: %w", to-from, unix.ENOBUFS)
		case errors.Is(err, unix.EAGAIN):
			return out, nil
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil:
			return nil, fmt.Errorf("receive netlink answer: %w", err)
		}
		for m, err := range parse(c.in[:n]) {
			if err != nil {
				return nil, err
			}
			i := int(m.seq-first) + from
			if m.kind != unix.NLMSG_ERROR || i < from || i >= to {
				continue
			}
			if e, ok := errors.AsType[*Error](m.err()); ok {
				out = append(out, refusal{i, e})
			}
		}
	}
}

// Dump sends the single dump request of the batch and calls each for every
// object. The body is valid during the call only; an error of each ends the
// dump. After ErrInterrupted each has seen everything that was there.
func (c *Conn) Dump(b *Batch, each func(body []byte) error) error {
	first, err := c.send(b)
	if err != nil {
		return err
	}
	interrupted := false
	var failed error
	for {
		for m, err := range c.receive() {
			if err != nil {
				return err
			}
			if m.seq != first {
				continue
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if len(m.body) >= 4 && int32(native.Uint32(m.body)) < 0 {
					return errors.Join(failed, m.err())
				}
				if failed == nil && interrupted {
					failed = ErrInterrupted
				}
				return failed
			default:
				if failed == nil {
					failed = each(m.body)
				}
			}
		}
	}
}

// receiveNow is one read that does not wait.
func (c *Conn) receiveNow() (n int, err error) {
	err = retry(func() error {
		n, _, err = unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		return err
	})
	return n, err
}

// retry calls f again while signals interrupt it.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// parse walks the messages of one read.
func parse(b []byte) iter.Seq2[answer, error] {
	return func(yield func(answer, error) bool) {
		for len(b) >= headerLen {
			l := int(native.Uint32(b))
			if l < headerLen || l > len(b) {
				yield(answer{}, fmt.Errorf("receive netlink answer: message of %d bytes in %d", l, len(b)))
				return
			}
			m := answer{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:]), b[headerLen:l]}
			if !yield(m, nil) {
				return
			}
			b = b[min((l+3)&^3, len(b)):]
		}
	}
}

// Size is the length of all messages together.
func (b *Batch) Size() int { return len(b.buf) }

// Header is what a notification tells besides its body.
type Header struct {
	Kind uint16
	Port uint32 // of the socket that made the change; 0 if the kernel does not tell
}

// Messages walks the notifications of one read. It stops at the first broken
// one.
func Messages(b []byte) iter.Seq2[Header, []byte] {
	return func(yield func(Header, []byte) bool) {
		for len(b) >= headerLen {
			l := int(native.Uint32(b))
			if l < headerLen || l > len(b) || !yield(Header{native.Uint16(b[4:]), native.Uint32(b[12:])}, b[headerLen:l]) {
				return
			}
			b = b[min((l+3)&^3, len(b)):]
		}
	}
}
