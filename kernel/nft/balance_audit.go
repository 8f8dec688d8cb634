package nft

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/rules"
)

// audit compares what the kernel holds of frontends with what it shall. All of
// it may be right, and then it remembers a bit of each element.
type audit struct {
	fs     []*rules.Frontend
	orders map[*rules.Frontend][]int32
	chains []uint32 // numbers of those that choose
	index  map[place]int32
	first  []int // where the slots of a frontend begin among right ones
	// Elements that are right: slots, and by frontends chains and nodes.
	slots, chosen, nodes bitmap
	// odd are elements that are not, or of which nothing is known.
	odd     map[place]*oddity
	members map[place][]netip.AddrPort
	// Keys.
	hairpins, hosts []string
}

// oddity is what the kernel holds of a frontend that it shall not.
type oddity struct {
	chain uint32
	node  bool
	slots map[int]netip.AddrPort
	other []int // slots in the map of those with affinity, or not, that it is not in
}

type bitmap []uint64

func newBitmap(n int) bitmap    { return make(bitmap, n/64+1) }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) has(i int) bool { return b[i/64]>>(i%64)&1 == 1 }

// newAudit expects fs, with chains of these numbers, and endpoints in the orders
// that are known.
func newAudit(fs []*rules.Frontend, chains []uint32, orders map[*rules.Frontend][]int32) *audit {
	a := &audit{fs: fs, chains: chains, orders: orders, index: make(map[place]int32, len(fs)), first: make([]int, len(fs)+1),
		chosen: newBitmap(len(fs)), nodes: newBitmap(len(fs)), odd: map[place]*oddity{}, members: map[place][]netip.AddrPort{}}
	for i, f := range fs {
		a.index[placeOf(f)] = int32(i)
		a.first[i+1] = a.first[i] + len(f.Slots)
	}
	a.slots = newBitmap(a.first[len(fs)])
	return a
}

// slot is what is expected.
func (a *audit) slot(f *rules.Frontend, n int) netip.AddrPort {
	if order := a.orders[f]; order != nil {
		return f.Slots[order[n]]
	}
	return f.Slots[n]
}

func (a *audit) find(p place) (i int, known bool) {
	at, known := a.index[p]
	return int(at), known
}

func (a *audit) oddity(p place) *oddity {
	o := a.odd[p]
	if o == nil {
		o = &oddity{slots: map[int]netip.AddrPort{}}
		a.odd[p] = o
	}
	return o
}

// read takes all elements in.
func (a *audit) read(r reader) error {
	for _, v4 := range []bool{true, false} {
		for s, take := range map[setID]func(v4 bool, key, data []byte){
			services: a.service, nodes: a.node, members: a.member, hairpins: a.hairpin, hosts: a.host,
			endpoints: func(v4 bool, key, data []byte) {
				p, slot := cutPlace(key, v4)
				a.take(p, false, slot, cutEndpoint(data, v4))
			},
			sticky: func(v4 bool, key, data []byte) {
				p, _ := cutPlace(key[4:], v4)
				a.take(p, true, key, cutEndpoint(data[4:], v4))
			},
		} {
			if err := r.elements(s.of(v4), func(key, data []byte) { take(v4, key, data) }); err != nil {
				return err
			}
		}
	}
	a.hairpins, a.hosts = sorted(a.hairpins, strings.Compare), sorted(a.hosts, strings.Compare)
	for p, m := range a.members {
		a.members[p] = sorted(m, netip.AddrPort.Compare)
	}
	return nil
}

func (a *audit) service(v4 bool, key, data []byte) {
	p, _ := cutPlace(key, v4)
	n := binary.NativeEndian.Uint32(data[4:])
	if i, known := a.find(p); known && a.chains[i] == n {
		a.chosen.set(i)
		return
	}
	a.oddity(p).chain = n
}

