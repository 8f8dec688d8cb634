package cnitable

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// expression adds itself to the rule under construction.
type expression func(*messages)

// Registers: a key made of several fields lies in the row of 4-byte registers,
// interface name first.
const (
	verdictRegister = unix.NFT_REG_VERDICT
	regEther        = unix.NFT_REG32_04
	regAddr         = unix.NFT_REG32_06
	noRegister      = -1
)

// Payload bases.
const (
	linkHeader = unix.NFT_PAYLOAD_LL_HEADER
	netHeader  = unix.NFT_PAYLOAD_NETWORK_HEADER
	transport  = unix.NFT_PAYLOAD_TRANSPORT_HEADER
)

func expr(name string, body func(*messages)) expression {
	return func(m *messages) {
		m.Nest(unix.NFTA_LIST_ELEM, func() {
			m.String(unix.NFTA_EXPR_NAME, name)
			m.Nest(unix.NFTA_EXPR_DATA, func() { body(m) })
		})
	}
}

func payload(base, offset, length, register uint32) expression {
	return expr("payload", func(m *messages) {
		m.BigUint32(unix.NFTA_PAYLOAD_DREG, register)
		m.BigUint32(unix.NFTA_PAYLOAD_BASE, base)
		m.BigUint32(unix.NFTA_PAYLOAD_OFFSET, offset)
		m.BigUint32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

func metaTo(key, register uint32) expression {
	return expr("meta", func(m *messages) {
		m.BigUint32(unix.NFTA_META_KEY, key)
		m.BigUint32(unix.NFTA_META_DREG, register)
	})
}

// equal compares register 1.
func equal(data []byte) expression {
	return expr("cmp", func(m *messages) {
		m.BigUint32(unix.NFTA_CMP_SREG, 1)
		m.BigUint32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ)
		m.Nest(unix.NFTA_CMP_DATA, func() { m.Bytes(unix.NFTA_DATA_VALUE, data) })
	})
}

// lookup looks the key in register up in a set; with a result register the
// set is a map.
func lookup(set string, register uint32, result int) expression {
	return expr("lookup", func(m *messages) {
		m.String(unix.NFTA_LOOKUP_SET, set)
		m.BigUint32(unix.NFTA_LOOKUP_SREG, register)
		if result != noRegister {
			m.BigUint32(unix.NFTA_LOOKUP_DREG, uint32(result))
		}
	})
}

func verdict(code int32, chain string) []expression {
	return []expression{expr("immediate", func(m *messages) {
		m.BigUint32(unix.NFTA_IMMEDIATE_DREG, verdictRegister)
		m.Nest(unix.NFTA_IMMEDIATE_DATA, func() { m.verdictData(code, chain) })
	})}
}

func masquerade(m *messages) {
	expr("masq", func(m *messages) {
		m.BigUint32(unix.NFTA_MASQ_FLAGS, unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY)
	})(m)
}

func counter(m *messages) {
	expr("counter", func(*messages) {})(m)
}

func iifname(m *messages) { metaTo(unix.NFT_META_IIFNAME, unix.NFT_REG32_00)(m) }

func isFamily(f byte) expression {
	return func(m *messages) {
		metaTo(unix.NFT_META_NFPROTO, 1)(m)
		equal([]byte{f})(m)
	}
}

// source loads the source address into register 1.
func source(version int) expression {
	if version == 4 {
		return payload(netHeader, 12, 4, 1)
	}
	return payload(netHeader, 8, 16, 1)
}

// destination matches packets to a prefix.
func destination(p netip.Prefix) []expression {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if !p.Addr().Is4() {
		family, offset, length = unix.NFPROTO_IPV6, 24, 16
	}
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expression{
		isFamily(family), payload(netHeader, offset, length, 1),
		expr("bitwise", func(m *messages) {
			m.BigUint32(unix.NFTA_BITWISE_SREG, 1)
			m.BigUint32(unix.NFTA_BITWISE_DREG, 1)
			m.BigUint32(unix.NFTA_BITWISE_LEN, length)
			m.Nest(unix.NFTA_BITWISE_MASK, func() { m.Bytes(unix.NFTA_DATA_VALUE, mask) })
			m.Nest(unix.NFTA_BITWISE_XOR, func() { m.Bytes(unix.NFTA_DATA_VALUE, make([]byte, length)) })
		}),
		equal(p.Masked().Addr().AsSlice()),
	}
}

// etherType matches the frame's type; a VLAN tag is a type of its own.
func etherType(t uint16) []expression {
	return []expression{payload(linkHeader, 12, 2, 1), equal(be16(t))}
}

// icmp6 matches a type of ICMPv6, behind extension headers too.
func icmp6(kind byte) []expression {
	return []expression{
		metaTo(unix.NFT_META_L4PROTO, 1), equal([]byte{unix.IPPROTO_ICMPV6}),
		payload(transport, 0, 1, 1), equal([]byte{kind}),
	}
}

// from loads interface, Ethernet source and an address, for in.
func from(base, offset, length uint32) []expression {
	return []expression{iifname, payload(linkHeader, 6, etherLen, regEther), payload(base, offset, length, regAddr)}
}

// in looks the loaded key up.
func in(set string) []expression {
	return []expression{lookup(set, unix.NFT_REG32_00, noRegister)}
}
