package forward

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	udpSize   = 1232 // told in OPT records: no fragments on any path (DNS flag day 2020)
	udpBuffer = 4096 // for upstreams that send more all the same
)

var errMismatch = errors.New("the reply is not to the question")

// exchange asks one upstream once: over UDP from a socket, and so a port, of
// its own, over TCP if the reply does not fit, without EDNS if the upstream
// does not know it. An error means that the upstream gave no usable reply.
func (f *Forwarder) exchange(ctx context.Context, up *upstream, k key) (*entry, error) {
	up.mu.Lock()
	edns := f.cache.now() >= up.plain
	up.mu.Unlock()
	e, err := f.transport(ctx, up, k, edns)
	if err != nil || !edns || !e.unknowing() {
		return e, err
	}
	// RFC 6891 section 7: the upstream may not know EDNS.
	plain, err := f.transport(ctx, up, k, false)
	if err == nil && plain.succeeded() {
		up.mu.Lock()
		up.plain = f.cache.now() + plainTime
		up.mu.Unlock()
	}
	return plain, err
}

// transport asks over UDP, then over TCP if the reply is truncated.
func (f *Forwarder) transport(ctx context.Context, up *upstream, k key, edns bool) (*entry, error) {
	query, err := k.query(edns)
	if err != nil {
		return nil, err
	}
	buf, _ := f.buffers.Get().(*[udpBuffer]byte)
	if buf == nil {
		buf = new([udpBuffer]byte)
	}
	defer f.buffers.Put(buf)
	reply, err := overUDP(ctx, up, k, query[2:], buf[:])
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", up.addr, err)
	}
	if len(reply) == len(buf) || reply[2]&flagTC != 0 {
		if reply, err = overTCP(ctx, up, k, query); err != nil {
			return nil, fmt.Errorf("ask %s over TCP: %w", up.addr, err)
		}
	}
	e, err := f.read(k, reply)
	if err != nil {
		return nil, fmt.Errorf("reply of %s: %w", up.addr, err)
	}
	return e, nil
}

// query is the question as it goes upstream, behind its length in two bytes.
// AD asks for the AD bit in the reply (RFC 6840 section 5.7).
func (k key) query(edns bool) ([]byte, error) {
	m := make([]byte, 2+headerLen, 2+headerLen+len(k.name)+4+optLen)
	if _, err := rand.Read(m[2:4]); err != nil {
		return nil, err
	}
	m[4], m[5] = flagRD, flagAD
	if k.flags&keyCD != 0 {
		m[5] |= flagCD
	}
	m[7] = 1
	m = append(m, k.name...)
	m = binary.BigEndian.AppendUint16(m, k.kind)
	m = binary.BigEndian.AppendUint16(m, k.class)
	if edns {
		m[13] = 1
		m = append(m, 0, 0, typeOPT, udpSize>>8, udpSize&0xff, 0, 0, (k.flags&keyDO)<<7, 0, 0, 0)
	}
	binary.BigEndian.PutUint16(m, uint16(len(m)-2))
	return m, nil
}

// repliedBy reports whether msg is a reply to query, which asks k. Who does
// not understand a query may leave the question out.
func (k key) repliedBy(msg, query []byte) bool {
	if len(msg) < headerLen || msg[0] != query[0] || msg[1] != query[1] || msg[2]&0xf8 != flagQR {
		return false
	}
	end := headerLen + len(k.name) + 4
	if binary.BigEndian.Uint16(msg[4:]) != 1 || len(msg) < end {
		return len(msg) == headerLen && msg[3]&0xf != rcodeOK && binary.BigEndian.Uint16(msg[4:]) == 0
	}
	return equalFold(msg[headerLen:end-4], []byte(k.name)) && string(msg[end-4:end]) == string(query[end-4:end])
}

// read makes an entry of a reply to k.
func (f *Forwarder) read(k key, reply []byte) (*entry, error) {
	if len(reply) == headerLen {
		return failure(k, int(reply[3]&0xf), f.cache.now()), nil
	}
	l, err := parse(reply, len(k.name))
	if err != nil {
		return nil, err
	}
	switch {
	case l.rcode == rcodeBadVers:
		return failure(k, rcodeNotImpl, f.cache.now()), nil
	case l.rcode > 15, l.referral && l.rcode == rcodeOK && reply[3]&flagRA == 0:
		// It refers to others, who are nobody to us.
		return failure(k, rcodeServer, f.cache.now()), nil
	}
	return newEntry(k, reply, &l, f.cache.now()), nil
}

// succeeded reports whether the entry is an answer, not a failure.
func (e *entry) succeeded() bool {
	switch e.rcode() {
	case rcodeOK, rcodeName, rcodeYXDomain:
		return true
	}
	return false
}

// unknowing reports whether the reply may mean that EDNS is unknown.
func (e *entry) unknowing() bool {
	rcode := e.rcode()
	return rcode == rcodeFormat || rcode == rcodeNotImpl
}

// overUDP asks once. The socket is connected: the kernel keeps replies of
// others away, and tells if nobody listens. Anything that is not the reply is
// ignored until ctx ends.
func overUDP(ctx context.Context, up *upstream, k key, query, buf []byte) ([]byte, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(up.addr))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	for {
		n, err := conn.Read(buf)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			return nil, err
		case k.repliedBy(buf[:n], query):
			return buf[:n], nil
		}
	}
}

// overTCP asks once; query begins with its length.
func overTCP(ctx context.Context, up *upstream, k key, query []byte) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", up.addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	if !k.repliedBy(reply, query[2:]) {
		return nil, errMismatch
	}
	return reply, nil
}
