package iptables

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Chains of services that are there once.
const (
	guardLoopback  = servicesPrefix + "-RAW"
	allServices    = servicesPrefix           // what goes to a frontend, from anywhere
	fromHost       = servicesPrefix + "-OUT"  // from this host: 127.0.0.1 too
	virtualChain   = servicesPrefix + "-VIP"  // to the networks
	sourceChain    = servicesPrefix + "-POST" // what was led elsewhere
	masqChain      = servicesPrefix + "-MASQ" // … by us
	farChain       = servicesPrefix + "-FAR"  // … whose answer would come another way
	itselfChain    = servicesPrefix + "-SELF" // … by a container to itself, perhaps
	refuseForward  = servicesPrefix + "-FWD"
	refuseFromHost = servicesPrefix + "-LOCAL"
)

// chainName names one of many chains; iptables takes up to 28 letters.
func chainName(kind string, of any) string { return servicesPrefix + "-" + kind + digest(of) }

func digest(of any) string {
	h := fnv.New64a()
	fmt.Fprint(h, of)
	return hex.EncodeToString(h.Sum(nil))[:14]
}

// servicesOf says what chains the tables must hold for one family, by table.
func servicesOf(s rules.Services, fronts map[*rules.Frontend]chain, v4, randomFully bool) map[string][]chain {
	networks := prefixesOf(s.Networks, v4)
	mine := slices.DeleteFunc(slices.Clone(s.Frontends), func(f *rules.Frontend) bool { return f.Addr.Is4() != v4 || len(f.Slots) == 0 })
	if len(networks)+len(mine) == 0 {
		return nil
	}
	byTable := map[string][]chain{
		"nat":    append(lookup(networks, mine, fronts), sources(s, networks, mine, v4, randomFully)...),
		"filter": {refuse(refuseForward, "FORWARD", s, v4), refuse(refuseFromHost, "OUTPUT", s, v4)},
	}
	if v4 {
		// The sysctl route_localnet, which this host needs to send to containers
		// as 127.0.0.1, would let others send there.
		c := chain{table: "raw", name: guardLoopback, parent: "PREROUTING"}
		c.add("-d 127.0.0.0/8 ! -i lo", "DROP")
		c.add("-s 127.0.0.0/8 ! -i lo", "DROP")
		byTable["raw"] = []chain{c}
	}
	return byTable
}

// lookup finds the frontend of a connection: by the network, 256 addresses of
// it, address and port.
func lookup(networks []netip.Prefix, mine []*rules.Frontend, fronts map[*rules.Frontend]chain) []chain {
	every := chain{table: "nat", name: allServices, parent: "PREROUTING"}
	host := chain{table: "nat", name: fromHost, parent: "OUTPUT"}
	virtual := chain{table: "nat", name: virtualChain}
	some := map[netip.Prefix]*chain{}
	var out []chain
	for _, n := range networks {
		every.add("-d "+n.String(), virtual.name)
	}
	for _, f := range mine {
		of := netip.PrefixFrom(f.Addr, f.Addr.BitLen())
		from := &every
		switch {
		case f.Addr.IsLoopback():
			from = &host
		case slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(f.Addr) }):
			of, from = netip.PrefixFrom(f.Addr, f.Addr.BitLen()-8).Masked(), &virtual
		}
		if some[of] == nil {
			some[of] = &chain{table: "nat", name: chainName("A", of)}
			from.add("-d "+of.String(), some[of].name)
		}
		p := protocol(f.Protocol)
		some[of].add(fmt.Sprintf("-d %s -p %s -m %s --dport %d", f.Addr, p, p, f.Port), fronts[f].name)
		out = append(out, fronts[f])
	}
	host.add("", every.name)
	for _, c := range some {
		out = append(out, *c)
	}
	return append(out, every, host, virtual)
}

func protocol(p uint8) string {
	switch p {
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return "tcp"
}

// sources changes the source of what would not find back otherwise; others'
// connections are left alone.
func sources(s rules.Services, networks []netip.Prefix, mine []*rules.Frontend, v4, randomFully bool) []chain {
	random := ""
	if randomFully {
		random = " --random-fully"
	}
	post := chain{table: "nat", name: sourceChain, parent: "POSTROUTING"}
	masq, itself, far := chain{table: "nat", name: masqChain}, chain{table: "nat", name: itselfChain}, chain{table: "nat", name: farChain}
	post.add("-m conntrack ! --ctstate DNAT", "RETURN")
	for _, n := range networks {
		post.add("-m conntrack --ctorigdst "+n.String(), masq.name)
	}
	for _, f := range mine {
		if !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(f.Addr) }) {
			post.add(fmt.Sprintf("-p %s -m conntrack --ctorigdst %s --ctorigdstport %d", protocol(f.Protocol), f.Addr, f.Port), masq.name)
		}
	}
	others, own, here, outside := "", "", "", ""
	for _, p := range prefixesOf(s.Pods, v4) {
		outside = " ! -d " + p.String()
		for _, subnet := range prefixesOf(s.Subnets, v4) {
			// A masquerade ends when another device leads there, this does not.
			far.add("-d "+p.String(), "SNAT --to-source "+subnet.Addr().String()+random)
		}
	}
	for _, p := range prefixesOf(s.Subnets, v4) {
		others, own, here = "! -s "+p.String(), "-s "+p.String(), " ! -d "+p.String()
	}
	far.add("", "MASQUERADE"+random)
	masq.add(others+here, far.name)
	if own != "" { // the first address of an IPv6 subnet is anycast (RFC 4291, 2.6.1)
		masq.add(own+cmp.Or(outside, here)+" -m addrtype --src-type LOCAL,ANYCAST", far.name)
	}
	if v4 {
		masq.add("-s 127.0.0.0/8", "MASQUERADE"+random)
	}
	masq.add("", itself.name)
	for _, a := range rules.OfFamily(s.Local, v4) {
		itself.add(fmt.Sprintf("-s %s -d %s", a, a), "MASQUERADE"+random)
	}
	return []chain{post, masq, far, itself}
}

