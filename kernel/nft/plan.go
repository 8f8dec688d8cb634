package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// table is what a table of ours holds: as it should be, or as the kernel has it.
type table struct {
	family nftables.TableFamily
	exists bool // in the kernel
	broken bool // in the kernel, with contents that are not ours
	sets   []set
	chains []chain
}

type set struct {
	name string
	typ  nftables.SetDatatype
	keys []string // in the kernel's form, sorted
}

type chain struct {
	name  string
	hook  hook // zero: jumped to
	rules []rule
}

type hook struct {
	typ      nftables.ChainType
	num      nftables.ChainHook
	priority nftables.ChainPriority
	drops    bool // policy; none of ours
}

type rule struct {
	// comment says in words what the rule is for and ends with a digest of
	// the expressions: equal comments mean equal rules.
	comment string
	exprs   []expr.Any
	kinds   []byte // names of the expressions, set with the digest
}

// Names of sets and of the chains that rules jump to.
const (
	peers4, peers6   = "peers4", "peers6"
	guard4, guard6   = "guard4", "guard6"
	guardPorts       = "guardports" // every guarded port: decides quickly that a packet is none of ours
	guardHere        = "guardhere"  // ports guarded on every address of this host
	tunnelChain      = "tunnel"
	innerChain       = "inner"
	plainChain       = "plain"
	toPeersChain     = "topeers"
	guardChain       = "guard"
	guardedChain     = "guarded"
	linkLocal        = "fe80::/10"
	multicast4       = "224.0.0.0/4"
	multicast6       = "ff00::/8"
	limitedBroadcast = "255.255.255.255/32"
)

// planOf says what our table of family inet must hold. local tells whether an address is
// this host's.
func planOf(r rules.Rules, local func(netip.Addr) bool) (table, error) {
	t := table{family: nftables.TableFamilyINet}
	t.chains = append(t.chains, prerouting(r), inner(r), plain(r), output(r), input(r), tunnel(r), forward(r), toPeers(r))
	t.chains = append(t.chains, names(r)...)
	t.chains = append(t.chains, guard(r)...)
	t.chains = append(t.chains, postrouting(r))
	t.chains = slices.DeleteFunc(t.chains, func(c chain) bool { return len(c.rules) == 0 })
	if r.Tunnel.Protocol != 0 {
		t.sets = append(t.sets, peerSets(r.Tunnel.Peers)...)
	}
	if len(r.Guard) > 0 {
		t.sets = append(t.sets, guardSets(r.Guard, local)...)
	}
	if len(r.Names) > 0 {
		t.sets = append(t.sets, nameSets(r)...)
	}
	return t, t.sign()
}

// sign makes the comments of all rules tell what they are.
func (t table) sign() error {
	for i := range t.chains {
		for j := range t.chains[i].rules {
			if err := t.chains[i].rules[j].sign(); err != nil {
				return fmt.Errorf("chain %s: %w", t.chains[i].name, err)
			}
		}
	}
	return nil
}

func (c *chain) add(comment string, ms ...match) {
	c.rules = append(c.rules, rule{comment: comment, exprs: all(ms...)})
}

// sign appends the digest of the expressions to the comment.
func (r *rule) sign() error {
	h := fnv.New64a()
	for _, e := range r.exprs {
		b, err := marshal(e)
		if err != nil {
			return fmt.Errorf("rule %q: %w", r.comment, err)
		}
		h.Write(b)
		r.kinds = append(r.kinds, attr(b, unix.NFTA_EXPR_NAME)...)
	}
	r.comment += " #" + hex.EncodeToString(h.Sum(nil))
	return nil
}

// input sees only what is delivered to this host itself: unicast, broadcast
// or multicast, and after any destination NAT. A container's own packets to
// the same port elsewhere never come here, and forwarded packets cost nothing.
func input(r rules.Rules) chain {
	c := chain{name: "input", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookInput, priority: *nftables.ChainPriorityRaw}}
	for _, m := range ofTunnel(r.Tunnel) {
		c.add("tunnel packets", m, jump(tunnelChain))
	}
	if len(r.Guard) > 0 {
		c.add("guarded ports", protocol(unix.IPPROTO_TCP), dportIn(guardPorts), jump(guardChain))
	}
	return c
}

