package udp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/udp/loop"
)

// The keeper listens on a unix socket. Whoever connects is greeted, and may
// send one table, which replaces the one before and is answered.

// version of what is said. A daemon that finds another one replaces the
// keeper.
const version = 1

// patience bounds a conversation.
const patience = 5 * time.Second

// greeting is one line of JSON.
type greeting struct {
	Version  int
	PID      int
	Index    int // of the device
	Local    netip.AddrPort
	Table    []byte // digest of the table in use, nil before the first
	Counters loop.Counters
}

const (
	recordLen = 1 + 16 + 16
	mostTable = 64 << 20
)

// encodeTable makes the table's message: its length, and a record for each
// peer. An address of IPv4 is written as IPv6's mapped one.
func encodeTable(peers iter.Seq2[netip.Prefix, netip.Addr]) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0)
	for s, public := range peers {
		b = append(b, byte(s.Bits()))
		for _, a := range []netip.Addr{s.Addr(), public} {
			raw := a.As16()
			b = append(b, raw[:]...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// decodeTable reads the records of a table's message.
func decodeTable(b []byte, port uint16) (*loop.Table, error) {
	if len(b)%recordLen != 0 {
		return nil, fmt.Errorf("table of %d bytes", len(b))
	}
	peers := make([]loop.Peer, 0, len(b)/recordLen)
	for ; len(b) > 0; b = b[recordLen:] {
		s := netip.PrefixFrom(netip.AddrFrom16([16]byte(b[1:])).Unmap(), int(b[0])).Masked()
		public := netip.AddrFrom16([16]byte(b[17:])).Unmap()
		if !s.IsValid() || s.Addr().Is4() != public.Is4() {
			return nil, fmt.Errorf("table with %d bits of subnet %s by %s", b[0], s, public)
		}
		peers = append(peers, loop.Peer{Subnet: s, Public: netip.AddrPortFrom(public, port)})
	}
	return loop.NewTable(peers), nil
}

func digest(message []byte) []byte {
	sum := sha256.Sum256(message)
	return sum[:16]
}

// errNoKeeper: nobody listens.
var errNoKeeper = errors.New("the device has no keeper")

// conversation is a connection to a keeper that has greeted.
type conversation struct {
	conn net.Conn
	r    *bufio.Reader
	greeting
}

// connect finds a device's keeper. One that does not answer in time is ended,
// and its device with it: errNoKeeper.
func connect(ctx context.Context, device, socket string) (*conversation, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKeeper, err)
	}
	c := &conversation{conn: conn, r: bufio.NewReader(conn)}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := c.hear(&c.greeting); err != nil {
		conn.Close()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, fmt.Errorf("greeting: %w", err)
		}
		pid, err := outlive.Kill(ctx, device, socket)
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: process %d did not answer for %s and was killed", errNoKeeper, pid, patience)
	}
	return c, nil
}

func (c *conversation) hear(v any) error {
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// tell replaces the table unless the keeper has just that.
func (c *conversation) tell(message []byte) error {
	if bytes.Equal(c.Table, digest(message)) {
		return nil
	}
	if _, err := c.conn.Write(message); err != nil {
		return fmt.Errorf("tell the keeper its peers: %w", err)
	}
	var answer string
	if err := c.hear(&answer); err != nil {
		return fmt.Errorf("tell the keeper its peers: %w", err)
	}
	if answer != "" {
		return fmt.Errorf("tell the keeper its peers: %s", answer)
	}
	return nil
}

// wait returns when the keeper is gone.
func (c *conversation) wait() error {
	_, err := c.r.ReadByte()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("its keeper, process %d, did not end: kill -9 %d", c.PID, c.PID)
	}
	return nil
}

func (c *conversation) close() { c.conn.Close() }

// answers is the keeper's part of one conversation.
func (k *keeper) answers(conn net.Conn) error {
	k.Counters = k.loop.Counters()
	line, err := json.Marshal(&k.greeting)
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > mostTable {
		return fmt.Errorf("table of %d bytes", n)
	}
	message := make([]byte, 4+n)
	copy(message, size[:])
	if _, err := io.ReadFull(conn, message[4:]); err != nil {
		return err
	}
	answer := ""
	if t, err := decodeTable(message[4:], k.Local.Port()); err != nil {
		answer = err.Error()
	} else {
		k.loop.SetTable(t)
		k.Table = digest(message)
	}
	line, err = json.Marshal(answer)
	if err == nil {
		_, err = conn.Write(append(line, '\n'))
	}
	return err
}
