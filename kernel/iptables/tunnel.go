package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// prerouting looks at what comes out of the tunnel, and at packets from pod to
// pod that came another way. Everything else costs a few comparisons.
func prerouting(r rules.Rules, v4 bool) []chain {
	c := chain{table: "raw", name: prefix + "PRE", parent: "PREROUTING"}
	in, out := inner(r, v4), plain(r, v4)
	c.queries(r, v4)
	for _, link := range r.Tunnel.Links() {
		c.add("-i "+wildcard(link), in.name)
		c.add("-i "+wildcard(link), "RETURN")
	}
	networks := prefixesOf(r.Networks, v4)
	if len(networks) > 0 {
		for _, b := range r.Checked {
			c.add("-i "+wildcard(b), "RETURN")
		}
	}
	for _, a := range networks {
		for _, b := range networks {
			c.add("-s "+a.String()+" -d "+b.String(), out.name)
		}
	}
	return []chain{c, in, out}
}

// inner drops packets out of the tunnel whose inner source does not route back
// into it. A pod to which this host sends plainly may still use the tunnel.
func inner(r rules.Rules, v4 bool) chain {
	c := chain{table: "raw", name: prefix + "INNER"}
	if len(r.Tunnel.Links()) == 0 {
		return c
	}
	c.add("-m rpfilter", "RETURN")
	if r.Tunnel.Plain {
		elsewhere(&c, r, v4, "")
	}
	c.add("", "DROP")
	return c
}

// elsewhere lets pods in whose subnet has a route, whichever: iptables cannot
// ask which. This host's own pods are told by their address.
func elsewhere(c *chain, r rules.Rules, v4 bool, match string) {
	for _, s := range prefixesOf(r.Subnets, v4) {
		c.add(match+"-s "+s.String(), "DROP")
	}
	for _, n := range prefixesOf(r.Networks, v4) {
		c.add(match+"-s "+n.String()+" -m rpfilter --loose", "RETURN")
	}
}

// plain drops packets between pods whose source does not route back the way
// they came, and all that came over the underlay unless they may. What this
// host sends to itself has come the right way.
func plain(r rules.Rules, v4 bool) chain {
	c := chain{table: "raw", name: prefix + "PLAIN"}
	t := r.Tunnel
	if len(prefixesOf(r.Networks, v4)) == 0 {
		return c
	}
	if !t.Plain && t.Underlay != "" {
		c.add("-i "+t.Underlay, "DROP")
	}
	c.add("-m rpfilter", "RETURN")
	if t.Plain {
		underlay := ""
		if t.Underlay != "" {
			underlay = "-i " + t.Underlay + " "
		}
		elsewhere(&c, r, v4, underlay)
	}
	c.add("", "DROP")
	return c
}

// tunnelMatches match the tunnel's packets, each some of them.
func tunnelMatches(t rules.Tunnel, v4 bool) []string {
	if len(t.Ports) == 0 {
		return []string{fmt.Sprintf("-p %d", t.Over(v4))}
	}
	name := "udp"
	if t.Protocol == unix.IPPROTO_TCP {
		name = "tcp"
	}
	var out []string
	for _, p := range t.Ports {
		out = append(out, fmt.Sprintf("-p %s -m %s --dport %d", name, name, p))
	}
	return out
}

// toPeers drops tunnel packets to peers that containers made: masqueraded,
// they would come from this host, which is a peer there.
func toPeers(t rules.Tunnel, v4, sets bool) chain {
	c := chain{table: "mangle", name: prefix + "TOPEERS"}
	if t.Protocol == 0 {
		return c
	}
	if t.Underlay != "" {
		c.add("-i "+t.Underlay, "RETURN")
	}
	for _, match := range peerMatches(t.Peers, v4, sets, false) {
		c.add(match, "DROP")
	}
	c.add("", "RETURN") // never empty: the chain is jumped to
	return c
}

// peerMatches match the peers, as source or destination: through a set, or
// one by one.
func peerMatches(peers []netip.Addr, v4, sets, source bool) []string {
	inSet, single := "dst", "-d "
	if source {
		inSet, single = "src", "-s "
	}
	if sets {
		name := peers6
		if v4 {
			name = peers4
		}
		return []string{"-m set --match-set " + name + " " + inSet}
	}
	var out []string
	for _, a := range peersByFamily(peers)[v4] {
		out = append(out, single+a.String())
	}
	return out
}

// peersByFamily sorts the peers; true is IPv4.
func peersByFamily(peers []netip.Addr) map[bool][]netip.Addr {
	out := map[bool][]netip.Addr{}
	for _, a := range peers {
		if a = a.Unmap().WithZone(""); a.IsValid() {
			out[a.Is4()] = append(out[a.Is4()], a)
		}
	}
	for v4 := range out {
		slices.SortFunc(out[v4], netip.Addr.Compare)
		out[v4] = slices.Compact(out[v4])
	}
	return out
}
