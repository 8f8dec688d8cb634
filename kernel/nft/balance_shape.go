package nft

import (
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// shape is what a chain that chooses an endpoint depends on. Frontends of equal
// shape share the chain: there are as many as there are numbers of slots.
type shape struct {
	balance  rules.Balance
	slots    int
	affinity time.Duration
	// place is set if chains are not shared: round robin counts for itself.
	place place
}

// shapeOf returns the shape of a frontend that has slots.
func shapeOf(f *rules.Frontend) shape {
	sh := shape{balance: f.Balance, slots: len(f.Slots), affinity: f.Affinity}
	if sh.slots == 1 {
		sh.balance = rules.Random // nothing to choose from
	}
	if sh.balance == rules.RoundRobin {
		sh.place = placeOf(f)
	}
	return sh
}

// longestName is what the map from frontends to names of chains has room for.
const longestName = ifName - 1

// name is the chain's: lb-5, hash-5, aff-5-3h0m0s; with a digest where that
// would be too long or not tell all.
func (sh shape) name() string {
	begin := [...]string{rules.Random: "lb", rules.RoundRobin: "rr", rules.Hash: "hash"}[sh.balance]
	long := fmt.Sprintf("%s-%d", begin, sh.slots)
	if sh.affinity > 0 {
		begin, long = "aff", strings.Replace(long, "lb", "aff", 1)+"-"+sh.affinity.String()
	}
	if ascii := !strings.Contains(long, "µ"); ascii && len(long) <= longestName && sh.place == (place{}) {
		return long
	}
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint16(append([]byte(long), sh.place.protocol), sh.place.port))
	h.Write(sh.place.addr.AsSlice())
	digest := base32.StdEncoding.EncodeToString(h.Sum(nil))
	return strings.ToLower(begin + "-" + digest[:longestName-1-len(begin)])
}

// chain chooses a slot and translates the destination.
func (sh shape) chain() (chain, error) {
	c := chain{name: sh.name()}
	for _, v4 := range []bool{true, false} {
		if sh.place.addr.IsValid() && sh.place.addr.Is4() != v4 {
			continue
		}
		if sh.affinity > 0 {
			sh.sticky(&c, v4)
			continue
		}
		w := addrLen(v4) / 4
		c.add(sh.words(), family(v4), loadPlace(v4, reg32), sh.choose(v4, reg32+w+2),
			endpointAt(v4, reg32, reg32), translate(v4, reg32))
	}
	for i := range c.rules {
		if err := c.rules[i].sign(); err != nil {
			return c, fmt.Errorf("chain %s: %w", c.name, err)
		}
	}
	return c, nil
}

func (sh shape) words() string {
	how := [...]string{rules.Random: "any", rules.RoundRobin: "the next", rules.Hash: "the client's"}[sh.balance]
	return fmt.Sprintf("%s of %d", how, sh.slots)
}

// sticky has a client return to its endpoint. The registers are, in words of
// four bytes: client, frontend's address, protocol, port, endpoint's address and
// port. While one is chosen the slot is in the client's last word.
func (sh shape) sticky(c *chain, v4 bool) {
	w := addrLen(v4) / 4
	slot, frontend, port, endpoint := reg32+w-1, reg32+w, reg32+2*w+1, reg32+2*w+2
	load := func(source bool, register uint32) match {
		l := loadAddr(v4, source, addrLen(v4))
		l.DestRegister = register
		return match{l}
	}
	client := load(true, reg32)
	begin := all(family(v4), loadPlace(v4, frontend), load(false, endpoint), match{loadPort(endpoint + w)})
	known := again(clients.of(v4), reg32, port)
	choose := all(sh.choose(v4, slot), again(sticky.of(v4), slot, port))
	member := func(not bool) match {
		return match{&expr.Lookup{SourceRegister: frontend, SetName: members.of(v4).name(), Invert: not}}
	}
	entry := func(op uint32) match {
		d := &expr.Dynset{SrcRegKey: reg32, SrcRegData: port, SetName: clients.of(v4).name(), Operation: op}
		if op != opDelete {
			d.Timeout = max(sh.affinity, time.Millisecond)
		}
		return match{d}
	}
	c.add("a client that was here, endpoint in "+clients.of(v4).name(), begin, client, known, member(false), entry(unix.NFT_DYNSET_OP_UPDATE), translate(v4, endpoint))
	c.add("its endpoint is gone", begin, client, known, member(true), entry(opDelete))
	// Another CPU may have chosen for the same client meanwhile: what is in the
	// map counts.
	c.add(sh.words()+" in "+sticky.of(v4).name(), begin, choose, client, entry(unix.NFT_DYNSET_OP_ADD), known, translate(v4, endpoint))
	c.add(sh.words()+", with no room to remember it", begin, choose, translate(v4, endpoint))
}

