package cnitable

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// The tables, as nft shows them:
//
//	table inet flanneld-cni {
//		map masq4 { type ipv4_addr : verdict; }   # container → goto its network's chain
//		map masq6 { type ipv6_addr : verdict; }
//		chain outgoing { type nat hook postrouting priority srcnat; ip saddr vmap @masq4; ip6 saddr vmap @masq6 }
//		chain net-<hash> { ip daddr <inside> return; ip daddr 224.0.0.0/4 return; …; masquerade fully-random }
//	}
//	table bridge flanneld-cni {
//		set guard4 { type ifname . ether_addr . ipv4_addr; }
//		set guard6 { type ifname . ether_addr . ipv6_addr; }
//		map ports { type ifname : verdict; }      # host link → goto guard
//		chain ports { type filter hook prerouting priority dstnat; IPv4: in guard4 accept; iifname vmap @ports }
//		chain guard { ARP: in guard4 accept; IPv6: in guard6 goto nd; drop }
//		chain nd { no router advertisement, no redirect, neighbour advertisement of own addresses; accept }
//	}
const (
	masqueradeChain = "outgoing"
	portsChain      = "ports"
	guardChain      = "guard"
	ndChain         = "nd"
)

// Type numbers of the nft program, for it to show the sets.
const (
	typeVerdict  = unix.NFT_DATA_VERDICT
	typeIPv4     = 7
	typeIPv6     = 8
	typeEther    = 9
	typeIfname   = 41
	ifnameLen    = 16
	etherLen     = 6
	etherPadded  = 8
	flagVerdicts = 0x8 // NFT_SET_MAP

	nfDrop, nfAccept = 0, 1
)

type setOf struct {
	family   uint8
	name     string
	keyType  uint32
	keyLen   uint32
	verdicts bool
	guard    bool // the key begins with the host link
}

var cniSets = []setOf{
	{unix.NFPROTO_INET, "masq4", typeIPv4, 4, true, false},
	{unix.NFPROTO_INET, "masq6", typeIPv6, 16, true, false},
	{unix.NFPROTO_BRIDGE, "guard4", typeIfname<<12 | typeEther<<6 | typeIPv4, ifnameLen + etherPadded + 4, false, true},
	{unix.NFPROTO_BRIDGE, "guard6", typeIfname<<12 | typeEther<<6 | typeIPv6, ifnameLen + etherPadded + 16, false, true},
	{unix.NFPROTO_BRIDGE, "ports", typeIfname, ifnameLen, true, true},
}

// element is one element of a set; chain is where a verdict goes.
type element struct {
	family  uint8
	set     string
	key     []byte
	chain   string
	network string
	what    string // for people
}

// NetworkChain is the chain of one network; names of networks may be longer
// than those of chains.
func NetworkChain(network string) string {
	sum := sha256.Sum256([]byte(network))
	return "net-" + hex.EncodeToString(sum[:6])
}

func elementsOf(a Attachment) []element {
	var out []element
	for _, addr := range a.Addresses {
		if !a.Masquerade {
			break
		}
		out = append(out, element{
			unix.NFPROTO_INET, bySize(addr, "masq4", "masq6"), addr.AsSlice(), NetworkChain(a.Network), a.Network,
			"masquerading of " + addr.String(),
		})
	}
	if !a.Guard {
		return out
	}
	out = append(out, element{unix.NFPROTO_BRIDGE, "ports", ifname(a.Link), guardChain, a.Network, "guard of port " + a.Link})
	for _, addr := range guarded(a) {
		key := append(ifname(a.Link), a.MAC...)
		key = append(key, make([]byte, etherPadded-len(a.MAC))...)
		out = append(out, element{
			unix.NFPROTO_BRIDGE, bySize(addr, "guard4", "guard6"), append(key, addr.AsSlice()...), "", a.Network,
			"permission of " + addr.String() + " on port " + a.Link,
		})
	}
	return out
}

// guarded is all that a container may send from: its addresses, what has none
// yet sends from, and its IPv6 link-local address.
func guarded(a Attachment) []netip.Addr {
	return append(slices.Clone(a.Addresses), netip.IPv4Unspecified(), netip.IPv6Unspecified(), linkLocal(a.MAC))
}

// linkLocal is the address that the kernel makes of a MAC (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:11], mac)
	copy(a[13:], mac[3:])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

