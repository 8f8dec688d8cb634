// Package cnitable is what the CNI plugins keep in nftables: masquerading, and
// a guard on each container's port against forged senders.
//
// It speaks nf_tables by hand, in one transaction a call, because its user is
// a process that lives for a few milliseconds.
package cnitable

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Name is the name of the two tables (families inet and bridge) that the
// CNI plugins keep: what containers need of the packet filter, with or
// without a daemon.
const Name = "flanneld-cni"

// Attachment is what the packet filter must know about a container's
// interface.
type Attachment struct {
	Network string
	Link    string // the host's end
	MAC     net.HardwareAddr
	// Addresses of the container.
	Addresses []netip.Addr
	// Masquerade what the container sends anywhere but to Inside and to
	// multicast groups. Inside belongs to the network: the last ADD wins.
	Masquerade bool
	Inside     []netip.Prefix
	// Guard lets pass only what bears the container's own MAC and addresses,
	// and no router advertisements.
	Guard bool
}

// Table programs the packet filter for the CNI plugins: constant rules, and one
// set element for each attachment's address, all in one transaction a call.
// Several processes may do so at once. It is not safe for concurrent use.
type Table struct {
	c *nlbatch.Conn
}

// ErrUnsupported says that the kernel lacks nf_tables, or for guarding, its
// bridge family (CONFIG_NF_TABLES_BRIDGE).
var ErrUnsupported = errors.New("the kernel lacks nf_tables")

// Open opens a socket in the calling thread's network namespace. It fails with
// ErrUnsupported if the kernel lacks nf_tables.
func Open() (*Table, error) {
	c, err := nlbatch.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w: %w", ErrUnsupported, err)
	}
	var m messages
	m.message(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, 0)
	for _, err := range c.Get(&m.Batch) {
		if err != nil {
			return nil, errors.Join(fmt.Errorf("nf_tables: %w: %w", ErrUnsupported, err), c.Close())
		}
	}
	return &Table{c: c}, nil
}

// Close frees the socket.
func (c *Table) Close() error { return c.c.Close() }

// Add lets the attachment in. Rules are written only if they are missing, and
// then with the elements of the attachments that others returns, so that a
// flush by somebody else heals. Others may be nil.
func (c *Table) Add(a Attachment, others func() []Attachment) error {
	var m messages
	m.elements(a, unix.NFT_MSG_NEWSETELEM)
	if m.Len() == 0 {
		return nil
	}
	_, err := c.c.Commit(&m.Batch)
	if err == nil && c.whole(a) {
		return nil
	}
	all := []Attachment{a}
	if others != nil && (err == nil || errors.Is(err, unix.ENOENT)) {
		all = append(all, slices.DeleteFunc(others(), func(o Attachment) bool { return o.Link == a.Link })...)
	}
	return c.write(a, all)
}

// write makes sure of the rules that a needs, and of the elements of all.
func (c *Table) write(a Attachment, all []Attachment) error {
	err := c.build(a, all)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) { // an address that was another network's
		if err = c.Remove(a); err == nil {
			err = c.build(a, all)
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("packet filter for %s: %w: %w", a.Link, ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("packet filter for %s: %w", a.Link, err)
	}
	return nil
}

// whole tells whether the first chains have their rules: "nft flush table"
// leaves sets and elements.
func (c *Table) whole(a Attachment) bool {
	for _, ch := range []chainOf{{unix.NFPROTO_INET, masqueradeChain, 2}, {unix.NFPROTO_BRIDGE, portsChain, 2}} {
		if ch.family == unix.NFPROTO_INET && !a.Masquerade || ch.family == unix.NFPROTO_BRIDGE && !a.Guard {
			continue
		}
		if n, err := c.rules(ch); err == nil && n < ch.rules {
			return false
		}
	}
	return true
}

// build writes the rules that a needs, and the elements of all.
func (c *Table) build(a Attachment, all []Attachment) error {
	var m messages
	if a.Masquerade {
		m.masqueradeRules(a)
	}
	if a.Guard {
		m.guardRules()
	}
	for _, o := range all {
		o.Masquerade, o.Guard = o.Masquerade && a.Masquerade && o.Network == a.Network, o.Guard && a.Guard
		m.elements(o, unix.NFT_MSG_NEWSETELEM)
	}
	_, err := c.c.Commit(&m.Batch)
	return err
}

// Remove takes out what Add put in for the attachment; what is not there is
// no error.
func (c *Table) Remove(a Attachment) error {
	var err error
	for _, kind := range []int{destroyElement, unix.NFT_MSG_DELSETELEM} {
		var m messages
		m.elements(a, kind)
		if m.Len() == 0 {
			return nil
		}
		if _, err = c.c.Commit(&m.Batch); !errors.Is(err, unix.EINVAL) { // of kernels before 6.3
			break
		}
	}
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return filterError(err)
	}
	// Some are not there, and a transaction is all or nothing: one by one.
	for _, e := range elementsOf(a) {
		var m messages
		m.element(e, unix.NFT_MSG_DELSETELEM)
		if _, err := c.c.Commit(&m.Batch); err != nil && !errors.Is(err, unix.ENOENT) {
			return filterError(err)
		}
	}
	return nil
}

