package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Names of the sets of peers.
const peers4, peers6 = "flanneld-peers4", "flanneld-peers6"

// planOf says what chains the tables must hold for one family, by table.
func planOf(r rules.Rules, v4, randomFully, sets bool, local func(netip.Addr) bool) map[string][]chain {
	all := append(prerouting(r, v4), postrouting(r, v4, randomFully))
	all = append(all, names(r, v4)...)
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

// input sees what is delivered to this host itself, and what is forwarded,
// before the filter table can accept it.
func input(r rules.Rules, v4, sets bool, local func(netip.Addr) bool) []chain {
	in := chain{table: "mangle", name: prefix + "IN", parent: "INPUT"}
	fwd := chain{table: "mangle", name: prefix + "THROUGH", parent: "FORWARD"}
	tunnel := chain{table: "mangle", name: prefix + "TUNNEL"}
	toPeers := toPeers(r.Tunnel, v4, sets)
	t := r.Tunnel
	if t.Protocol != 0 {
		for _, match := range tunnelMatches(t, v4) {
			in.add(match, tunnel.name)
			fwd.add(match, toPeers.name)
		}
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

// guard drops what containers send to guarded services. A container is on one
// of Bridges or has an address of the pod network or, on its own link, a
// link-local one.
func guard(r rules.Rules, v4 bool, local func(netip.Addr) bool) []chain {
	g, d := chain{table: "mangle", name: prefix + "GUARD"}, chain{table: "mangle", name: prefix + "GUARDED"}
	if r.Tunnel.Plain { // pods of other hosts come over the underlay too
		for _, n := range prefixesOf(r.Networks, v4) {
			g.add("-s "+n.String(), d.name)
		}
	}
	if r.Tunnel.Underlay != "" {
		g.add("-i "+r.Tunnel.Underlay, "RETURN")
	}
	g.add("-i lo", "RETURN")
	for _, b := range r.Bridges {
		g.add("-i "+wildcard(b), d.name)
	}
	for _, n := range append(slices.Clone(r.Networks), netip.MustParsePrefix("fe80::/10")) {
		if n.Addr().Is4() == v4 {
			g.add("-s "+n.String(), d.name)
		}
	}
	for _, a := range rules.OfFamily(r.Names, v4) {
		d.add(fmt.Sprintf("-d %s -p tcp -m tcp --dport 53", a), "RETURN") // DNS is for containers
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

func postrouting(r rules.Rules, v4, randomFully bool) chain {
	c := chain{table: "nat", name: prefix + "POST", parent: "POSTROUTING"}
	networks := prefixesOf(r.Networks, v4)
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
	for _, s := range prefixesOf(r.Subnets, v4) {
		c.add("-s "+s.String(), masquerade)
	}
	for _, n := range networks {
		for _, link := range r.Tunnel.Links() {
			c.add("-d "+n.String()+" -o "+wildcard(link), masquerade)
		}
		if r.Tunnel.Plain && r.Tunnel.Underlay != "" {
			c.add("-d "+n.String()+" -o "+r.Tunnel.Underlay, masquerade)
		}
	}
	return c
}

func prefixesOf(ps []netip.Prefix, v4 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Addr().Is4() != v4 })
}

// wildcard is a link's name as iptables writes it.
func wildcard(link string) string {
	if begin, ok := strings.CutSuffix(link, "*"); ok {
		return begin + "+"
	}
	return link
}

// isAboutSets tells whether a program refused the match on a set.
func isAboutSets(err error) bool {
	var e *runError
	return errors.As(err, &e) && (strings.Contains(e.said, "set") || strings.Contains(e.said, "match"))
}