func bySize(a netip.Addr, four, six string) string {
	if a.Is4() {
		return four
	}
	return six
}

func ifname(link string) []byte {
	b := make([]byte, ifnameLen)
	copy(b, link)
	return b
}

func linkOf(key []byte) string {
	b := key[:min(ifnameLen, len(key))]
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// messages is a transaction under construction.
type messages struct {
	nlbatch.Batch
	sets uint32
}

func (m *messages) message(kind int, family uint8, flags uint16) {
	m.Message(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind), flags, []byte{family, unix.NFNETLINK_V0, 0, 0})
}

func (m *messages) elements(a Attachment, kind int) {
	for _, e := range elementsOf(a) {
		m.element(e, kind)
	}
}

func (m *messages) element(e element, kind int) {
	var flags uint16
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	m.message(kind, e.family, flags)
	m.elementBody(e, kind == unix.NFT_MSG_NEWSETELEM)
}

// elementBody names the element; with data it also says what it means.
func (m *messages) elementBody(e element, data bool) {
	m.String(unix.NFTA_SET_ELEM_LIST_TABLE, Name)
	m.String(unix.NFTA_SET_ELEM_LIST_SET, e.set)
	m.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		m.Nest(unix.NFTA_LIST_ELEM, func() {
			m.Nest(unix.NFTA_SET_ELEM_KEY, func() { m.Bytes(unix.NFTA_DATA_VALUE, e.key) })
			if !data {
				return
			}
			if e.chain != "" {
				m.Nest(unix.NFTA_SET_ELEM_DATA, func() { m.verdictData(unix.NFT_GOTO, e.chain) })
			}
			m.Bytes(unix.NFTA_SET_ELEM_USERDATA, comment(e.network))
		})
	})
}

// comment is a text as the nft program stores it with an element (udata type
// 0, length, zero-terminated text).
func comment(text string) []byte {
	text = text[:min(len(text), 120)]
	return append(append([]byte{0, byte(len(text) + 1)}, text...), 0)
}

func parseElement(s setOf, item []byte) element {
	e := element{family: s.family, set: s.name}
	for kind, data := range nlbatch.Attrs(item) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			for kind, value := range nlbatch.Attrs(data) {
				if kind == unix.NFTA_DATA_VALUE {
					e.key = slices.Clone(value)
				}
			}
		case unix.NFTA_SET_ELEM_USERDATA:
			if len(data) > 2 && data[0] == 0 {
				e.network = string(data[2 : len(data)-1])
			}
		}
	}
	return e
}

func (m *messages) structure(family uint8) {
	m.message(unix.NFT_MSG_NEWTABLE, family, unix.NLM_F_CREATE)
	m.String(unix.NFTA_TABLE_NAME, Name)
	for _, s := range cniSets {
		if s.family != family {
			continue
		}
		m.sets++
		m.message(unix.NFT_MSG_NEWSET, family, unix.NLM_F_CREATE)
		m.String(unix.NFTA_SET_TABLE, Name)
		m.String(unix.NFTA_SET_NAME, s.name)
		m.BigUint32(unix.NFTA_SET_KEY_TYPE, s.keyType)
		m.BigUint32(unix.NFTA_SET_KEY_LEN, s.keyLen)
		m.BigUint32(unix.NFTA_SET_ID, m.sets)
		if s.keyType == typeIfname {
			m.Bytes(unix.NFTA_SET_USERDATA, native.AppendUint32([]byte{0, 4}, 1)) // for nft: key in host byte order
		}
		if s.verdicts {
			m.BigUint32(unix.NFTA_SET_FLAGS, flagVerdicts)
			m.BigUint32(unix.NFTA_SET_DATA_TYPE, typeVerdict)
		}
	}
}

func (m *messages) masqueradeRules(a Attachment) {
	const inet = unix.NFPROTO_INET
	m.structure(inet)
	m.baseChain(inet, masqueradeChain, "nat", unix.NF_INET_POST_ROUTING, 100)
	m.chain(inet, NetworkChain(a.Network))
	m.rule(inet, masqueradeChain, isFamily(unix.NFPROTO_IPV4), source(4), lookup("masq4", 1, verdictRegister))
	m.rule(inet, masqueradeChain, isFamily(unix.NFPROTO_IPV6), source(6), lookup("masq6", 1, verdictRegister))
	for _, p := range slices.Concat(a.Inside, Multicast()) {
		m.rule(inet, NetworkChain(a.Network), append(destination(p), verdict(unix.NFT_RETURN, "")...)...)
	}
	m.rule(inet, NetworkChain(a.Network), masquerade)
}