// destroyElement deletes an element if it is there (NFT_MSG_DESTROYSETELEM).
const destroyElement = 30

func filterError(err error) error {
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // no nf_tables, nothing in it
	}
	return fmt.Errorf("packet filter: %w", err)
}

// Missing says what of an attachment's rules and elements is not in the
// kernel; "" if all is there.
func (c *Table) Missing(a Attachment) (string, error) {
	for _, e := range elementsOf(a) {
		if ok, err := c.has(e); err != nil || !ok {
			return e.what + " in nftables table " + Name, err
		}
	}
	for _, ch := range chainsOf(a) {
		n, err := c.rules(ch)
		if err != nil {
			return "", err
		}
		if n < ch.rules {
			return "rules of chain " + ch.name + " in nftables table " + Name, nil
		}
	}
	return "", nil
}

// chainOf is a chain and how many rules it has.
type chainOf struct {
	family uint8
	name   string
	rules  int
}

// chainsOf are the chains that an attachment needs.
func chainsOf(a Attachment) (out []chainOf) {
	if a.Masquerade {
		out = append(out, chainOf{unix.NFPROTO_INET, masqueradeChain, 2}, chainOf{unix.NFPROTO_INET, NetworkChain(a.Network), len(a.Inside) + len(Multicast()) + 1})
	}
	if a.Guard {
		out = append(out, chainOf{unix.NFPROTO_BRIDGE, portsChain, 2}, chainOf{unix.NFPROTO_BRIDGE, guardChain, 3}, chainOf{unix.NFPROTO_BRIDGE, ndChain, 4})
	}
	return out
}

func (c *Table) rules(ch chainOf) (n int, err error) {
	var m messages
	m.message(unix.NFT_MSG_GETRULE, ch.family, unix.NLM_F_DUMP)
	m.String(unix.NFTA_RULE_TABLE, Name)
	m.String(unix.NFTA_RULE_CHAIN, ch.name)
	for _, err := range c.c.Get(&m.Batch) {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		if err != nil {
			return 0, filterError(err)
		}
		n++
	}
	return n, nil
}

func (c *Table) has(e element) (bool, error) {
	var m messages
	m.message(unix.NFT_MSG_GETSETELEM, e.family, 0)
	m.elementBody(e, false)
	for _, err := range c.c.Get(&m.Batch) {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, filterError(err)
		}
		return true, nil
	}
	return false, nil
}

// Prune removes the elements of a network but those of the host links and the
// masqueraded addresses that keep returns. Keep is called once, after the
// elements were listed: what is added meanwhile is not touched.
func (c *Table) Prune(network string, keep func() (links map[string]bool, addresses map[netip.Addr]bool, err error)) error {
	found := make([][]element, len(cniSets))
	for i, s := range cniSets {
		var err error
		if found[i], err = c.list(s); err != nil {
			return err
		}
	}
	links, addresses, err := keep()
	if err != nil {
		return err
	}
	var stale []element
	for i, s := range cniSets {
		for _, e := range found[i] {
			if e.network != network || s.guard && links[linkOf(e.key)] {
				continue
			}
			if !s.guard {
				if a, ok := netip.AddrFromSlice(e.key); ok && addresses[a] {
					continue
				}
			}
			stale = append(stale, e)
		}
	}
	for _, e := range stale {
		var m messages
		m.element(e, unix.NFT_MSG_DELSETELEM)
		if _, err := c.c.Commit(&m.Batch); err != nil && !errors.Is(err, unix.ENOENT) {
			return filterError(err)
		}
	}
	return nil
}

// list reads a set.
func (c *Table) list(s setOf) ([]element, error) {
	var m messages
	m.message(unix.NFT_MSG_GETSETELEM, s.family, unix.NLM_F_DUMP)
	m.String(unix.NFTA_SET_ELEM_LIST_TABLE, Name)
	m.String(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	var out []element
	for b, err := range c.c.Get(&m.Batch) {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, filterError(err)
		}
		if len(b) < 4 {
			continue
		}
		for kind, list := range nlbatch.Attrs(b[4:]) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, item := range nlbatch.Attrs(list) {
				out = append(out, parseElement(s, item))
			}
		}
	}
	return out, nil
}

// RemoveAll removes both tables with all that is in them; nil if there are
// none. It works in the calling thread's network namespace.
func RemoveAll() error {
	c, err := Open()
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_BRIDGE} {
		var m messages
		m.message(unix.NFT_MSG_DELTABLE, family, 0)
		m.String(unix.NFTA_TABLE_NAME, Name)
		if _, err := c.c.Commit(&m.Batch); err != nil && !errors.Is(err, unix.ENOENT) && filterError(err) != nil {
			return fmt.Errorf("remove nftables table %s: %w", Name, err)
		}
	}
	return nil
}
