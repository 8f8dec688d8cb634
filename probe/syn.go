package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// A connection that nobody answers is a matter of checksums, or of a firewall
// that drops the port. A SYN of our own making tells them apart: its checksum
// is computed here, and the answer is seen below TCP, before anybody looks at
// the checksum that the other side's hardware made.

const tcpHeader = 20

// synAnswered sends SYNs with good checksums and says whether any answer at
// all came from the port. send sends a TCP header on a way of its own; nil:
// by the routes.
func synAnswered(ctx context.Context, from netip.Addr, to netip.AddrPort, send func(packet []byte) error) (bool, error) {
	network := "ip4:tcp"
	if from.Is6() {
		network = "ip6:tcp"
	}
	d := net.Dialer{LocalAddr: &net.IPAddr{IP: from.AsSlice()}}
	c, err := d.DialContext(ctx, network, to.Addr().String())
	if err != nil {
		return false, fmt.Errorf("open a socket for TCP: %w", err)
	}
	defer c.Close()
	conn := c.(*net.IPConn)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ours := uint16(32768 + rand.N(28000)) // an answer to it disturbs no connection: none has this SYN's number
	packet := syn(from, to, ours, rand.Uint32())
	buf := make([]byte, 2048)
	if send == nil {
		send = func(packet []byte) error { _, err := conn.Write(packet); return err }
	}
	for range tries {
		if err := send(packet); err != nil {
			return false, fmt.Errorf("send a SYN: %w", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return false, err
		}
		for {
			n, _, err := conn.ReadFromIP(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if err == nil && fromPort(buf[:n], to.Port(), ours) {
				return true, nil
			}
			if err != nil && !unreachable(err) {
				return false, fmt.Errorf("receive: %w", err)
			}
		}
	}
	return false, nil
}

// syn is the TCP header of a first packet (RFC 9293, 3.1).
func syn(from netip.Addr, to netip.AddrPort, port uint16, seq uint32) []byte {
	const flagSYN, window = 0x02, 1024
	b := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(b[0:], port)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = tcpHeader/4<<4, flagSYN
	binary.BigEndian.PutUint16(b[14:], window)
	binary.BigEndian.PutUint16(b[16:], checksum(append(append(from.AsSlice(), to.Addr().AsSlice()...), b...), 6+tcpHeader))
	return b
}

// fromPort reports whether a TCP header is of a packet between two ports.
func fromPort(b []byte, from, to uint16) bool {
	return len(b) >= tcpHeader && binary.BigEndian.Uint16(b[0:]) == from && binary.BigEndian.Uint16(b[2:]) == to
}
