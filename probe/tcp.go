package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The exchange: the one who asks sends blockLen random bytes, and the
// responder sends them back once it has them all. That is several full
// segments each way, as one piece for the network card to cut.
const blockLen = 8 << 10

// Time limits of the exchange, for each side.
const (
	connectLimit  = 4 * time.Second // two lost packets
	exchangeLimit = 4 * time.Second
)

// exchangeWith does the exchange with a responder. What tells nothing about
// the way (nobody listens, or it does not know us yet) is TCPUntried.
func exchangeWith(ctx context.Context, from netip.Addr, to netip.AddrPort) (TCP, error) {
	d := net.Dialer{
		Timeout:         connectLimit,
		LocalAddr:       net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		how, err := outcome(ctx, err)
		if how != TCPFails {
			return how, err
		}
		if answered, err := synAnswered(ctx, from, to, nil); err != nil || !answered {
			return TCPFiltered, err
		}
		return TCPFails, nil
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	block, back := make([]byte, blockLen), make([]byte, blockLen)
	rand.Read(block)
	if err := c.SetDeadline(time.Now().Add(exchangeLimit)); err != nil {
		return TCPUntried, err
	}
	if _, err = c.Write(block); err == nil {
		_, err = io.ReadFull(c, back)
	}
	switch {
	case err != nil:
		return outcome(ctx, err)
	case !bytes.Equal(block, back):
		return TCPFails, nil // a broken checksum that somebody took for a good one
	}
	return TCPWorks, nil
}

// outcome reads an error of the exchange.
func outcome(ctx context.Context, err error) (TCP, error) {
	var timeout interface{ Timeout() bool }
	switch {
	case ctx.Err() != nil:
		return TCPUntried, ctx.Err()
	case errors.As(err, &timeout) && timeout.Timeout():
		return TCPFails, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return TCPUntried, nil // its TCP arrives here
	case unreachable(err):
		return TCPFails, nil
	default:
		return TCPUntried, fmt.Errorf("TCP: %w", err)
	}
}
