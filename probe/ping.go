package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long an answer may take; once a round-trip time is known,
// a multiple of it is enough.
const (
	patience     = time.Second
	leastWait    = 200 * time.Millisecond
	roundTripsOf = 8
)

// pinger sends echo requests from one address to one other. It has a socket
// of its own, and between looks there is none. With IPv4 it is connected: the
// kernel passes it nothing else. With IPv6 it is not: a peer's address can
// also be the subnet-router anycast address of its containers' bridge, and
// then the answer has another source (RFC 4443, 4.2); the request's nonce
// tells whose it is. It needs CAP_NET_RAW.
type pinger struct {
	conn     *net.IPConn
	dest     *net.IPAddr // nil: conn is connected
	from, to netip.Addr
	next     echo
	rtt      time.Duration // of the last answer; 0: none yet
	out, in  []byte
}

func dialPing(ctx context.Context, from, to netip.Addr) (*pinger, error) {
	control := func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = pingOptions(int(fd), to.Is4()) }), err)
	}
	p := &pinger{from: from, to: to}
	var err error
	if to.Is6() {
		var c net.PacketConn
		l := net.ListenConfig{Control: control}
		if c, err = l.ListenPacket(ctx, "ip6:ipv6-icmp", from.String()); err == nil {
			p.conn, p.dest = c.(*net.IPConn), &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}
		}
	} else {
		var c net.Conn
		d := net.Dialer{LocalAddr: &net.IPAddr{IP: from.AsSlice()}, Control: control}
		if c, err = d.DialContext(ctx, "ip4:icmp", to.String()); err == nil {
			p.conn = c.(*net.IPConn)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open a socket for ping: %w", err)
	}
	var id [2]byte
	rand.Read(id[:])
	rand.Read(p.next.nonce[:])
	p.next.id = binary.BigEndian.Uint16(id[:])
	return p, nil
}

// pingOptions lets only echo replies in, and packets out whole: whatever path
// MTU the kernel believes in, it is measured here.
func pingOptions(fd int, v4 bool) error {
	if v4 {
		const filterICMP, filterOption = 1, 1 // SOL_RAW's ICMP_FILTER: set bits are dropped
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_RAW, filterOption, ^(filterICMP<<echoReply4)),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		)
	}
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[echoReply6>>5] &^= 1 << (echoReply6 & 31)
	return errors.Join(
		unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
	)
}

func (p *pinger) close() { _ = p.conn.Close() } // nothing is buffered

// ping sends a packet of a size and waits for its answer. errLost, errTooBig
// or an error of this host.
func (p *pinger) ping(ctx context.Context, size int) (time.Duration, error) {
	e := p.request()
	p.out = e.append(p.out[:0], p.to, size)
	sent := time.Now()
	var err error
	if p.dest == nil {
		_, err = p.conn.Write(p.out)
	} else {
		_, err = p.conn.WriteToIP(p.out, p.dest)
	}
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return 0, errTooBig
	case unreachable(err):
		return 0, errLost
	case err != nil:
		return 0, fmt.Errorf("send: %w", err)
	}
	return p.wait(ctx, size, sent, e)
}

// request is the next one to send.
func (p *pinger) request() echo {
	e := p.next
	p.next.seq++
	return e
}

// wait waits for the answers to all of es, which it forgets one by one.
func (p *pinger) wait(ctx context.Context, size int, sent time.Time, es ...echo) (time.Duration, error) {
	limit := patience
	if p.rtt > 0 {
		limit = min(patience, max(leastWait, roundTripsOf*p.rtt))
	}
	if err := p.conn.SetReadDeadline(sent.Add(limit)); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetReadDeadline(sent) })
	defer stop()
	if need := max(size, small) + header6; len(p.in) < need {
		p.in = make([]byte, need)
	}
	for {
		n, _, err := p.conn.ReadFromIP(p.in) // without IPv4's header
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, errLost
		case unreachable(err):
			continue // somebody on the way says so: as good as silence
		case err != nil:
			return 0, fmt.Errorf("receive: %w", err)
		}
		es = slices.DeleteFunc(es, func(e echo) bool { return e.answers(p.in[:n], p.to, size) })
		if len(es) == 0 {
			p.rtt = max(1, time.Since(sent))
			return p.rtt, nil
		}
	}
}

// unreachable: an error that tells of the way or of the other end.
func unreachable(err error) bool {
	for _, e := range []error{unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.EHOSTDOWN, unix.ENOPROTOOPT, unix.EPROTO, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
