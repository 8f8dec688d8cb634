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

// table is what our table holds: as it should be, or as the kernel has it.
type table struct {
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
}

// Names of sets and of the chains that rules jump to.
const (
	peers4, peers6   = "peers4", "peers6"
	guard4, guard6   = "guard4", "guard6"
	guardPorts       = "guardports" // every guarded port: decides quickly that a packet is none of ours
	guardHere        = "guardhere"  // ports guarded on every address of this host
	tunnelChain      = "tunnel"
	toPeersChain     = "topeers"
	guardChain       = "guard"
	guardedChain     = "guarded"
	linkLocal        = "fe80::/10"
	multicast4       = "224.0.0.0/4"
	multicast6       = "ff00::/8"
	limitedBroadcast = "255.255.255.255/32"
)

// planOf says what our table must hold. local tells whether an address is
// this host's.
func planOf(r rules.Rules, local func(netip.Addr) bool) (table, error) {
	var t table
	t.chains = append(t.chains, prerouting(r), input(r), tunnel(r), forward(r), toPeers(r))
	t.chains = append(t.chains, guard(r)...)
	t.chains = append(t.chains, postrouting(r))
	t.chains = slices.DeleteFunc(t.chains, func(c chain) bool { return len(c.rules) == 0 })
	if r.Tunnel.Protocol != 0 {
		t.sets = append(t.sets, peerSets(r.Tunnel.Peers)...)
	}
	if len(r.Guard) > 0 {
		t.sets = append(t.sets, guardSets(r.Guard, local)...)
	}
	for i := range t.chains {
		for j := range t.chains[i].rules {
			if err := t.chains[i].rules[j].sign(); err != nil {
				return table{}, fmt.Errorf("chain %s: %w", t.chains[i].name, err)
			}
		}
	}
	return t, nil
}

func (c *chain) add(comment string, ms ...match) {
	c.rules = append(c.rules, rule{comment: comment, exprs: all(ms...)})
}

// sign appends the digest of the expressions to the comment.
func (r *rule) sign() error {
	h := fnv.New64a()
	for _, e := range r.exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return fmt.Errorf("rule %q: %w", r.comment, err)
		}
		h.Write(b)
	}
	r.comment += " #" + hex.EncodeToString(h.Sum(nil))
	return nil
}

// prerouting drops packets out of the tunnel whose inner source does not
// route back into it. Everything else costs one comparison.
func prerouting(r rules.Rules) chain {
	c := chain{name: "prerouting", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw}}
	for _, link := range r.Tunnel.Links() {
		c.add("inner source that does not route back through the tunnel", in(link), notTheWayBack(), drop())
	}
	return c
}

// input sees only what is delivered to this host itself: unicast, broadcast
// or multicast, and after any destination NAT. A container's own packets to
// the same port elsewhere never come here, and forwarded packets cost nothing.
func input(r rules.Rules) chain {
	c := chain{name: "input", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookInput, priority: *nftables.ChainPriorityRaw}}
	if r.Tunnel.Protocol != 0 {
		c.add("tunnel packets", ofTunnel(r.Tunnel), jump(tunnelChain))
	}
	if len(r.Guard) > 0 {
		c.add("guarded ports", protocol(unix.IPPROTO_TCP), dportIn(guardPorts), jump(guardChain))
	}
	return c
}

func ofTunnel(t rules.Tunnel) match {
	m := protocol(t.Protocol)
	if t.Port != 0 {
		m = all(m, dport(t.Port))
	}
	return m
}

func tunnel(r rules.Rules) chain {
	c := chain{name: tunnelChain}
	if r.Tunnel.Protocol == 0 {
		return c
	}
	if r.Tunnel.Underlay != "" {
		c.add("tunnel packet from elsewhere than the underlay", notIn(r.Tunnel.Underlay), drop())
	}
	for _, v4 := range []bool{true, false} {
		peers := sourceIn(v4, peersOf(v4))
		local := r.Tunnel.LocalOf(v4)
		for _, a := range local {
			c.add("peers", family(v4), to(netip.PrefixFrom(a, a.BitLen())), peers, leave())
		}
		if len(local) == 0 {
			c.add("peers", family(v4), peers, leave())
		}
	}
	c.add("tunnel packet from a stranger", drop())
	return c
}

// forward is on the path of every forwarded packet, after any destination NAT
// and before any masquerade: an ordinary one costs a comparison for each rule.
func forward(r rules.Rules) chain {
	c := chain{name: "forward", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookForward, priority: *nftables.ChainPriorityRaw}}
	if r.Tunnel.Protocol != 0 {
		c.add("tunnel packets", ofTunnel(r.Tunnel), jump(toPeersChain))
	}
	if len(r.Guard) > 0 {
		c.add("guarded ports", protocol(unix.IPPROTO_TCP), dportIn(guardPorts), jump(guardChain))
	}
	return c
}

// toPeers drops tunnel packets to peers that containers made: masqueraded,
// they would come from this host, which is a peer there.
func toPeers(r rules.Rules) chain {
	c := chain{name: toPeersChain}
	if r.Tunnel.Protocol == 0 {
		return c
	}
	if r.Tunnel.Underlay != "" {
		c.add("hosts", in(r.Tunnel.Underlay), leave())
	}
	for _, v4 := range []bool{true, false} {
		c.add("forged tunnel packet to a peer", family(v4), targetIn(v4, peersOf(v4)), drop())
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
	if r.Tunnel.Underlay != "" {
		c.add("hosts", in(r.Tunnel.Underlay), leave())
	}
	c.add("this host", in("lo"), leave())
	for _, b := range r.Bridges {
		c.add("from containers", inAny(b), jump(guardedChain))
	}
	for _, n := range append(slices.Clone(r.Networks), netip.MustParsePrefix(linkLocal)) {
		c.add("from containers", family(n.Addr().Is4()), from(n), jump(guardedChain))
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

func peersOf(v4 bool) string {
	if v4 {
		return peers4
	}
	return peers6
}

func peerSets(peers []netip.Addr) []set {
	v4 := make([]uint32, 0, len(peers)) // sorts several times faster than addresses
	var v6 []netip.Addr
	for _, a := range peers {
		if a = a.Unmap(); a.Is4() {
			b := a.As4()
			v4 = append(v4, binary.BigEndian.Uint32(b[:]))
		} else if a.Is6() {
			v6 = append(v6, a.WithZone(""))
		}
	}
	slices.Sort(v4)
	v4 = slices.Compact(v4)
	b4 := make([]byte, 0, 4*len(v4))
	for _, a := range v4 {
		b4 = binary.BigEndian.AppendUint32(b4, a)
	}
	slices.SortFunc(v6, netip.Addr.Compare)
	v6 = slices.Compact(v6)
	b6 := make([]byte, 0, 16*len(v6))
	for _, a := range v6 {
		b := a.As16()
		b6 = append(b6, b[:]...)
	}
	return []set{{peers4, setType(true), setKeys(b4, 4)}, {peers6, setType(false), setKeys(b6, 16)}}
}

// setKeys cuts b into keys of n bytes, which share its one allocation.
func setKeys(b []byte, n int) []string {
	if len(b) == 0 {
		return nil
	}
	s := string(b)
	keys := make([]string, len(b)/n)
	for i := range keys {
		keys[i] = s[i*n : (i+1)*n]
	}
	return keys
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