// opDelete is NFT_DYNSET_OP_DELETE (Linux 5.4).
const opDelete = 2

// seed makes all hosts choose the same endpoint for a client.
const seed = 0x666c616e

// hashed is where a client's address is while it is hashed: the last registers,
// which nothing else needs then.
const hashed = reg32 + 12

// choose puts a slot's number into a register.
func (sh shape) choose(v4 bool, register uint32) match {
	n := uint32(sh.slots)
	switch {
	case sh.balance == rules.Hash:
		src := loadAddr(v4, true, addrLen(v4))
		src.DestRegister = hashed
		return match{src, &expr.Hash{SourceRegister: hashed, DestRegister: register, Length: addrLen(v4), Modulus: n, Seed: seed, Type: expr.HashTypeJenkins}}
	case sh.balance == rules.RoundRobin:
		return match{&expr.Numgen{Register: register, Modulus: n, Type: unix.NFT_NG_INCREMENTAL}}
	}
	return match{&expr.Numgen{Register: register, Modulus: n, Type: unix.NFT_NG_RANDOM}}
}

// endpointAt finds the endpoint of the frontend and slot that begin at a
// register.
func endpointAt(v4 bool, from, to uint32) match {
	return match{&expr.Lookup{SourceRegister: from, DestRegister: to, IsDestRegSet: true, SetName: endpoints.of(v4).name()}}
}

// translate changes the destination to the endpoint at a register.
func translate(v4 bool, register uint32) match {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: register, RegProtoMin: register + addrLen(v4)/4}
	if v4 {
		n.Family = unix.NFPROTO_IPV4
	}
	return match{n}
}

// use makes sure of the chain that f needs, and returns its number.
func (b *Balancer) use(c *change, f *rules.Frontend) (number uint32, err error) {
	if f == nil || len(f.Slots) == 0 {
		return 0, nil
	}
	sh := shapeOf(f)
	if l := b.chains[sh]; l != nil {
		l.uses++
		return l.number, nil
	}
	ch, err := sh.chain()
	if err != nil {
		return 0, err
	}
	l := &lent{number: b.number(sh), uses: 1, digest: ch.digest()}
	c.makeChain(ch)
	c.fill(ch)
	c.addChain(l.number, ch.name)
	b.chains[sh], b.numbers[l.number] = l, true
	return l.number, nil
}

// lowNumbers are those of chains that choose at random: how many there are to
// choose from.
const lowNumbers = 1 << 16

// pinned is how many of them are always there: the kernel walks through the map
// of endpoints when a new chain begins to use it, 3 ms with 50,000 of them.
const pinned = 16

// number is one for a new chain: the same on every host and after every
// restart, unless two chains would have the same one.
func (b *Balancer) number(sh shape) uint32 {
	if sh == (shape{slots: sh.slots}) && sh.slots < lowNumbers {
		return uint32(sh.slots)
	}
	h := fnv.New32a()
	h.Write([]byte(sh.name()))
	n := h.Sum32() | lowNumbers
	for b.numbers[n] {
		n = n + 1 | lowNumbers
	}
	return n
}

// leave is the end of what f uses. It returns the chain's number.
func (b *Balancer) leave(f *rules.Frontend) uint32 {
	if f == nil || len(f.Slots) == 0 {
		return 0
	}
	l := b.chains[shapeOf(f)]
	l.uses--
	return l.number
}
