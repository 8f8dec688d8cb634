// Package nlbatch sends several netlink messages in one system call and tells
// the outcome of each.
//
// The kernel handles the messages of one call in order, in the caller's own
// context: when the call returns, all are done and a kill cannot fall between
// two of them.
package nlbatch

import (
	"encoding/binary"
	"fmt"
	"iter"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

const (
	headerLen = 16 // struct nlmsghdr
	attrLen   = 4  // struct nlattr
	nested    = unix.NLA_F_NESTED
	typeMask  = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

// Batch is a row of messages under construction. The zero value is empty and
// ready; it may be used again after Reset.
type Batch struct {
	buf    []byte
	starts []int
}

// Len is the number of messages.
func (b *Batch) Len() int { return len(b.starts) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.buf, b.starts = b.buf[:0], b.starts[:0] }

// Message begins the next message; the attributes that follow are its own.
// body is the fixed part after the netlink header.
func (b *Batch) Message(kind, flags uint16, body []byte) {
	b.starts = append(b.starts, len(b.buf))
	b.buf = native.AppendUint32(b.buf, 0) // length, set as it grows
	b.buf = native.AppendUint16(b.buf, kind)
	b.buf = native.AppendUint16(b.buf, flags|unix.NLM_F_REQUEST)
	b.buf = append(b.buf, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number and port
	b.buf = append(b.buf, body...)
	b.grown()
}

// Bytes adds an attribute.
func (b *Batch) Bytes(kind uint16, data []byte) {
	b.buf = native.AppendUint16(b.buf, uint16(attrLen+len(data)))
	b.buf = native.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, data...)
	b.grown()
}

// String adds a zero-terminated string.
func (b *Batch) String(kind uint16, s string) { b.Bytes(kind, append([]byte(s), 0)) }

// Uint8 adds one byte.
func (b *Batch) Uint8(kind uint16, v uint8) { b.Bytes(kind, []byte{v}) }

// Uint32 adds a number in the machine's byte order.
func (b *Batch) Uint32(kind uint16, v uint32) { b.Bytes(kind, native.AppendUint32(nil, v)) }

// BigUint32 adds a number in network byte order, as nf_tables wants them.
func (b *Batch) BigUint32(kind uint16, v uint32) {
	b.Bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

// BigUint64 adds a number in network byte order.
func (b *Batch) BigUint64(kind uint16, v uint64) {
	b.Bytes(kind, binary.BigEndian.AppendUint64(nil, v))
}

// Nest adds an attribute that holds what inside adds.
func (b *Batch) Nest(kind uint16, inside func()) { b.NestBody(kind, nil, inside) }

// NestBody is Nest with a fixed part before the inner attributes.
func (b *Batch) NestBody(kind uint16, body []byte, inside func()) {
	at := len(b.buf)
	b.Bytes(kind|nested, body)
	inside()
	native.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

// grown pads to four bytes and updates the current message's length.
func (b *Batch) grown() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
	at := b.starts[len(b.starts)-1]
	native.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
}

// Error is the kernel's refusal of one message.
type Error struct {
	Errno unix.Errno
	Text  string // the kernel's own explanation, often ""
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + " (" + e.Text + ")"
}

// Unwrap returns the error number.
func (e *Error) Unwrap() error { return e.Errno }

// Conn is a netlink socket of the network namespace it was opened in. It is
// not safe for concurrent use.
type Conn struct {
	fd  int
	seq uint32
	in  []byte
}

// answerTimeout bounds the wait for an answer that the kernel owes. Answers
// are queued before the sending call returns, so it never passes.
const answerTimeout = 10 * time.Second

// Dial opens a socket in the calling thread's network namespace. protocol is
// unix.NETLINK_ROUTE or another.
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(answerTimeout))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	// What old kernels lack costs explanations or speed only.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Conn{fd: fd, in: make([]byte, 64<<10)}, nil
}

// Close frees the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Do sends every message of the batch and returns one outcome for each: nil,
// or an *Error. The second result is the failure of the call itself, after
// which nothing is known of the outcomes.
func (c *Conn) Do(b *Batch) ([]error, error) {
	for _, at := range b.starts {
		flags := native.Uint16(b.buf[at+6:])
		native.PutUint16(b.buf[at+6:], flags|unix.NLM_F_ACK)
	}
	first, err := c.send(b)
	if err != nil {
		return nil, err
	}
	out := make([]error, b.Len())
	for left := b.Len(); left > 0; {
		for m, err := range c.receive() {
			if err != nil {
				return nil, err
			}
			i := int(m.seq - first)
			if m.kind == unix.NLMSG_ERROR && i >= 0 && i < len(out) {
				out[i] = m.err()
				left--
			}
		}
	}
	return out, nil
}

// Commit sends the batch as one transaction of nf_tables: all or nothing. It
// returns the first refusal as an *Error and, as index, which message it was
// for; -1 if the commit as a whole was refused.
func (c *Conn) Commit(b *Batch) (index int, err error) {
	whole := Batch{buf: make([]byte, 0, len(b.buf)+64)}
	frame := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES} // struct nfgenmsg, res_id in network byte order
	whole.Message(unix.NFNL_MSG_BATCH_BEGIN, 0, frame)
	for _, at := range b.starts {
		whole.starts = append(whole.starts, at+len(whole.buf))
	}
	if n := len(b.starts); n > 0 {
		at := b.starts[n-1]
		native.PutUint16(b.buf[at+6:], native.Uint16(b.buf[at+6:])|unix.NLM_F_ACK)
	}
	whole.buf = append(whole.buf, b.buf...)
	whole.Message(unix.NFNL_MSG_BATCH_END, 0, frame)
	first, err := c.send(&whole)
	if err != nil {
		return -1, err
	}
	index = -1
	for {
		for m, e := range c.receive() {
			if e != nil {
				return -1, e
			}
			if m.kind != unix.NLMSG_ERROR {
				continue
			}
			i := int(m.seq - first)
			if e := m.err(); e != nil && err == nil {
				index, err = i-1, e
			}
			if i == b.Len() || i == 0 || i == b.Len()+1 { // the last message answers, or the transaction as a whole
				return index, err
			}
		}
	}
}

