package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// Chains of the table of services that are always there. Those that choose an
// endpoint are in balance_shape.go.
const (
	loopbackChain   = "loopback"
	servicesChain   = "services"
	translatedChain = "translated"
	refuseChain     = "refuse"
)

// Priorities: what translates destinations is where everybody's does. The
// source is decided just before others do it, and what nobody takes is refused
// before others could drop it.
const (
	beforeSourceNAT = 99
	beforeFilters   = -10
)

// fixed is what the chains that are always there are made of.
type fixed struct {
	networks, pods, subnets []netip.Prefix
	loopback                bool // there are frontends at addresses of the loopback interface
	// loading: frontends are still to come. What goes to them is dropped, so
	// that it is tried again, instead of refused.
	loading bool
}

func (x fixed) plan() (table, error) {
	t := table{family: nftables.TableFamilyINet}
	t.chains = []chain{
		{name: "prerouting", hook: hook{typ: nftables.ChainTypeNAT, num: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityNATDest}},
		{name: "output", hook: hook{typ: nftables.ChainTypeNAT, num: *nftables.ChainHookOutput, priority: *nftables.ChainPriorityNATDest}},
		servicesRules(),
		x.postrouting(), x.translated(),
		{name: "forward", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookForward, priority: beforeFilters}},
		{name: "sent", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookOutput, priority: beforeFilters}},
		x.refuse(),
	}
	for i := range t.chains {
		switch c := &t.chains[i]; c.name {
		case "prerouting", "output":
			c.add("services", jump(servicesChain))
		case "forward", "sent":
			for _, n := range x.networks {
				c.add("virtual addresses that nobody took", family(n.Addr().Is4()), to(n), notToThisHost(), hand(refuseChain))
			}
		}
	}
	if x.loopback {
		t.chains = append(t.chains, guardLoopback())
	}
	t.chains = slices.DeleteFunc(t.chains, func(c chain) bool { return len(c.rules) == 0 })
	return t, t.sign()
}

// guardLoopback keeps services of the loopback interface this host's own: with
// route_localnet on a link, the kernel would take packets for them from there.
func guardLoopback() chain {
	c := chain{name: loopbackChain, hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw}}
	for _, m := range []match{to(loopback4()), from(loopback4())} {
		c.add("loopback addresses are this host's own", notIn("lo"), family(true), m, drop())
	}
	return c
}

func loopback4() netip.Prefix { return netip.MustParsePrefix("127.0.0.0/8") }

// servicesRules finds the frontend, and with it the chain that chooses: one
// look for its number, and one for the chain. A verdict in the first map would
// save the second, but the kernel would follow every element of the map to its
// chain whenever one changes: 4 ms with 10,000 of them.
func servicesRules() chain {
	c := chain{name: servicesChain}
	for _, v4 := range []bool{true, false} {
		port := reg32 + addrLen(v4)/4 + 1
		c.add("service, its number in "+services.of(v4).name(), family(v4), loadPlace(v4, reg32),
			match{&expr.Meta{Key: expr.MetaKeyMARK, Register: port + 1}}, again(services.of(v4), reg32, port), match{
				&expr.Lookup{SourceRegister: port + 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: shapes.name()},
			})
	}
	return c
}

// again looks in a map for what is to be looked for in another one. nft up to
// 1.1 lists no such rule: it knows nothing of the length of a map's data, and
// aborts. So data begins with what is in the register before it already, the
// frontend's port, which is then loaded again, and something of the right
// length has been loaded where it goes: that is what nft shows instead.
func again(s setID, from, port uint32) match {
	return match{&expr.Lookup{SourceRegister: from, DestRegister: port, IsDestRegSet: true, SetName: s.name()}, loadPort(port)}
}

// loadPlace loads destination address, protocol and port into a row of
// registers.
func loadPlace(v4 bool, register uint32) match {
	addr := loadAddr(v4, false, addrLen(v4))
	addr.DestRegister = register
	w := addrLen(v4) / 4
	return match{addr, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register + w}, loadPort(register + w + 1)}
}

// postrouting looks at connections that we have translated and no others: the
// destination was changed, and was a virtual address or a frontend here.
func (x fixed) postrouting() chain {
	c := chain{name: "postrouting", hook: hook{typ: nftables.ChainTypeNAT, num: *nftables.ChainHookPostrouting, priority: beforeSourceNAT}}
	for _, n := range x.networks {
		v4 := n.Addr().Is4()
		c.add("to a virtual address", destinationChanged(), family(v4), match{originalAddr(v4)}, within(n), hand(translatedChain))
	}
	for _, v4 := range []bool{true, false} {
		w := addrLen(v4) / 4
		c.add("to a frontend of this host", destinationChanged(), family(v4), match{
			originalAddr(v4), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + w}, originalPort(reg32 + w + 1),
			&expr.Lookup{SourceRegister: reg32, SetName: nodes.of(v4).name()},
		}, hand(translatedChain))
	}
	return c
}

