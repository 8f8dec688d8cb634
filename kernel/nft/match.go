package nft

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Pieces of rules. All of them work through register 1 (16 bytes); a
// concatenation continues in the 32-bit registers behind it.
const (
	reg      = 1
	reg32    = 8 // unix.NFT_REG32_00, the same memory as register 1
	ifName   = 16
	dportOff = 2
)

type match []expr.Any

// all joins matches: every one of them must hold.
func all(ms ...match) match {
	var out match
	for _, m := range ms {
		out = append(out, m...)
	}
	return out
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) match {
	return match{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

func linkName(name string) []byte {
	b := make([]byte, ifName)
	copy(b[:ifName-1], name)
	return b
}

// wildcard is a link's name as bytes to compare; of one that ends in * only how
// it begins.
func wildcard(link string) []byte {
	if begin, ok := strings.CutSuffix(link, "*"); ok {
		return []byte(begin)
	}
	return linkName(link)
}

func in(link string) match    { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, wildcard(link)) }
func notIn(link string) match { return meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, wildcard(link)) }
func out(link string) match   { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, wildcard(link)) }

func protocol(p uint8) match { return meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{p}) }

func family(v4 bool) match {
	f := byte(unix.NFPROTO_IPV6)
	if v4 {
		f = unix.NFPROTO_IPV4
	}
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f})
}

func loadPort(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: dportOff, Len: 2}
}

func dport(p uint16) match {
	return match{loadPort(reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, p)}}
}

func dportIn(set string) match {
	return match{loadPort(reg), &expr.Lookup{SourceRegister: reg, SetName: set}}
}

// loadAddr loads the first n bytes of a packet's address.
func loadAddr(v4, source bool, n uint32) *expr.Payload {
	p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: n}
	switch {
	case v4 && source:
		p.Offset = 12
	case v4:
		p.Offset = 16
	case source:
		p.Offset = 8
	}
	return p
}

func addrLen(v4 bool) uint32 {
	if v4 {
		return 4
	}
	return 16
}

// from and to match an address of the packet against a prefix; the family
// must have been matched before.
func from(p netip.Prefix) match { return addrWithin(p, true) }
func to(p netip.Prefix) match   { return addrWithin(p, false) }

func addrWithin(p netip.Prefix, source bool) match {
	return append(match{loadAddr(p.Addr().Is4(), source, uint32(prefixBytes(p)))}, within(p)...)
}

func prefixBytes(p netip.Prefix) int { return max((p.Bits()+7)/8, 1) }

// within compares as much of a loaded address as the prefix says.
func within(p netip.Prefix) match {
	bits, n := p.Bits(), prefixBytes(p)
	want := p.Masked().Addr().AsSlice()[:n]
	var m match
	if bits%8 != 0 || bits == 0 {
		mask := make([]byte, n)
		for i := range bits {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		m = append(m, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(n), Mask: mask, Xor: make([]byte, n)})
	}
	return append(m, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: want})
}

// sourceIn and targetIn match an address of the packet against a set.
func sourceIn(v4 bool, set string) match { return addrIn(v4, true, set) }
func targetIn(v4 bool, set string) match { return addrIn(v4, false, set) }

func addrIn(v4, source bool, set string) match {
	return match{loadAddr(v4, source, addrLen(v4)), &expr.Lookup{SourceRegister: reg, SetName: set}}
}

// destinationIn matches destination address and port against a set.
func destinationIn(v4 bool, set string) match {
	return match{
		loadAddr(v4, false, addrLen(v4)),
		loadPort(reg32 + addrLen(v4)/4),
		&expr.Lookup{SourceRegister: reg, SetName: set},
	}
}

// theWayBack matches packets whose source address the routes would send back
// through the interface that they came from; notTheWayBack the others.
func theWayBack() match    { return wayBack(expr.CmpOpNeq) }
func notTheWayBack() match { return wayBack(expr.CmpOpEq) }

func wayBack(op expr.CmpOp) match {
	return match{
		&expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: op, Register: reg, Data: make([]byte, 4)},
	}
}

// routedTo matches packets whose source address the routes would send out of
// this interface; "": out of any.
func routedTo(link string) match {
	if link == "" {
		return match{
			&expr.Fib{Register: reg, FlagSADDR: true, ResultOIF: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
		}
	}
	return match{
		&expr.Fib{Register: reg, FlagSADDR: true, ResultOIFNAME: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: wildcard(link)},
	}
}

func toThisHost() match    { return daddrType(expr.CmpOpEq) }
func notToThisHost() match { return daddrType(expr.CmpOpNeq) }

func daddrType(op expr.CmpOp) match {
	return match{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: reg, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// fromUnicast matches sources that are no address of this host: the first one
// of an IPv6 subnet counts as anycast, whether this host has it or not (RFC
// 4291, 2.6.1).
func fromUnicast() match {
	return match{
		&expr.Fib{Register: reg, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_UNICAST)},
	}
}

func drop() match    { return match{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }
func leave() match   { return match{&expr.Verdict{Kind: expr.VerdictReturn}} }
func masq() match    { return match{&expr.Masq{FullyRandom: true}} }
func notrack() match { return match{&expr.Notrack{}} }

func jump(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// hand is a jump that does not come back.
func hand(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func setType(v4 bool) nftables.SetDatatype {
	if v4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}
