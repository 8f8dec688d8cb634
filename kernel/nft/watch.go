package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// Watch looks at other people's tables, cheaply, to tell whether something
// changed in them. It is not safe for concurrent use.
type Watch struct {
	gen *generation
}

// Family of a table.
type Family uint8

// The families that Watch looks at.
const (
	IPv4 Family = unix.NFPROTO_IPV4
	IPv6 Family = unix.NFPROTO_IPV6
	INet Family = unix.NFPROTO_INET
)

func (f Family) String() string {
	switch f {
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	case INet:
		return "inet"
	}
	return fmt.Sprintf("family %d", uint8(f))
}

// OpenWatch returns a watch on the calling thread's network namespace;
// rules.ErrNotSupported if the kernel has no nf_tables.
func OpenWatch() (*Watch, error) {
	gen, err := openGeneration()
	if err != nil {
		return nil, err
	}
	if _, err := gen.Get(); err != nil {
		return nil, errors.Join(err, gen.Close())
	}
	return &Watch{gen}, nil
}

// Close frees the socket.
func (w *Watch) Close() error { return w.gen.Close() }

// Generation is a number that changes with every change of any table.
func (w *Watch) Generation() (uint32, error) { return w.gen.Get() }

// Table returns a number that a table keeps until it is deleted, 0 if there
// is no such table.
func (w *Watch) Table(f Family, name string) (uint64, error) {
	ask := question(unix.NFT_MSG_GETTABLE, 0, f)
	ask.String(unix.NFTA_TABLE_NAME, name)
	for body, err := range w.gen.conn.Get(&ask) {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("look for nftables table %s %s: %w", f, name, err)
		}
		const handle = 4 // NFTA_TABLE_HANDLE, since Linux 4.16
		return max(bigEndian(attr(after4(body), handle)), 1), nil
	}
	return 0, nil
}

// Digest returns a digest of a chain's policy and rules, 0 if there is no such
// chain.
func (w *Watch) Digest(f Family, table, name string) (uint64, error) {
	id, err := w.Table(f, table)
	if err != nil || id == 0 {
		return 0, err
	}
	h := fnv.New64a()
	fmt.Fprint(h, id)
	ask := question(unix.NFT_MSG_GETCHAIN, 0, f)
	ask.String(unix.NFTA_CHAIN_TABLE, table)
	ask.String(unix.NFTA_CHAIN_NAME, name)
	for body, err := range w.gen.conn.Get(&ask) {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("look for nftables chain %s %s %s: %w", f, table, name, err)
		}
		h.Write(attr(after4(body), unix.NFTA_CHAIN_HANDLE))
		h.Write(attr(after4(body), unix.NFTA_CHAIN_POLICY))
	}
	ask = question(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, f)
	ask.String(unix.NFTA_RULE_TABLE, table)
	ask.String(unix.NFTA_RULE_CHAIN, name)
	for body, err := range w.gen.conn.Get(&ask) {
		if err != nil {
			return 0, fmt.Errorf("list nftables chain %s %s %s: %w", f, table, name, err)
		}
		h.Write(attr(after4(body), unix.NFTA_RULE_HANDLE))
		for _, e := range nlbatch.Attrs(attr(after4(body), unix.NFTA_RULE_EXPRESSIONS)) {
			switch text(attr(e, unix.NFTA_EXPR_NAME)) {
			case "counter", "quota", "last": // change by themselves
			default:
				h.Write(e)
			}
		}
	}
	return max(h.Sum64(), 1), nil
}

// A Chain is a chain of any table.
type Chain struct {
	Family      Family
	Table, Name string
	// Drops: it is on the way of forwarded packets and its policy is to drop.
	Drops bool
}

func (c Chain) String() string { return c.Family.String() + " " + c.Table + " " + c.Name }

// Chains lists all chains of families ip, ip6 and inet.
func (w *Watch) Chains() ([]Chain, error) {
	const drop = 0 // NF_DROP
	var out []Chain
	ask := question(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC)
	for body, err := range w.gen.conn.Get(&ask) {
		if err != nil {
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
		b := after4(body)
		hook, policy := attr(b, unix.NFTA_CHAIN_HOOK), attr(b, unix.NFTA_CHAIN_POLICY)
		c := Chain{Family: Family(body[0]), Table: text(attr(b, unix.NFTA_CHAIN_TABLE)), Name: text(attr(b, unix.NFTA_CHAIN_NAME))}
		c.Drops = policy != nil && bigEndian(policy) == drop &&
			hook != nil && bigEndian(attr(hook, unix.NFTA_HOOK_HOOKNUM)) == unix.NF_INET_FORWARD
		if c.Family == IPv4 || c.Family == IPv6 || c.Family == INet {
			out = append(out, c)
		}
	}
	return out, nil
}

func question(kind, flags uint16, f Family) nlbatch.Batch {
	var b nlbatch.Batch
	b.Message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|flags, []byte{uint8(f), unix.NFNETLINK_V0, 0, 0})
	return b
}

// after4 skips struct nfgenmsg.
func after4(b []byte) []byte { return b[min(4, len(b)):] }

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func bigEndian(b []byte) uint64 {
	switch len(b) {
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}
