package cnichain

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// script returns what must be done for the table to masquerade the
// attachments, all of one network; the first one says what is inside it.
func script(have table.Saved, v4 bool, all []cnitable.Attachment) string {
	var body strings.Builder
	if _, there := have.Policy[outgoing]; !there {
		fmt.Fprintf(&body, ":%s - [0:0]\n", outgoing)
	}
	net := networkChain(all[0], v4)
	if has := have.Rules[net.name]; len(has) != len(net.rules) || !net.within(has) {
		fmt.Fprintf(&body, ":%s - [0:0]\n", net.name) // empties it, too
		for _, r := range net.rules {
			fmt.Fprintf(&body, "-A %s %s\n", net.name, r)
		}
	}
	if jumps(have) != 1 {
		for _, text := range have.Rules["POSTROUTING"] {
			if table.Target(text) == outgoing {
				fmt.Fprintf(&body, "-D POSTROUTING %s\n", text)
			}
		}
		fmt.Fprintf(&body, "-A POSTROUTING -m comment --comment %s -j %s\n", tag, outgoing)
	}
	for _, a := range all {
		for _, from := range addressesOf(a.Addresses, v4) {
			if slices.Equal(targetsOf(have, from), []string{net.name}) {
				continue
			}
			for _, text := range have.Rules[outgoing] {
				if s, ok := sourceOf(text); ok && s == from {
					fmt.Fprintf(&body, "-D %s %s\n", outgoing, text)
				}
			}
			fmt.Fprintf(&body, "-A %s -s %s -m comment --comment \"%s %s\" -g %s\n", outgoing, from, tag, a.Network, net.name)
		}
	}
	return body.String()
}

// randomFully is left out where it is not known.
const randomFully = " --random-fully"

// network is the chain of one network. Each rule bears its digest as a
// comment, by which it is known again.
type network struct {
	name           string
	rules, digests []string
}

func networkChain(a cnitable.Attachment, v4 bool) network {
	n := network{name: Prefix + cnitable.NetworkChain(a.Network)}
	for _, p := range slices.Concat(a.Inside, cnitable.Multicast()) {
		if p.Addr().Is4() == v4 {
			n.add("-d "+p.Masked().String(), "RETURN")
		}
	}
	n.add("", "MASQUERADE"+randomFully)
	return n
}

func (n *network) add(match, target string) {
	h := fnv.New64a()
	h.Write([]byte(match + " -j " + target))
	digest := fmt.Sprintf("%q", fmt.Sprintf("%s %016x", tag, h.Sum64()))
	n.digests = append(n.digests, digest)
	n.rules = append(n.rules, strings.TrimSpace(match+" -m comment --comment "+digest)+" -j "+target)
}

// within tells whether the rules are among these, in this order.
func (n network) within(has []string) bool {
	for _, d := range n.digests {
		i := slices.IndexFunc(has, func(text string) bool { return strings.Contains(text, d) })
		if i < 0 {
			return false
		}
		has = has[i+1:]
	}
	return true
}

func jumps(have table.Saved) (n int) {
	for _, text := range have.Rules["POSTROUTING"] {
		if table.Target(text) == outgoing {
			n++
		}
	}
	return n
}

// targetsOf is where the packets of an address go.
func targetsOf(have table.Saved, from netip.Addr) (out []string) {
	for _, text := range have.Rules[outgoing] {
		if s, ok := sourceOf(text); ok && s == from {
			out = append(out, table.Target(text))
		}
	}
	return out
}

// sourceOf is the single address of a rule "-s ADDRESS/LENGTH …".
func sourceOf(text string) (netip.Addr, bool) {
	f := strings.Fields(text)
	if len(f) < 2 || f[0] != "-s" {
		return netip.Addr{}, false
	}
	p, err := netip.ParsePrefix(f[1])
	return p.Addr(), err == nil && p.IsSingleIP()
}

func addressesOf(addrs []netip.Addr, v4 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Is4() != v4 })
}

// familiesOf are those that an attachment has addresses in; true is IPv4.
func familiesOf(a cnitable.Attachment) (out []bool) {
	for _, v4 := range []bool{true, false} {
		if len(addressesOf(a.Addresses, v4)) > 0 {
			out = append(out, v4)
		}
	}
	return out
}

// families are those whose table nat the kernel has made: in another one
// there is nothing.
func families() (out []bool) {
	for _, v4 := range []bool{true, false} {
		path := "/proc/thread-self/net/ip6_tables_names"
		if v4 {
			path = "/proc/thread-self/net/ip_tables_names"
		}
		if b, err := os.ReadFile(path); err == nil && slices.Contains(strings.Fields(string(b)), Table) {
			out = append(out, v4)
		}
	}
	return out
}

// Present is what the chains held at one moment.
type Present map[bool]table.Saved // by "is IPv4"

// Present reads the chains of both families.
func (c *Chains) Present() (Present, error) {
	p := Present{}
	for _, v4 := range families() {
		have, err := c.read(v4)
		if err != nil && !errors.Is(err, cnitable.ErrUnsupported) {
			return nil, err
		}
		p[v4] = have
	}
	return p, nil
}

// Lacks tells whether something of an attachment was not there.
func (p Present) Lacks(a cnitable.Attachment) bool {
	return a.Masquerade && slices.ContainsFunc(familiesOf(a), func(v4 bool) bool {
		return script(p[v4], v4, []cnitable.Attachment{a}) != ""
	})
}
