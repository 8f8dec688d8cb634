package nft

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Bounds of a message (an attribute holds 64 KiB) and of a transaction (the
// socket's buffer).
const (
	messageBytes     = 60 << 10
	transactionBytes = 1 << 20
)

// change is a transaction under construction, or several if it grows long. The
// order in which things are added does not matter within one: chains and sets
// that come are made first, then elements go, elements come, and chains go.
type change struct {
	table string
	send  func(*nlbatch.Batch) error

	first       nlbatch.Batch
	gone, fresh [sets]elements
	last        []func(*nlbatch.Batch)
	bytes       int
	element     []byte // the one being encoded
	// Counts, for tests: transactions, and elements in them.
	commits, elements int
	err               error
}

// elements are encoded, in parts that fit into a message each.
type elements [][]byte

func (e *elements) add(b []byte) {
	if n := len(*e); n == 0 || len((*e)[n-1])+len(b) > messageBytes {
		*e = append(*e, nil)
	}
	last := &(*e)[len(*e)-1]
	*last = append(*last, b...)
}

// add and del change an element; data is nil for that of a set.
func (c *change) add(s setID, key, data []byte) {
	var d []byte
	if data != nil {
		d = appendAttr(nil, unix.NFTA_DATA_VALUE, data)
	}
	c.put(&c.fresh[s], key, d)
}

func (c *change) del(s setID, key []byte) { c.put(&c.gone[s], key, nil) }

// addChain adds the element with which a chain is found by its number.
func (c *change) addChain(number uint32, name string) {
	verdict := appendAttr(nil, unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, gotoChain))
	verdict = appendAttr(verdict, unix.NFTA_VERDICT_CHAIN, append([]byte(name), 0))
	c.put(&c.fresh[shapes], appendNumber(nil, int(number)), appendAttr(nil, unix.NFTA_DATA_VERDICT|unix.NLA_F_NESTED, verdict))
}

const gotoChain = 1<<32 + unix.NFT_GOTO

