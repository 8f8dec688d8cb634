package probe

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
)

func TestPacketsAsTheKernelExpectsThem(t *testing.T) {
	e := echo{id: 0x1234, seq: 7, nonce: [nonceLen]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	a4, b4 := netip.MustParseAddr("10.1.1.0"), netip.MustParseAddr("10.1.2.0")
	p := e.packet(a4, b4, 40)
	if len(p) != 40 || checksum(p[:header4], 0) != 0 || checksum(p[header4:], 0) != 0 {
		t.Errorf("IPv4: % x", p)
	}
	a6, b6 := netip.MustParseAddr("fd00:1:1::"), netip.MustParseAddr("fd00:1:2::")
	p = e.packet(a6, b6, 60)
	pseudo := append(append(bytes.Clone(p[8:40]), 0, 0, 0, 20, 0, 0, 0, 58), p[40:]...)
	if len(p) != 60 || checksum(pseudo, 0) != 0 {
		t.Errorf("IPv6: % x", p)
	}
}

func TestOwnSYNHasAGoodChecksum(t *testing.T) {
	for from, to := range map[string]string{"10.1.1.0": "10.1.2.0", "fd00:1:1::": "fd00:1:2::"} {
		a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
		p := syn(a, netip.AddrPortFrom(b, Port), 40000, 7)
		if checksum(append(append(a.AsSlice(), b.AsSlice()...), p...), 6+tcpHeader) != 0 {
			t.Errorf("%s: % x", from, p)
		}
		if fromPort(p, Port, 40000) || !fromPort(p, 40000, Port) || fromPort(p[:19], 40000, Port) {
			t.Error("ports")
		}
	}
}

func TestOnlyTheAnswerCounts(t *testing.T) {
	a := netip.MustParseAddr("10.1.2.0")
	e := echo{id: 1, seq: 2, nonce: [nonceLen]byte{3}}
	answer := e.append(nil, a, 100)
	answer[0] = echoReply4
	if !e.answers(answer, a, 100) {
		t.Error("the answer itself")
	}
	other := e
	other.nonce[7]++
	for name, no := range map[string]bool{
		"the request":   e.answers(e.append(nil, a, 100), a, 100),
		"another size":  e.answers(answer, a, 101),
		"another seq":   echo{id: 1, seq: 3, nonce: e.nonce}.answers(answer, a, 100),
		"another id":    echo{id: 2, seq: 2, nonce: e.nonce}.answers(answer, a, 100),
		"another nonce": other.answers(answer, a, 100),
		"a part of it":  e.answers(answer[:20], a, 100),
		"nothing":       e.answers(nil, a, 100),
	} {
		if no {
			t.Errorf("%s counts as the answer", name)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	e := echo{id: 1, seq: 2, nonce: [nonceLen]byte{3}}
	v4, v6 := netip.MustParseAddr("10.1.2.0"), netip.MustParseAddr("fd00::")
	for _, a := range []netip.Addr{v4, v6} {
		reply := e.append(nil, a, 64)
		f.Add(reply, 64)
		reply[0] = echoReply6
		f.Add(reply, 64)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size < 0 || size > 1<<16 {
			return
		}
		for _, a := range []netip.Addr{v4, v6} {
			if e.answers(b, a, size) && !bytes.Equal(b[headerICMP:headerICMP+nonceLen], e.nonce[:]) {
				t.Errorf("%s counts as the answer", hex.EncodeToString(b))
			}
		}
	})
}
