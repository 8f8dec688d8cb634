package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// Pinger sends ICMP echo requests from one place of a lab to an address.
// One goroutine may send while another receives.
type Pinger struct {
	conn net.PacketConn
	to   netip.Addr
	id   uint16
	seq  uint16
}

// NewPinger opens a socket in a Host or Container (their Do) from which to
// is pinged. Close it.
func NewPinger(in interface{ Do(func() error) error }, to netip.Addr) (*Pinger, error) {
	p := &Pinger{to: to, id: uint16(time.Now().UnixNano())}
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	err := in.Do(func() (err error) {
		p.conn, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	return p, nil
}

// Close frees the socket.
func (p *Pinger) Close() error { return p.conn.Close() }

// Send sends one request of size bytes (without the IP header, at least 16)
// and returns its number.
func (p *Pinger) Send(size int) (seq uint16, err error) {
	p.seq++
	msg := make([]byte, max(size, 16))
	msg[0] = 8 // echo
	if p.to.Is6() {
		msg[0] = 128
	}
	binary.BigEndian.PutUint16(msg[4:], p.id)
	binary.BigEndian.PutUint16(msg[6:], p.seq)
	if p.to.Is4() { // for IPv6 the kernel computes it
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	if _, err := p.conn.WriteTo(msg, &net.IPAddr{IP: p.to.AsSlice()}); err != nil {
		return p.seq, fmt.Errorf("ping %s: %w", p.to, err)
	}
	return p.seq, nil
}

// Receive waits for the next answer and returns its number.
// os.ErrDeadlineExceeded: none came in time.
func (p *Pinger) Receive(timeout time.Duration) (seq uint16, err error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	answer := byte(0) // echo reply
	if p.to.Is6() {
		answer = 129
	}
	var buf [64]byte
	for {
		n, from, err := p.conn.ReadFrom(buf[:])
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", p.to, err)
		}
		src, _ := netip.ParseAddr(from.String())
		if n >= 8 && src == p.to && buf[0] == answer && binary.BigEndian.Uint16(buf[4:]) == p.id {
			return binary.BigEndian.Uint16(buf[6:]), nil
		}
	}
}

// Ping sends one request and returns the time until its answer.
// os.ErrDeadlineExceeded: none came in time.
func (p *Pinger) Ping(size int, timeout time.Duration) (time.Duration, error) {
	start := time.Now()
	seq, err := p.Send(size)
	for err == nil {
		var got uint16
		if got, err = p.Receive(timeout - time.Since(start)); err == nil && got == seq {
			return time.Since(start), nil
		}
	}
	return 0, err
}

// PingUntil pings until the first answer or until ctx ends, and returns the
// round-trip time of one more ping, which finds everything warmed up.
func PingUntil(ctx context.Context, in interface{ Do(func() error) error }, to netip.Addr) (time.Duration, error) {
	p, err := NewPinger(in, to)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	for {
		_, err := p.Ping(64, 200*time.Millisecond)
		if err == nil {
			return p.Ping(64, time.Second)
		}
		pause := 20 * time.Millisecond
		if errors.Is(err, os.ErrDeadlineExceeded) {
			pause = 0
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(pause):
		}
	}
}

// checksum is the internet checksum, RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