// Get sends the single message of the batch and yields the answers' bodies:
// one, or with unix.NLM_F_DUMP any number. The slices are valid until the
// next call only.
func (c *Conn) Get(b *Batch) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		flags := native.Uint16(b.buf[b.starts[0]+6:])
		dump := flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP
		first, err := c.send(b)
		if err != nil {
			yield(nil, err)
			return
		}
		wanted := true
		for {
			for m, err := range c.receive() {
				switch {
				case err != nil:
					yield(nil, err)
					return
				case m.seq != first:
				case m.kind == unix.NLMSG_DONE:
					return
				case m.kind == unix.NLMSG_ERROR:
					if e := m.err(); e != nil && wanted {
						yield(nil, e)
					}
					return
				default:
					if wanted {
						wanted = yield(m.body, nil)
					}
					if !dump {
						return
					}
				}
			}
		}
	}
}

func (c *Conn) send(b *Batch) (first uint32, err error) {
	first = c.seq + 1
	for _, at := range b.starts {
		c.seq++
		native.PutUint32(b.buf[at+8:], c.seq)
	}
	for {
		err = unix.Sendto(c.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, fmt.Errorf("send %d netlink messages: %w", b.Len(), err)
	}
	return first, nil
}

type answer struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// receive yields the answers of one read.
func (c *Conn) receive() iter.Seq2[answer, error] {
	return func(yield func(answer, error) bool) {
		n, _, err := unix.Recvfrom(c.fd, c.in, 0)
		if err == unix.EINTR {
			return
		}
		if err != nil {
			yield(answer{}, fmt.Errorf("receive netlink answer: %w", err))
			return
		}
		parse(c.in[:n])(yield)
	}
}

// err is the outcome told by an NLMSG_ERROR.
func (m answer) err() error {
	if len(m.body) < 4 {
		return &Error{Errno: unix.EBADMSG}
	}
	code := int32(native.Uint32(m.body))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	const text = 1 // NLMSGERR_ATTR_MSG
	if m.flags&unix.NLM_F_ACK_TLVS != 0 && len(m.body) >= 4+headerLen {
		skip := 4 + headerLen
		if m.flags&unix.NLM_F_CAPPED == 0 {
			skip = 4 + int(native.Uint32(m.body[4:]))
		}
		if skip = (skip + 3) &^ 3; skip <= len(m.body) {
			for kind, data := range Attrs(m.body[skip:]) {
				if kind == text {
					e.Text = strings.TrimRight(string(data), "\x00")
				}
			}
		}
	}
	return e
}

// Attrs walks a row of attributes; it stops at the first broken one.
func Attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrLen {
			l := int(native.Uint16(b))
			if l < attrLen || l > len(b) {
				return
			}
			if !yield(native.Uint16(b[2:])&typeMask, b[attrLen:l]) {
				return
			}
			b = b[min((l+3)&^3, len(b)):]
		}
	}
}