// translated replaces the source where the answer would come another way.
// Towards pods of other hosts it becomes an address of this host's own subnet,
// whether anybody has it or not: a masqueraded connection would end when the
// way to the other host changes between tunnel and underlay.
func (x fixed) translated() chain {
	c := chain{name: translatedChain}
	for _, v4 := range []bool{true, false} {
		src, dst := loadAddr(v4, true, addrLen(v4)), loadAddr(v4, false, addrLen(v4))
		src.DestRegister, dst.DestRegister = reg32, reg32+addrLen(v4)/4
		c.add("a container that reaches itself", family(v4), match{src, dst,
			&expr.Lookup{SourceRegister: reg32, SetName: hairpins.of(v4).name()}}, masq())
	}
	for _, own := range x.subnets {
		for _, p := range ofFamily(x.pods, own.Addr().Is4()) {
			c.add("between pods, from here", family(own.Addr().Is4()), from(own), to(p), leave())
		}
		c.add("from pods of this host to elsewhere", family(own.Addr().Is4()), from(own), fromUnicast(), leave())
	}
	for _, p := range x.subnets {
		if p.Addr().Is4() {
			c.add("from the loopback interface to pods of this host", family(true), from(loopback4()), to(p), masq())
		}
		c.add("to pods of this host", family(p.Addr().Is4()), to(p), leave())
	}
	for _, p := range x.pods {
		for _, own := range ofFamily(x.subnets, p.Addr().Is4()) {
			c.add("from others to pods of other hosts", family(p.Addr().Is4()), to(p), snat(own.Masked().Addr()))
		}
	}
	c.add("from others and this host itself to elsewhere", masq())
	return c
}

// snat gives packets another source address, with a port at random.
func snat(a netip.Addr) match {
	n := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: reg, FullyRandom: true}
	if a.Is4() {
		n.Family = unix.NFPROTO_IPV4
	}
	return match{&expr.Immediate{Register: reg, Data: a.AsSlice()}, n}
}

// refuse answers; to whom an ICMP message goes, the kernel decides (RFC 792,
// RFC 4443).
func (x fixed) refuse() chain {
	c := chain{name: refuseChain}
	if len(x.networks) == 0 {
		return c
	}
	for _, v4 := range []bool{true, false} {
		c.add("a host, and no virtual address", family(v4), targetIn(v4, hosts.of(v4).name()), leave())
	}
	if x.loading {
		c.add("services are being loaded", drop())
		return c
	}
	c.add("no such service, or none of its endpoints is there", protocol(unix.IPPROTO_TCP), match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	c.add("no such service, or none of its endpoints is there",
		match{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
	return c
}

// destinationChanged matches connections whose destination somebody translated.
func destinationChanged() match {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return match{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// Keys of ct that the library does not know (Linux 4.17).
const (
	ctDaddr4 expr.CtKey = 20 // NFT_CT_DST_IP
	ctDaddr6 expr.CtKey = 22 // NFT_CT_DST_IP6
)

// originalAddr loads where the connection went to before it was translated.
func originalAddr(v4 bool) *expr.Ct {
	if v4 {
		return &expr.Ct{Key: ctDaddr4, Register: reg}
	}
	return &expr.Ct{Key: ctDaddr6, Register: reg}
}

func originalPort(register uint32) *expr.Ct {
	return &expr.Ct{Key: expr.CtKeyPROTODST, Register: register}
}

// marshal is expr.Marshal, but for what is said of a direction of a connection:
// there the library leaves it out, or sends four bytes for one.
func marshal(e expr.Any) ([]byte, error) {
	ct, ok := e.(*expr.Ct)
	if !ok || ct.Key != ctDaddr4 && ct.Key != ctDaddr6 && ct.Key != expr.CtKeyPROTODST {
		return expr.Marshal(unix.NFPROTO_INET, e)
	}
	body := appendAttr(nil, unix.NFTA_CT_KEY, binary.BigEndian.AppendUint32(nil, uint32(ct.Key)))
	body = appendAttr(body, unix.NFTA_CT_DREG, binary.BigEndian.AppendUint32(nil, ct.Register))
	body = appendAttr(body, unix.NFTA_CT_DIRECTION, []byte{byte(ct.Direction)})
	b := appendAttr(nil, unix.NFTA_EXPR_NAME, []byte("ct\x00"))
	return appendAttr(b, unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, body), nil
}

// appendAttr adds a netlink attribute.
func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// message adds the rule at the end of a chain.
func (r rule) message(b *nlbatch.Batch, table, chain string) error {
	var list []byte
	for _, e := range r.exprs {
		m, err := marshal(e)
		if err != nil {
			return fmt.Errorf("rule %q of chain %s: %w", r.comment, chain, err)
		}
		list = appendAttr(list, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, m)
	}
	ask(b, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	b.String(unix.NFTA_RULE_TABLE, table)
	b.String(unix.NFTA_RULE_CHAIN, chain)
	b.Bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, list)
	b.Bytes(unix.NFTA_RULE_USERDATA, comment(r.comment))
	return nil
}
