package subnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// claim is a prefix that a lease says is its holder's: a subnet, or the
// address of the host itself.
type claim struct {
	prefix  netip.Prefix
	record  *leaseRecord
	address bool
}

// compareClaims puts a prefix directly before everything inside it.
func compareClaims(a, b claim) int {
	if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.prefix.Bits(), b.prefix.Bits())
}

// counts says whether the claim takes part: its record is usable by itself
// and its family is enabled.
func (c claim) counts(conf Config) bool {
	return c.record.static == nil && slices.ContainsFunc(conf.Ranges, func(r Range) bool {
		return r.Network.Addr().Is6() == c.prefix.Addr().Is6()
	})
}

// overlapping says whether any two claims overlap; they are in order.
func overlapping(claims []claim, conf Config) bool {
	var last netip.Prefix
	for _, c := range claims {
		if !c.counts(conf) {
			continue
		}
		if last.IsValid() && last.Contains(c.prefix.Addr()) {
			return true
		}
		last = c.prefix
	}
	return false
}

// fits says that c overlaps none of claims but its record's own. They are in
// order and disjoint but for c, so that the nearest ones tell.
func (c claim) fits(claims []claim, conf Config) bool {
	i, _ := slices.BinarySearchFunc(claims, c, compareClaims)
	counts := func(o claim) bool { return o.record != c.record && o.counts(conf) }
	for j := i - 1; j >= 0; j-- {
		if counts(claims[j]) {
			if claims[j].prefix.Overlaps(c.prefix) {
				return false
			}
			break
		}
	}
	for j := i; j < len(claims); j++ {
		if counts(claims[j]) {
			return !claims[j].prefix.Overlaps(c.prefix)
		}
	}
	return true
}

// node is one distinct prefix among the claims, in a forest by containment.
type node struct {
	prefix netip.Prefix
	parent *node
	// subnet is the record that was granted exactly this prefix; under, one
	// that was granted a part of it; host, one whose own address is in it.
	subnet, under, host *leaseRecord
}

// resolve sets clash for every record that overlaps one created before it:
// what the hosts agreed on first stays. A subnet must not contain a host's
// own address either. claims are in order.
func resolve(claims []claim, conf Config) {
	nodes := map[*leaseRecord][]*node{}
	addresses := map[*leaseRecord][]*node{}
	var records []*leaseRecord
	var open *node // the innermost prefix that may contain the next claim
	for _, c := range claims {
		if !c.counts(conf) {
			continue
		}
		for open != nil && !(open.prefix.Bits() <= c.prefix.Bits() && open.prefix.Contains(c.prefix.Addr())) {
			open = open.parent
		}
		if open == nil || open.prefix != c.prefix {
			open = &node{prefix: c.prefix, parent: open}
		}
		if c.address {
			addresses[c.record] = append(addresses[c.record], open)
		} else {
			if nodes[c.record] == nil {
				records = append(records, c.record)
			}
			nodes[c.record] = append(nodes[c.record], open)
		}
	}
	slices.SortFunc(records, func(a, b *leaseRecord) int {
		return cmp.Or(cmp.Compare(a.lease.Created, b.lease.Created), cmp.Compare(a.lease.Key, b.lease.Key))
	})
	for _, r := range records {
		if r.clash = clashOf(r, nodes[r], addresses[r]); r.clash != nil {
			continue
		}
		for _, n := range nodes[r] {
			n.subnet = r
			for ; n != nil; n = n.parent {
				n.under = cmp.Or(n.under, r)
			}
		}
		for _, n := range addresses[r] {
			for ; n != nil; n = n.parent {
				n.host = cmp.Or(n.host, r)
			}
		}
	}
}

// clashOf says which record granted before excludes r.
func clashOf(r *leaseRecord, subnets, addresses []*node) error {
	for _, n := range subnets {
		other := n.under
		for up := n; up != nil && other == nil; up = up.parent {
			other = up.subnet
		}
		if other != nil {
			return &RecordError{r.lease.Key, "", "", fmt.Sprintf("overlaps %s, which was there first; delete the wrong one of the two", other.lease.Key)}
		}
		if n.host != nil {
			return &RecordError{r.lease.Key, "", "", fmt.Sprintf("contains the address of a host, that of %s; delete the key, and keep the hosts' own network out of SubnetMin to SubnetMax", n.host.lease.Key)}
		}
	}
	for _, n := range addresses {
		for up := n; up != nil; up = up.parent {
			if up.subnet != nil {
				return &RecordError{r.lease.Key, "PublicIP", n.prefix.Addr().String(), fmt.Sprintf("is inside the subnet of %s, which was there first; delete the wrong one of the two", up.subnet.lease.Key)}
			}
		}
	}
	return nil
}