// forward is on the path of every forwarded packet, after any destination NAT
// and before any masquerade: an ordinary one costs a comparison for each rule.
func forward(r rules.Rules) chain {
	c := chain{name: "forward", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookForward, priority: *nftables.ChainPriorityRaw}}
	for _, m := range ofTunnel(r.Tunnel) {
		c.add("tunnel packets", m, jump(toPeersChain))
	}
	if len(r.Guard) > 0 {
		c.add("guarded ports", protocol(unix.IPPROTO_TCP), dportIn(guardPorts), jump(guardChain))
	}
	return c
}

// guard drops what containers send to guarded services. A container is on one
// of Bridges or has an address of the pod network or, on its own link, a
// link-local one.
func guard(r rules.Rules) []chain {
	c, d := chain{name: guardChain}, chain{name: guardedChain}
	if len(r.Guard) == 0 {
		return nil
	}
	if r.Tunnel.Plain { // pods of other hosts come over the underlay too
		for _, n := range r.Networks {
			c.add("from containers", family(n.Addr().Is4()), from(n), jump(guardedChain))
		}
	}
	if r.Tunnel.Underlay != "" {
		c.add("hosts", in(r.Tunnel.Underlay), leave())
	}
	c.add("this host", in("lo"), leave())
	for _, b := range r.Bridges {
		c.add("from containers", in(b), jump(guardedChain))
	}
	for _, n := range append(slices.Clone(r.Networks), netip.MustParsePrefix(linkLocal)) {
		c.add("from containers", family(n.Addr().Is4()), from(n), jump(guardedChain))
	}
	if len(r.Names) > 0 {
		for _, v4 := range []bool{true, false} {
			d.add("DNS is for containers", dport(dnsPort), family(v4), targetIn(v4, namesOf(v4)), leave())
		}
	}
	d.add("container to a guarded service", family(true), destinationIn(true, guard4), drop())
	d.add("container to a guarded service", family(false), destinationIn(false, guard6), drop())
	d.add("container to a guarded port of this host", dportIn(guardHere), toThisHost(), drop())
	return []chain{c, d}
}

// postrouting sees the first packet of a flow only, as every NAT chain.
func postrouting(r rules.Rules) chain {
	c := chain{name: "postrouting", hook: hook{typ: nftables.ChainTypeNAT, num: *nftables.ChainHookPostrouting, priority: *nftables.ChainPriorityNATSource}}
	if !r.Masquerade {
		return c
	}
	for _, v4 := range []bool{true, false} {
		networks, subnets := ofFamily(r.Networks, v4), ofFamily(r.Subnets, v4)
		if len(networks) == 0 {
			continue
		}
		never := []string{multicast6}
		if v4 {
			never = []string{multicast4, limitedBroadcast}
		}
		for _, p := range never {
			c.add("not for multicast and broadcast", family(v4), to(netip.MustParsePrefix(p)), leave())
		}
		for _, a := range networks {
			for _, b := range networks {
				c.add("not between pods", family(v4), from(a), to(b), leave())
			}
		}
		for _, s := range subnets {
			c.add("pods to the world", family(v4), from(s), masq())
		}
		for _, n := range networks {
			for _, link := range r.Tunnel.Links() {
				c.add("sources outside the pod network into the tunnel", family(v4), out(link), to(n), masq())
			}
			if r.Tunnel.Plain && r.Tunnel.Underlay != "" {
				c.add("sources outside the pod network to pods of other hosts", family(v4), out(r.Tunnel.Underlay), to(n), masq())
			}
		}
	}
	return c
}

func ofFamily(ps []netip.Prefix, v4 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if p.Addr().Is4() == v4 {
			out = append(out, p)
		}
	}
	return out
}

func guardSets(guarded []netip.AddrPort, local func(netip.Addr) bool) []set {
	var v4, v6, here, ports []string
	for _, g := range guarded {
		a := g.Addr().Unmap().WithZone("")
		port := string(binary.BigEndian.AppendUint16(nil, g.Port()))
		ports = append(ports, port)
		if rules.Here(a, local) {
			here = append(here, port)
		}
		key := string(a.AsSlice()) + port + "\x00\x00" // padded to four bytes
		if a.Is4() {
			v4 = append(v4, key)
		} else {
			v6 = append(v6, key)
		}
	}
	sets := []set{
		{guard4, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService), v4},
		{guard6, nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService), v6},
		{guardHere, nftables.TypeInetService, here},
		{guardPorts, nftables.TypeInetService, ports},
	}
	for i := range sets {
		slices.Sort(sets[i].keys)
		sets[i].keys = slices.Compact(sets[i].keys)
	}
	return sets
}
