package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Names of the sets of peers.
const peers4, peers6 = "flanneld-peers4", "flanneld-peers6"

// planOf says what chains the tables must hold for one family, by table.
func planOf(r rules.Rules, v4, randomFully, sets bool, local func(netip.Addr) bool) map[string][]chain {
	all := []chain{prerouting(r), postrouting(r, v4, randomFully)}
	all = append(all, input(r, v4, sets, local)...)
	byTable := map[string][]chain{}
	for _, c := range all {
		if len(c.rules) > 0 {
			byTable[c.table] = append(byTable[c.table], c)
		}
	}
	return byTable
}

func (c *chain) add(match, target string) { c.rules = append(c.rules, rule{match, target}) }

// prerouting drops packets out of the tunnel whose inner source does not
// route back into it.
func prerouting(r rules.Rules) chain {
	c := chain{table: "raw", name: prefix + "PRE", parent: "PREROUTING"}
	for _, link := range r.Tunnel.Links() {
		c.add("-i "+link+" -m rpfilter --invert", "DROP")
	}
	return c
}

// input sees what is delivered to this host itself, and what is forwarded,
// before the filter table can accept it.
func input(r rules.Rules, v4, sets bool, local func(netip.Addr) bool) []chain {
	in := chain{table: "mangle", name: prefix + "IN", parent: "INPUT"}
	fwd := chain{table: "mangle", name: prefix + "THROUGH", parent: "FORWARD"}
	tunnel := chain{table: "mangle", name: prefix + "TUNNEL"}
	toPeers := toPeers(r.Tunnel, v4, sets)
	t := r.Tunnel
	if t.Protocol != 0 {
		in.add(tunnelMatch(t), tunnel.name)
		fwd.add(tunnelMatch(t), toPeers.name)
		if t.Underlay != "" {
			tunnel.add("! -i "+t.Underlay, "DROP")
		}
		for _, match := range peerMatches(t.Peers, v4, sets, true) {
			for _, a := range t.LocalOf(v4) {
				tunnel.add("-d "+a.String()+" "+match, "RETURN")
			}
			if len(t.LocalOf(v4)) == 0 {
				tunnel.add(match, "RETURN")
			}
		}
		tunnel.add("", "DROP")
	}
	if len(r.Guard) == 0 {
		return []chain{in, tunnel, fwd, toPeers}
	}
	var ports []string
	for _, g := range r.Guard {
		ports = append(ports, fmt.Sprintf("-p tcp -m tcp --dport %d", g.Port()))
	}
	slices.Sort(ports)
	for _, p := range slices.Compact(ports) {
		in.add(p, prefix+"GUARD")
		fwd.add(p, prefix+"GUARD")
	}
	return append([]chain{in, tunnel, fwd, toPeers}, guard(r, v4, local)...)
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

// guard drops what containers send to guarded services. A container is on one
// of Bridges or has an address of the pod network or, on its own link, a
// link-local one.
func guard(r rules.Rules, v4 bool, local func(netip.Addr) bool) []chain {
	g, d := chain{table: "mangle", name: prefix + "GUARD"}, chain{table: "mangle", name: prefix + "GUARDED"}
	if r.Tunnel.Underlay != "" {
		g.add("-i "+r.Tunnel.Underlay, "RETURN")
	}
	g.add("-i lo", "RETURN")
	for _, b := range r.Bridges {
		if begin, ok := strings.CutSuffix(b, "*"); ok {
			b = begin + "+"
		}
		g.add("-i "+b, d.name)
	}
	for _, n := range append(slices.Clone(r.Networks), netip.MustParsePrefix("fe80::/10")) {
		if n.Addr().Is4() == v4 {
			g.add("-s "+n.String(), d.name)
		}
	}
	for _, s := range r.Guard {
		a := s.Addr().Unmap().WithZone("")
		if rules.Here(a, local) {
			d.add(fmt.Sprintf("-p tcp -m tcp --dport %d -m addrtype --dst-type LOCAL", s.Port()), "DROP")
		}
		if a.Is4() == v4 && !a.IsUnspecified() {
			d.add(fmt.Sprintf("-d %s -p tcp -m tcp --dport %d", a, s.Port()), "DROP")
		}
	}
	d.add("", "RETURN") // never empty: the chain is jumped to
	return []chain{g, d}
}

func tunnelMatch(t rules.Tunnel) string {
	switch {
	case t.Port == 0:
		return fmt.Sprintf("-p %d", t.Protocol)
	case t.Protocol == unix.IPPROTO_TCP:
		return fmt.Sprintf("-p tcp -m tcp --dport %d", t.Port)
	}
	return fmt.Sprintf("-p udp -m udp --dport %d", t.Port)
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

func postrouting(r rules.Rules, v4, randomFully bool) chain {
	c := chain{table: "nat", name: prefix + "POST", parent: "POSTROUTING"}
	mine := func(ps []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Addr().Is4() != v4 })
	}
	networks := mine(r.Networks)
	if !r.Masquerade || len(networks) == 0 {
		return c
	}
	masquerade := "MASQUERADE"
	if randomFully {
		masquerade += " --random-fully"
	}
	never := []string{"ff00::/8"}
	if v4 {
		never = []string{"224.0.0.0/4", "255.255.255.255/32"}
	}
	for _, p := range never {
		c.add("-d "+p, "RETURN")
	}
	for _, a := range networks {
		for _, b := range networks {
			c.add("-s "+a.String()+" -d "+b.String(), "RETURN")
		}
	}
	for _, s := range mine(r.Subnets) {
		c.add("-s "+s.String(), masquerade)
	}
	for _, n := range networks {
		for _, link := range r.Tunnel.Links() {
			c.add("-d "+n.String()+" -o "+link, masquerade)
		}
	}
	return c
}

// isAboutSets tells whether a program refused the match on a set.
func isAboutSets(err error) bool {
	var e *runError
	return errors.As(err, &e) && (strings.Contains(e.said, "set") || strings.Contains(e.said, "match"))
}
