package loop

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// unreachable answers packets that no peer takes, as routers do (RFC 792,
// RFC 4443).
type unreachable struct {
	buf    [mostAnswer]byte
	vec    [2]unix.Iovec
	zero   [vnetLen]byte
	second int64
	sent   int
}

const (
	mostAnswer  = 576 // bytes, so that it passes everywhere
	answerRate  = 200 // in a second
	icmpHeader  = 8
	answerTTL   = 64
	unreachNet4 = 3 // with code 0
	unreachNet6 = 1
)

// answer tells the sender of p, which is valid, that there is no way. It comes
// from where p was to go: an address of this host's own would be taken for a
// forged one.
func (u *unreachable) answer(l *Loop, h *header, p []byte) {
	if !answerable(h, p) || !u.allowed() {
		return
	}
	at, proto := header4, uint8(unix.IPPROTO_ICMP)
	if h.v6 {
		at, proto = header6, unix.IPPROTO_ICMPV6
	}
	b := u.buf[:]
	clear(b[:at+icmpHeader])
	n := copy(b[at+icmpHeader:], p)
	b = b[:at+icmpHeader+n]
	if h.v6 {
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(icmpHeader+n))
		b[6], b[7] = proto, answerTTL
		copy(b[8:], h.destination())
		copy(b[24:], h.source())
		b[at] = unreachNet6
		copyOf := header{addrs: b[8:40], proto: proto}
		putSum(b[at+2:], ^fold(sum(b[at:], pseudo(&copyOf, icmpHeader+n))))
	} else {
		b[0] = 4<<4 | header4/4
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[8], b[9] = answerTTL, proto
		copy(b[12:], h.destination())
		copy(b[16:], h.source())
		putSum(b[10:], ^fold(sum(b[:at], 0)))
		b[at] = unreachNet4
		putSum(b[at+2:], ^fold(sum(b[at:], 0)))
	}
	u.vec[0], u.vec[1] = piece(u.zero[:]), piece(b)
	_ = writev(l.tun, u.vec[:])
}

// answerable reports whether a packet is one that errors may be sent about:
// from one to one, no later fragment, no error itself.
func answerable(h *header, p []byte) bool {
	for _, raw := range [][]byte{h.source(), h.destination()} {
		a, _ := netip.AddrFromSlice(raw)
		if a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return false
		}
	}
	if len(p) <= h.at {
		return false
	}
	if h.v6 {
		return h.proto != unix.IPPROTO_ICMPV6 || p[h.at]&0x80 != 0
	}
	const echo, fragment = 8, 0x1fff
	return binary.BigEndian.Uint16(p[6:])&fragment == 0 && (h.proto != unix.IPPROTO_ICMP || p[h.at] == echo)
}

func (u *unreachable) allowed() bool {
	if now := time.Now().Unix(); now != u.second {
		u.second, u.sent = now, 0
	}
	u.sent++
	return u.sent <= answerRate
}