// Multicast is what is not masqueraded in any network.
func Multicast() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}
}

func (m *messages) guardRules() {
	const (
		bridge              = unix.NFPROTO_BRIDGE
		arp, ip, ip6        = 0x0806, 0x0800, 0x86dd
		routerAdvertisement = 134
		neighbourAdv        = 136
		redirect            = 137
	)
	m.structure(bridge)
	m.baseChain(bridge, portsChain, "filter", 0 /* NF_BR_PRE_ROUTING */, -300)
	m.chain(bridge, guardChain)
	m.chain(bridge, ndChain)
	accept, drop := verdict(nfAccept, ""), verdict(nfDrop, "")

	m.rule(bridge, portsChain, slices.Concat(etherType(ip), from(netHeader, 12, 4), in("guard4"), accept)...)
	m.rule(bridge, portsChain, iifname, lookup("ports", unix.NFT_REG32_00, verdictRegister))

	arpSender := slices.Concat([]expression{iifname, payload(netHeader, 8, etherLen, regEther), payload(netHeader, 14, 4, regAddr)}, in("guard4"))
	m.rule(bridge, guardChain, slices.Concat(etherType(arp), from(netHeader, 14, 4), in("guard4"), arpSender, accept)...)
	m.rule(bridge, guardChain, slices.Concat(etherType(ip6), from(netHeader, 8, 16), in("guard6"), verdict(unix.NFT_GOTO, ndChain))...)
	m.rule(bridge, guardChain, slices.Concat([]expression{counter}, drop)...)

	m.rule(bridge, ndChain, slices.Concat(icmp6(routerAdvertisement), drop)...)
	m.rule(bridge, ndChain, slices.Concat(icmp6(redirect), drop)...)
	m.rule(bridge, ndChain, slices.Concat(icmp6(neighbourAdv), from(transport, 8, 16), in("guard6"), accept)...)
	m.rule(bridge, ndChain, slices.Concat(icmp6(neighbourAdv), drop)...)
}

func (m *messages) baseChain(family uint8, name, kind string, hook uint32, priority int32) {
	m.message(unix.NFT_MSG_NEWCHAIN, family, unix.NLM_F_CREATE)
	m.String(unix.NFTA_CHAIN_TABLE, Name)
	m.String(unix.NFTA_CHAIN_NAME, name)
	m.Nest(unix.NFTA_CHAIN_HOOK, func() {
		m.BigUint32(unix.NFTA_HOOK_HOOKNUM, hook)
		m.BigUint32(unix.NFTA_HOOK_PRIORITY, uint32(priority))
	})
	m.String(unix.NFTA_CHAIN_TYPE, kind)
	m.flush(family, name)
}

func (m *messages) chain(family uint8, name string) {
	m.message(unix.NFT_MSG_NEWCHAIN, family, unix.NLM_F_CREATE)
	m.String(unix.NFTA_CHAIN_TABLE, Name)
	m.String(unix.NFTA_CHAIN_NAME, name)
	m.flush(family, name)
}

func (m *messages) flush(family uint8, chain string) {
	m.message(unix.NFT_MSG_DELRULE, family, 0)
	m.String(unix.NFTA_RULE_TABLE, Name)
	m.String(unix.NFTA_RULE_CHAIN, chain)
}

// rule appends a rule.
func (m *messages) rule(family uint8, chain string, expressions ...expression) {
	m.message(unix.NFT_MSG_NEWRULE, family, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	m.String(unix.NFTA_RULE_TABLE, Name)
	m.String(unix.NFTA_RULE_CHAIN, chain)
	m.Nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, e := range expressions {
			e(m)
		}
	})
}

// verdictData is a verdict as an element's or an immediate's data.
func (m *messages) verdictData(code int32, chain string) {
	m.Nest(unix.NFTA_DATA_VERDICT, func() {
		m.BigUint32(unix.NFTA_VERDICT_CODE, uint32(code))
		if chain != "" {
			m.String(unix.NFTA_VERDICT_CHAIN, chain)
		}
	})
}

var native = binary.NativeEndian

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