func (c *change) put(list *elements, key, data []byte) {
	b := c.element[:0]
	b = append(b, 0, 0, 0, 0) // header, below
	b = binary.NativeEndian.AppendUint16(b, uint16(8+len(key)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED)
	b = appendAttr(b, unix.NFTA_DATA_VALUE, key)
	if data != nil {
		b = appendAttr(b, unix.NFTA_SET_ELEM_DATA|unix.NLA_F_NESTED, data)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED)
	c.element = b
	list.add(b)
	c.bytes += len(b)
	c.elements++
}

// full commits if much was collected: between two calls everything collected so
// far must be right together.
func (c *change) full() {
	if c.bytes >= transactionBytes {
		c.commit()
	}
}

// commit sends what was collected, unless something went wrong before.
func (c *change) commit() {
	if c.err != nil {
		return
	}
	b := c.first
	for s := range setID(sets) {
		c.list(&b, unix.NFT_MSG_DELSETELEM, 0, s, c.gone[s])
	}
	for s := range setID(sets) {
		c.list(&b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, s, c.fresh[s])
	}
	for _, add := range c.last {
		add(&b)
	}
	if b.Len() > 0 {
		c.commits++
		c.err = c.send(&b)
	}
	b.Reset()
	c.first, c.gone, c.fresh, c.last, c.bytes = b, [sets]elements{}, [sets]elements{}, nil, 0
}

func (c *change) list(b *nlbatch.Batch, kind, flags uint16, s setID, parts elements) {
	for _, part := range parts {
		ask(b, kind, flags)
		b.String(unix.NFTA_SET_ELEM_LIST_TABLE, c.table)
		b.String(unix.NFTA_SET_ELEM_LIST_SET, s.name())
		b.Bytes(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, part)
	}
}

// newTable makes the table and its sets.
func (c *change) newTable() {
	ask(&c.first, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	c.first.String(unix.NFTA_TABLE_NAME, c.table)
	for s := range setID(sets) {
		s.spec().message(&c.first, c.table, uint32(s)+1)
	}
}

func delTable(b *nlbatch.Batch, table string) {
	ask(b, unix.NFT_MSG_DELTABLE, 0)
	b.String(unix.NFTA_TABLE_NAME, table)
}

func (c *change) delSet(name string) {
	c.last = append(c.last, func(b *nlbatch.Batch) {
		ask(b, unix.NFT_MSG_DELSET, 0)
		b.String(unix.NFTA_SET_TABLE, c.table)
		b.String(unix.NFTA_SET_NAME, name)
	})
}

// delChain is for a chain that nothing jumps to any more.
func (c *change) delChain(name string) {
	c.last = append(c.last, func(b *nlbatch.Batch) {
		ask(b, unix.NFT_MSG_DELCHAIN, 0)
		b.String(unix.NFTA_CHAIN_TABLE, c.table)
		b.String(unix.NFTA_CHAIN_NAME, name)
	})
}

func (c *change) flushChain(name string) {
	ask(&c.first, unix.NFT_MSG_DELRULE, 0)
	c.first.String(unix.NFTA_RULE_TABLE, c.table)
	c.first.String(unix.NFTA_RULE_CHAIN, name)
}

// makeChain makes a chain, or empties it if it is there. One that is jumped to
// must be made before fill adds the rules that do.
func (c *change) makeChain(ch chain) {
	ask(&c.first, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	c.first.String(unix.NFTA_CHAIN_TABLE, c.table)
	c.first.String(unix.NFTA_CHAIN_NAME, ch.name)
	if ch.hook != (hook{}) {
		c.first.Nest(unix.NFTA_CHAIN_HOOK, func() {
			c.first.BigUint32(unix.NFTA_HOOK_HOOKNUM, uint32(ch.hook.num))
			c.first.BigUint32(unix.NFTA_HOOK_PRIORITY, uint32(ch.hook.priority))
		})
		c.first.BigUint32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
		c.first.String(unix.NFTA_CHAIN_TYPE, string(ch.hook.typ))
	}
	c.flushChain(ch.name)
}

func (c *change) fill(ch chain) {
	for _, r := range ch.rules {
		if err := r.message(&c.first, c.table, ch.name); err != nil && c.err == nil {
			c.err = err
		}
	}
}

func comment(s string) []byte { return userdata.AppendString(nil, userdata.TypeComment, s) }

// digest of what a chain holds: equal digests mean equal rules. Beside comments
// it counts what expressions a rule has: a rule may have no comment, and one
// that nft restored from a listing of ours has others.
func (ch chain) digest() uint64 {
	h := fnv.New64a()
	for _, r := range ch.rules {
		h.Write(r.kinds)
		h.Write(comment(r.comment))
	}
	return h.Sum64()
}

// held is what the kernel holds of a frontend.
type held struct {
	chain   uint32           // number of the one that chooses; 0: none
	sticky  bool             // slots are those of a frontend with affinity
	slots   []netip.AddrPort // not valid: a hole
	members []netip.AddrPort // endpoints that clients may return to, sorted, each once
	node    bool             // known as a frontend of this host
}

// holding is what the kernel holds of a frontend if all is right. order says
// which of its slots is where, nil: each at its own place.
func holding(f *rules.Frontend, chain uint32, order []int32) held {
	if f == nil || len(f.Slots) == 0 {
		return held{}
	}
	h := held{chain: chain, node: f.Node, slots: f.Slots, sticky: f.Affinity > 0}
	if order != nil {
		h.slots = make([]netip.AddrPort, len(order))
		for i, at := range order {
			h.slots[i] = f.Slots[at]
		}
	}
	if h.sticky {
		h.members = slices.Clone(f.Slots)
		slices.SortFunc(h.members, netip.AddrPort.Compare)
		h.members = slices.Compact(h.members)
	}
	return h
}

// frontend turns what the kernel holds of a frontend into what it shall.
func (c *change) frontend(p place, have, want held) {
	v4 := p.addr.Is4()
	key, data := p.append(make([]byte, 0, 64)), make([]byte, 0, 64)
	if have.sticky != want.sticky { // they are in another map
		old := held{sticky: have.sticky, slots: have.slots}
		have.slots = nil
		defer c.frontend(p, old, held{sticky: old.sticky})
	}
	for i, e := range want.slots {
		if i < len(have.slots) && have.slots[i] == e {
			continue
		}
		if i < len(have.slots) {
			c.delSlot(p, have, i)
		}
		c.addSlot(p, want, i)
		c.full()
	}
	added, gone := diff(have.members, want.members, netip.AddrPort.Compare)
	for _, e := range added {
		c.add(members.of(v4), appendEndpoint(key[:len(key):cap(key)], e), nil)
	}
	if have.node != want.node && want.node {
		c.add(nodes.of(v4), key, nil)
	}
	if have.chain != want.chain {
		if have.chain != 0 {
			c.del(services.of(v4), key)
		}
		if want.chain != 0 {
			c.add(services.of(v4), key, appendNumber(appendPort(data, p.port), int(want.chain)))
		}
	}
	for i := len(want.slots); i < len(have.slots); i++ {
		c.full()
		c.delSlot(p, have, i)
	}
	for _, e := range gone {
		c.del(members.of(v4), appendEndpoint(key[:len(key):cap(key)], e))
	}
	if have.node != want.node && have.node {
		c.del(nodes.of(v4), key)
	}
	c.full()
}

func (c *change) addSlot(p place, h held, i int) {
	data := make([]byte, 0, 32)
	if h.sticky {
		data = appendPort(data, p.port)
	}
	s, key := p.slot(h.sticky, i)
	c.add(s, key, appendEndpoint(data, h.slots[i]))
}

func (c *change) delSlot(p place, h held, i int) {
	if h.slots[i].IsValid() {
		c.del(p.slot(h.sticky, i))
	}
}

// slot is where a slot is: the set and the key.
func (p place) slot(stick bool, i int) (setID, []byte) {
	key := make([]byte, 0, 64)
	if stick {
		return sticky.of(p.addr.Is4()), p.append(appendNumber(key, i))
	}
	return endpoints.of(p.addr.Is4()), appendNumber(p.append(key), i)
}

// arrange says which of a frontend's slots goes where, so that as few as
// possible change; nil: each at its own place. Where clients are spread by
// their address the order of Slots counts, on all hosts the same.
func arrange(have []netip.AddrPort, f *rules.Frontend) []int32 {
	if f.Balance == rules.Hash || len(have) == 0 || slices.Equal(have, f.Slots) {
		return nil
	}
	left := make(map[netip.AddrPort][]int32, len(f.Slots)) // the last one first
	for i, e := range slices.Backward(f.Slots) {
		left[e] = append(left[e], int32(i))
	}
	order := make([]int32, len(f.Slots))
	for i := range order {
		order[i] = -1
		if i >= len(have) {
			continue
		}
		if slots := left[have[i]]; len(slots) > 0 {
			order[i], left[have[i]] = slots[len(slots)-1], slots[:len(slots)-1]
		}
	}
	var rest []int32
	for _, slots := range left {
		rest = append(rest, slots...)
	}
	slices.Sort(rest)
	own := true
	for i := range order {
		if order[i] < 0 {
			order[i], rest = rest[0], rest[1:]
		}
		own = own && f.Slots[order[i]] == f.Slots[i]
	}
	if own {
		return nil
	}
	return order
}