// take takes a slot in.
func (a *audit) take(p place, stick bool, slot []byte, e netip.AddrPort) {
	n := int(binary.NativeEndian.Uint32(slot))
	i, known := a.find(p)
	switch {
	case stick != (known && a.fs[i].Affinity > 0):
		o := a.oddity(p)
		o.other = append(o.other, n)
	case known && n < len(a.fs[i].Slots) && a.slot(a.fs[i], n) == e:
		a.slots.set(a.first[i] + n)
	default:
		a.oddity(p).slots[n] = e
	}
}

func (a *audit) member(v4 bool, key, _ []byte) {
	p, rest := cutPlace(key, v4)
	a.members[p] = append(a.members[p], cutEndpoint(rest, v4))
}

func (a *audit) node(v4 bool, key, _ []byte) {
	p, _ := cutPlace(key, v4)
	if i, known := a.find(p); known && a.fs[i].Node && len(a.fs[i].Slots) > 0 {
		a.nodes.set(i)
		return
	}
	a.oddity(p).node = true
}

func (a *audit) hairpin(_ bool, key, _ []byte) { a.hairpins = append(a.hairpins, string(key)) }
func (a *audit) host(_ bool, key, _ []byte)    { a.hosts = append(a.hosts, string(key)) }

// wrong calls each for every frontend of which the kernel does not hold what it
// shall, and for every other of which it holds something: i is negative then.
// rest are slots that are not in have.
func (a *audit) wrong(each func(i int, p place, have held, rest []strayed)) {
	for i, f := range a.fs {
		p := placeOf(f)
		o, members := a.odd[p], a.members[p]
		delete(a.odd, p)
		delete(a.members, p)
		if o != nil || !a.right(i, members) {
			have, rest := a.have(i, o, members)
			each(i, p, have, rest)
		}
	}
	for p := range a.members {
		a.oddity(p)
	}
	for p, o := range a.odd {
		have, rest := a.have(-1, o, a.members[p])
		each(-1, p, have, rest)
	}
}

// strayed is a slot that nothing is expected in.
type strayed struct {
	stick bool
	slot  int
}

// sorted leaves out twins, which there may be in a dump that was disturbed.
func sorted[T any](list []T, compare func(a, b T) int) []T {
	slices.SortFunc(list, compare)
	return slices.CompactFunc(list, func(a, b T) bool { return compare(a, b) == 0 })
}

// complete tells whether nothing is missing.
func (a *audit) complete() bool {
	for i, f := range a.fs {
		if !a.right(i, a.members[placeOf(f)]) {
			return false
		}
	}
	return true
}

// right tells whether all that shall be there is.
func (a *audit) right(i int, members []netip.AddrPort) bool {
	f := a.fs[i]
	for n := a.first[i]; n < a.first[i+1]; n++ {
		if !a.slots.has(n) {
			return false
		}
	}
	some := len(f.Slots) > 0
	if a.chosen.has(i) != some || a.nodes.has(i) != (some && f.Node) {
		return false
	}
	if f.Affinity == 0 {
		return len(members) == 0
	}
	return slices.Equal(members, holding(f, a.chains[i], nil).members)
}

// have puts together what the kernel holds of a frontend.
func (a *audit) have(i int, o *oddity, members []netip.AddrPort) (have held, rest []strayed) {
	have.members = members
	if i >= 0 {
		f := a.fs[i]
		have.node, have.sticky = a.nodes.has(i), f.Affinity > 0
		if a.chosen.has(i) {
			have.chain = a.chains[i]
		}
		have.slots = make([]netip.AddrPort, len(f.Slots))
		for n := range f.Slots {
			if a.slots.has(a.first[i] + n) {
				have.slots[n] = a.slot(f, n)
			}
		}
	}
	if o == nil {
		return have, nil
	}
	if o.chain != 0 {
		have.chain = o.chain
	}
	have.node = have.node || o.node
	for n, e := range o.slots {
		if n < len(have.slots) {
			have.slots[n] = e
		} else {
			rest = append(rest, strayed{have.sticky, n})
		}
	}
	for _, n := range sorted(o.other, cmp.Compare) {
		rest = append(rest, strayed{!have.sticky, n})
	}
	return have, rest
}
