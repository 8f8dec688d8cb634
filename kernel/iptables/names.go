package iptables

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Chains that packets to and from UDP port 53 are handed to.
const namesChain, namedChain = prefix + "NAMES", prefix + "NAMED"

// queries leaves questions to this host's names untracked, whoever asks. It
// goes first and decides nothing else.
func (c *chain) queries(r rules.Rules, v4 bool) {
	if len(rules.OfFamily(r.Names, v4)) > 0 {
		c.add("-p udp -m udp --dport 53", namesChain)
	}
}

// names are the chains of DNS, and what becomes of packets that this host sends.
// That nobody listens it keeps to itself: to resolvers that is an answer
// (ECONNREFUSED), silence is not.
func names(r rules.Rules, v4 bool) []chain {
	out := chain{table: "raw", name: prefix + "OUT", parent: "OUTPUT"}
	to, from := chain{table: "raw", name: namesChain}, chain{table: "raw", name: namedChain}
	out.queries(r, v4)
	addrs := rules.OfFamily(r.Names, v4)
	if len(addrs) > 0 {
		out.add("-p udp -m udp --sport 53", namedChain)
	}
	for _, a := range addrs {
		out.add(closedTold(a), "DROP")
		to.add("-d "+a.String(), "CT --notrack")
		from.add("-s "+a.String(), "CT --notrack")
	}
	return []chain{out, to, from}
}

// closedTold matches ICMP messages "port unreachable" about a packet to UDP
// port 53 of an address. Whom they come from does not matter: of an IPv6
// address that no interface has the kernel sends them from another. What had
// IPv4 options or IPv6 extension headers is not matched.
func closedTold(a netip.Addr) string {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(a.AsSlice()[4*i:]) }
	if a.Is4() {
		const icmp = "0>>22&0x3C@" // skips the IP header
		return fmt.Sprintf(`-p icmp -m icmp --icmp-type 3/3 -m u32 --u32 "%[1]s8>>24=0x45&&%[1]s16>>16&0xFF=17&&%[1]s28&0xFFFF=53&&%[1]s24=0x%[2]x"`, icmp, word(0))
	}
	return fmt.Sprintf(`-p ipv6-icmp -m icmp6 --icmpv6-type 1/4 -m u32 --u32 "52>>8&0xFF=17&&88&0xFFFF=53&&72=0x%x&&76=0x%x&&80=0x%x&&84=0x%x"`,
		word(0), word(1), word(2), word(3))
}
