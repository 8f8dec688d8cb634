package loop

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Peer is where packets for a subnet go, and come from.
type Peer struct {
	Subnet netip.Prefix
	Public netip.AddrPort
}

// Table is an immutable set of peers.
type Table struct {
	lengths [2][]int // of subnets, the longest first, IPv4 and IPv6
	peers   map[key]*peer
}

type peer struct {
	public key
	raw    [unix.SizeofSockaddrInet6]byte // as the kernel wants it
	rawLen uint32
}

// key is an address or a prefix: IPv4 stands in lo alone, and has another
// length than IPv6 by 129.
type key struct {
	hi, lo uint64
	bits   int
}

// keyOf reads an address of 4 or 16 bytes.
func keyOf(b []byte) key {
	if len(b) == 4 {
		return key{lo: uint64(binary.BigEndian.Uint32(b)) << 32, bits: 129 + 32}
	}
	return key{hi: binary.BigEndian.Uint64(b), lo: binary.BigEndian.Uint64(b[8:]), bits: 128}
}

func addrKey(a netip.Addr) key { return keyOf(a.AsSlice()) }

// masked is the network of an address, n bits long.
func (k key) masked(n int) key {
	switch {
	case k.bits > 128:
		return key{lo: k.lo &^ (1<<(64-n) - 1), bits: 129 + n}
	case n <= 64:
		return key{hi: k.hi &^ (1<<(64-n) - 1), bits: n}
	default:
		return key{hi: k.hi, lo: k.lo &^ (1<<(128-n) - 1), bits: n}
	}
}

// NewTable makes a table. Of two peers with one subnet the last has it.
func NewTable(peers []Peer) *Table {
	t := &Table{peers: make(map[key]*peer, len(peers))}
	same := map[netip.AddrPort]*peer{}
	for _, p := range peers {
		n, family := p.Subnet.Bits(), 0
		if p.Subnet.Addr().Is6() {
			family = 1
		}
		if !slices.Contains(t.lengths[family], n) {
			t.lengths[family] = append(t.lengths[family], n)
		}
		q := same[p.Public]
		if q == nil {
			q = newPeer(p.Public)
			same[p.Public] = q
		}
		t.peers[addrKey(p.Subnet.Addr()).masked(n)] = q
	}
	for i := range t.lengths {
		slices.Sort(t.lengths[i])
		slices.Reverse(t.lengths[i])
	}
	return t
}

func newPeer(at netip.AddrPort) *peer {
	p := &peer{public: addrKey(at.Addr())}
	family := uint16(unix.AF_INET)
	if at.Addr().Is6() {
		family = unix.AF_INET6
		p.rawLen = unix.SizeofSockaddrInet6
		copy(p.raw[8:], at.Addr().AsSlice())
	} else {
		p.rawLen = unix.SizeofSockaddrInet4
		copy(p.raw[4:], at.Addr().AsSlice())
	}
	binary.NativeEndian.PutUint16(p.raw[:], family)
	binary.BigEndian.PutUint16(p.raw[2:], at.Port())
	return p
}

// lookup finds who has an address; nil: nobody.
func (t *Table) lookup(a key) *peer {
	family := 1
	if a.bits > 128 {
		family = 0
	}
	for _, n := range t.lengths[family] {
		if p := t.peers[a.masked(n)]; p != nil {
			return p
		}
	}
	return nil
}
