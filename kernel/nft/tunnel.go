package nft

import (
	"net/netip"

	"github.com/google/nftables"

	"github.com/flanneld/flanneld/kernel/rules"
)

// prerouting looks at what comes out of the tunnel, and at packets from pod to
// pod that came another way. Everything else costs a few comparisons.
func prerouting(r rules.Rules) chain {
	c := chain{name: "prerouting", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw}}
	c.queries(r)
	for _, link := range r.Tunnel.Links() {
		c.add("out of the tunnel", in(link), hand(innerChain))
	}
	if len(r.Networks) > 0 {
		for _, b := range r.Checked {
			c.add("checked at their ports", in(b), leave())
		}
	}
	for _, m := range outer(r.Tunnel, false) {
		c.add("tunnel packets to this host are not tracked", m, notrack(), leave())
	}
	for _, a := range r.Networks {
		for _, b := range ofFamily(r.Networks, a.Addr().Is4()) {
			c.add("between pods, not out of the tunnel", family(a.Addr().Is4()), from(a), to(b), jump(plainChain))
		}
	}
	return c
}

// output spares the connection tracking of tunnel packets that this host
// sends, as prerouting of those that it gets: each flow of pods has a source
// port of its own there, and what is inside is tracked anyway.
func output(r rules.Rules) chain {
	c := chain{name: "output", hook: hook{typ: nftables.ChainTypeFilter, num: *nftables.ChainHookOutput, priority: *nftables.ChainPriorityRaw}}
	for _, m := range outer(r.Tunnel, true) {
		c.add("tunnel packets of this host are not tracked", m, notrack())
	}
	c.queries(r) // of this host
	c.answers(r)
	return c
}

// outer matches encapsulated packets between this host's end of the tunnel and
// other hosts'.
func outer(t rules.Tunnel, sent bool) []match {
	var ms []match
	for _, m := range ofTunnel(t) {
		for _, v4 := range []bool{true, false} {
			for _, a := range t.LocalOf(v4) {
				end := netip.PrefixFrom(a, a.BitLen())
				switch {
				case sent:
					ms = append(ms, all(m, family(v4), from(end)))
				case t.Underlay != "":
					ms = append(ms, all(in(t.Underlay), m, family(v4), to(end)))
				default:
					ms = append(ms, all(m, family(v4), to(end)))
				}
			}
		}
	}
	return ms
}

// inner drops packets out of the tunnel whose inner source does not route back
// into it. A pod to which this host sends plainly may still use the tunnel.
func inner(r rules.Rules) chain {
	c := chain{name: innerChain}
	if len(r.Tunnel.Links()) == 0 {
		return c
	}
	const why = "inner source that does not route back through the tunnel"
	if !r.Tunnel.Plain {
		c.add(why, notTheWayBack(), drop())
		return c
	}
	c.add("the way back", theWayBack(), leave())
	for _, n := range r.Networks {
		c.add("pods that are reached without the tunnel", family(n.Addr().Is4()), from(n), routedTo(r.Tunnel.Underlay), leave())
	}
	c.add(why, drop())
	return c
}

// plain drops packets between pods whose source does not route back the way
// they came, and all that came over the underlay unless they may. What this
// host sends to itself has come the right way.
func plain(r rules.Rules) chain {
	c := chain{name: plainChain}
	t := r.Tunnel
	if len(r.Networks) == 0 {
		return c
	}
	if !t.Plain && t.Underlay != "" {
		c.add("packet of a pod outside the tunnel", in(t.Underlay), drop())
	}
	c.add("the way back", theWayBack(), leave())
	if t.Plain {
		underlay := match{}
		if t.Underlay != "" {
			underlay = in(t.Underlay)
		}
		for _, link := range t.Links() {
			c.add("pods that are reached through the tunnel", underlay, routedTo(link), leave())
		}
	}
	c.add("source that does not route back the way it came", drop())
	return c
}

// ofTunnel matches the tunnel's packets, each match some of them.
func ofTunnel(t rules.Tunnel) []match {
	var out []match
	switch {
	case t.Protocol == 0:
	case t.Over(true) != t.Over(false):
		for _, v4 := range []bool{true, false} {
			out = append(out, all(family(v4), protocol(t.Over(v4))))
		}
	case len(t.Ports) == 0:
		out = append(out, protocol(t.Protocol))
	}
	for _, p := range t.Ports {
		out = append(out, all(protocol(t.Protocol), dport(p)))
	}
	return out
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
