package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Names of the sets of addresses that answer DNS, of the chains that look at
// packets to and from port 53, and of the set in the table of family arp.
const (
	names4, names6 = "names4", "names6"
	namesChain     = "names"
	namedChain     = "named"
	offLink        = "offlink"
)

const dnsPort = 53

func namesOf(v4 bool) string {
	if v4 {
		return names4
	}
	return names6
}

func nameSets(r rules.Rules) []set {
	var out []set
	for _, v4 := range []bool{true, false} {
		s := set{name: namesOf(v4), typ: setType(v4)}
		for _, a := range rules.OfFamily(r.Names, v4) {
			s.keys = append(s.keys, string(a.AsSlice()))
		}
		out = append(out, s)
	}
	return out
}

// queries leaves questions to this host's names untracked, whoever asks. It
// goes first and decides nothing else. What is not UDP costs a comparison.
func (c *chain) queries(r rules.Rules) {
	if len(r.Names) > 0 {
		c.add("DNS queries", protocol(unix.IPPROTO_UDP), dport(dnsPort), jump(namesChain))
	}
}

// answers does so with what this host sends from there, and keeps to itself
// that nobody listens: to resolvers that is an answer (ECONNREFUSED), silence
// is not.
func (c *chain) answers(r rules.Rules) {
	if len(r.Names) == 0 {
		return
	}
	c.add("DNS answers", protocol(unix.IPPROTO_UDP), sport(dnsPort), jump(namedChain))
	for _, v4 := range []bool{true, false} {
		c.add("a closed DNS port is not told of", closedTold(v4, dnsPort), drop())
	}
}

// names are the two chains that packets of UDP port 53 are handed to.
func names(r rules.Rules) []chain {
	if len(r.Names) == 0 {
		return nil
	}
	to, from := chain{name: namesChain}, chain{name: namedChain}
	for _, v4 := range []bool{true, false} {
		to.add("DNS is not tracked", family(v4), targetIn(v4, namesOf(v4)), notrack())
		from.add("DNS is not tracked", family(v4), sourceIn(v4, namesOf(v4)), notrack())
	}
	return []chain{to, from}
}

func sport(p uint16) match {
	return match{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{byte(p >> 8), byte(p)}},
	}
}

// closedTold matches ICMP messages "port unreachable" (RFC 792, RFC 4443)
// about a packet to a UDP port of one of this host's names. Whom they come
// from does not matter: of an IPv6 address that no interface has the kernel
// sends them from another. What had IPv4 options or IPv6 extension headers is
// not matched.
func closedTold(v4 bool, port uint16) match {
	icmp, kind := byte(unix.IPPROTO_ICMPV6), []byte{1, 4}
	const inner = 8 // where the packet begins that the message is about
	next, dst, length := uint32(6), uint32(24), uint32(40)
	if v4 {
		icmp, kind = unix.IPPROTO_ICMP, []byte{3, 3}
		next, dst, length = 9, 16, 20
	}
	at := func(offset, n uint32) *expr.Payload {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: n}
	}
	is := func(offset uint32, want []byte) match {
		return match{at(offset, uint32(len(want))), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: want}}
	}
	m := all(protocol(icmp), family(v4), is(0, kind))
	if v4 {
		m = all(m, is(inner, []byte{0x45})) // no options
	}
	return all(m, is(inner+next, []byte{unix.IPPROTO_UDP}), is(inner+length+dportOff, []byte{byte(port >> 8), byte(port)}),
		match{at(inner+dst, addrLen(v4)), &expr.Lookup{SourceRegister: reg, SetName: namesOf(v4)}})
}

// arpOf says what our table of family arp must hold: the kernel answers ARP on
// any link for every address of the host, and an address that is on no link may
// be somebody else's there. IPv6 has nothing of the kind.
func arpOf(r rules.Rules) (table, error) {
	t := table{family: nftables.TableFamilyARP}
	s := set{name: offLink, typ: setType(true)}
	for _, a := range rules.OfFamily(r.OffLink, true) {
		s.keys = append(s.keys, string(a.AsSlice()))
	}
	if len(s.keys) == 0 {
		return t, nil
	}
	c := chain{name: "input", hook: hook{typ: nftables.ChainTypeFilter, num: arpIn, priority: *nftables.ChainPriorityFilter}}
	c.add("addresses that are on no link", arpRequest(), arpTarget(offLink), drop())
	t.sets, t.chains = []set{s}, []chain{c}
	return t, t.sign()
}

// arpIn is NF_ARP_IN: hooks of ARP have other numbers than those of IP.
const arpIn nftables.ChainHook = 0

// arpRequest matches requests for an IPv4 address on Ethernet (RFC 826).
func arpRequest() match {
	return match{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0, 1, 8, 0, 6, 4, 0, 1}},
	}
}

func arpTarget(set string) match {
	return match{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 4},
		&expr.Lookup{SourceRegister: reg, SetName: set},
	}
}
