// Package dnswire packs questions and reads answers, for tests that ask a name
// server or play one. It is apart from what the server itself uses, so that
// neither hides the other's faults.
package dnswire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Types of records (RFC 1035, section 3.2.2; RFC 3596).
const (
	A    uint16 = 1
	AAAA uint16 = 28
)

// Response codes (RFC 1035, section 4.1.1).
const (
	NoError   = 0
	NameError = 3
)

const headerSize = 12

// Query is one question with recursion desired and an OPT record that offers
// 1,232 bytes, as resolvers send it. name has no escapes.
func Query(id uint16, name string, qtype uint16) []byte {
	msg := binary.BigEndian.AppendUint16(nil, id)
	msg = append(msg, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1)
	msg = appendName(msg, name)
	msg = binary.BigEndian.AppendUint16(msg, qtype)
	msg = append(msg, 0, 1)
	return append(msg, opt()...)
}

// opt is an OPT record without options, RFC 6891.
func opt() []byte { return []byte{0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0} }

func appendName(msg []byte, name string) []byte {
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		msg = append(append(msg, byte(len(label))), label...)
	}
	return append(msg, 0)
}

// Reply is what a test looks at of an answer.
type Reply struct {
	ID        uint16
	RCode     int
	Truncated bool
	Answers   int // records in the answer section
	Addrs     []netip.Addr
}

// errShort: the message ends in the middle of something.
var errShort = errors.New("message ends too early")

// ParseReply reads a response with one question.
func ParseReply(msg []byte) (Reply, error) {
	if len(msg) < headerSize || msg[2]&0x80 == 0 {
		return Reply{}, errors.New("not a response")
	}
	r := Reply{ID: binary.BigEndian.Uint16(msg), RCode: int(msg[3] & 15), Truncated: msg[2]&2 != 0, Answers: int(binary.BigEndian.Uint16(msg[6:]))}
	at, err := skipName(msg, headerSize)
	if err != nil {
		return r, err
	}
	at += 4
	for range r.Answers {
		if at, err = skipName(msg, at); err != nil {
			return r, err
		}
		if at+10 > len(msg) {
			return r, errShort
		}
		size := int(binary.BigEndian.Uint16(msg[at+8:]))
		kind := binary.BigEndian.Uint16(msg[at:])
		at += 10
		if at+size > len(msg) {
			return r, errShort
		}
		if kind == A || kind == AAAA {
			addr, ok := netip.AddrFromSlice(msg[at : at+size])
			if !ok {
				return r, fmt.Errorf("address of %d bytes", size)
			}
			r.Addrs = append(r.Addrs, addr)
		}
		at += size
	}
	return r, nil
}

// skipName returns the offset behind the name at an offset.
func skipName(msg []byte, at int) (int, error) {
	for at < len(msg) {
		switch n := int(msg[at]); {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0:
			return at + 2, nil
		default:
			at += 1 + n
		}
	}
	return at, errShort
}

// Question reads a query: the name without the dot at the end, spelt as it
// came, the type, and the offset behind the question.
func Question(msg []byte) (name string, qtype uint16, end int, err error) {
	if len(msg) < headerSize || msg[2]&0x80 != 0 {
		return "", 0, 0, errors.New("not a query")
	}
	end, err = skipName(msg, headerSize)
	if err != nil || end+4 > len(msg) {
		return "", 0, 0, errShort
	}
	var labels []string
	for at := headerSize; msg[at] != 0; at += 1 + int(msg[at]) {
		labels = append(labels, string(msg[at+1:at+1+int(msg[at])]))
	}
	return strings.Join(labels, "."), binary.BigEndian.Uint16(msg[end:]), end + 4, nil
}

// AppendAnswer appends the response to a query whose question ends at end:
// these addresses, with an OPT record if the query had more than a question.
// The addresses must be of the question's type.
func AppendAnswer(out, query []byte, end, rcode int, ttl uint32, addrs ...netip.Addr) []byte {
	begin := len(out)
	out = append(out, query[:end]...)
	head := out[begin:]
	extra := binary.BigEndian.Uint16(query[10:])
	head[2], head[3] = 0x80|query[2]&1, 0x80|byte(rcode)
	binary.BigEndian.PutUint16(head[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint16(head[8:], 0)
	binary.BigEndian.PutUint16(head[10:], min(extra, 1))
	for _, a := range addrs {
		kind := A
		if a.Is6() {
			kind = AAAA
		}
		raw := a.AsSlice()
		out = append(out, 0xc0, headerSize)
		out = binary.BigEndian.AppendUint16(out, kind)
		out = append(out, 0, 1)
		out = binary.BigEndian.AppendUint32(out, ttl)
		out = binary.BigEndian.AppendUint16(out, uint16(len(raw)))
		out = append(out, raw...)
	}
	if extra > 0 {
		out = append(out, opt()...)
	}
	return out
}