// refuse tells who sends to an address of the networks that nobody is there.
func refuse(name, parent string, s rules.Services, v4 bool) chain {
	c := chain{table: "filter", name: name, parent: parent}
	refused := "icmp6-port-unreachable"
	if v4 {
		refused = "icmp-port-unreachable"
	}
	for _, a := range rules.OfFamily(s.Hosts, v4) {
		c.add("-d "+a.String(), "RETURN")
	}
	for _, n := range prefixesOf(s.Networks, v4) {
		match := "-d " + n.String() + " -m addrtype ! --dst-type LOCAL"
		c.add("-p tcp "+match, "REJECT --reject-with tcp-reset")
		c.add(match, "REJECT --reject-with "+refused)
	}
	return c
}

// frontend leads connections to slots. First come the slots that remember the
// client, then each with its part of what those before it left.
func frontend(f *rules.Frontend, bpf bool) chain {
	key := fmt.Sprintf("%v %d %d", f.Addr, f.Protocol, f.Port)
	c := chain{table: "nat", name: chainName("F", key)}
	to := func(slot netip.AddrPort) string { return "DNAT --to-destination " + slot.String() }
	match := "-p " + protocol(f.Protocol)
	remember, recall := func(netip.AddrPort) string { return "" }, ""
	if secs := int((f.Affinity + 999999999) / 1e9); secs > 0 {
		recall = fmt.Sprintf(" --seconds %d --reap", secs)
	}
	if recall != "" || f.Balance == rules.Hash && !bpf {
		remember = func(slot netip.AddrPort) string {
			return " -m recent --rsource --name flanneld-" + digest(key+" "+slot.String())
		}
		seen := map[netip.AddrPort]bool{}
		for _, slot := range f.Slots {
			if !seen[slot] {
				c.add(match+remember(slot)+" --update"+recall, to(slot))
			}
			seen[slot] = true
		}
	}
	for i, slot := range f.Slots {
		last := remember(slot)
		if last != "" {
			last += " --set"
		}
		c.add(match+part(f, i, bpf)+last, to(slot))
	}
	return c
}

// part matches what slot i gets of what the slots before it left.
func part(f *rules.Frontend, i int, bpf bool) string {
	left := len(f.Slots) - i
	switch {
	case left == 1:
		return ""
	case f.Balance == rules.RoundRobin:
		return fmt.Sprintf(" -m statistic --mode nth --every %d --packet 0", left)
	case f.Balance == rules.Hash && bpf:
		return hashed(f.Addr.Is4(), i, len(f.Slots))
	}
	return fmt.Sprintf(" -m statistic --mode random --probability %.11f", 1/float64(left))
}

// hashed matches the clients of part i of n: a program of classic BPF, since the
// match cluster knows but the first 32 bits of an IPv6 address.
func hashed(v4 bool, i, n int) string {
	const (
		load, multiply, right = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_ALU | unix.BPF_MUL, unix.BPF_ALU | unix.BPF_RSH
		keep, mix             = unix.BPF_MISC | unix.BPF_TAX, unix.BPF_ALU | unix.BPF_XOR | unix.BPF_X
		remainder, is         = unix.BPF_ALU | unix.BPF_MOD, unix.BPF_JMP | unix.BPF_JEQ
		golden, other         = 0x9e3779b1, 0x85ebca6b
	)
	var code [][4]int
	do := func(op, value int) { code = append(code, [4]int{op, 0, 0, value}) }
	words := []int{8, 12, 16, 20} // of the source in an IPv6 header
	if v4 {
		words = []int{12}
	}
	for k, at := range words {
		do(load, at)
		if k > 0 {
			do(mix, 0)
		}
		do(multiply, golden)
		do(keep, 0)
	}
	for _, by := range []int{15, 13} {
		do(right, by)
		do(mix, 0)
		do(multiply, other)
		do(keep, 0)
	}
	do(right, 16)
	do(mix, 0)
	do(remainder, n)
	code = append(code, [4]int{is, 0, 1, i}, [4]int{unix.BPF_RET, 0, 0, 1}, [4]int{unix.BPF_RET, 0, 0, 0})
	text := fmt.Sprint(len(code))
	for _, c := range code {
		text += fmt.Sprintf(",%d %d %d %d", c[0], c[1], c[2], c[3])
	}
	return ` -m bpf --bytecode "` + text + `"`
}
