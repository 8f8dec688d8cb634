package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
)

// setID is one of the sets and maps of the table of services. There are two of
// each, for IPv4 and, one above it, for IPv6; of shapes there is one.
type setID int

const (
	services  setID = 2 * iota // frontend → number of the chain that chooses
	endpoints                  // frontend, slot → endpoint
	sticky                     // slot, frontend with affinity → endpoint
	members                    // frontend with affinity, endpoint
	clients                    // client, frontend with affinity → endpoint; written by packets
	nodes                      // frontends at this host's own addresses
	hairpins                   // container, itself
	hosts                      // hosts that are in the services' networks
	shapes                     // number of a chain → go there
	sets      int   = 2*iota - 1
)

// of returns the set of a family.
func (s setID) of(v4 bool) setID {
	if v4 {
		return s
	}
	return s + 1
}

// Data of svc, sticky and aff begin with the frontend's port: see again.

// mostClients bounds the memory of affinity: each client of each frontend is an
// entry of about 200 bytes, and whose address it is anybody can choose.
const mostClients = 1 << 18

// spec is a set or map as the kernel is told of it.
type spec struct {
	name      string
	key, data []nftables.SetDatatype
	flags     uint32
	size      uint32
}

func (s setID) spec() spec {
	addr, digit := nftables.TypeIPAddr, "4"
	if s%2 == 1 {
		addr, digit = nftables.TypeIP6Addr, "6"
	}
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	row := func(t ...nftables.SetDatatype) []nftables.SetDatatype { return t }
	switch s - s%2 {
	case services:
		return spec{name: "svc" + digit, key: row(addr, proto, port), data: row(port, nftables.TypeMark)}
	case endpoints:
		return spec{name: "ep" + digit, key: row(addr, proto, port, nftables.TypeMark), data: row(addr, port)}
	case nodes:
		return spec{name: "node" + digit, key: row(addr, proto, port)}
	case hairpins:
		return spec{name: "hairpin" + digit, key: row(addr, addr)}
	case hosts:
		return spec{name: "host" + digit, key: row(addr)}
	case sticky:
		return spec{name: "sticky" + digit, key: row(nftables.TypeMark, addr, proto, port), data: row(port, addr, port)}
	case members:
		return spec{name: "of" + digit, key: row(addr, proto, port, addr, port)}
	case clients:
		return spec{name: "aff" + digit, key: row(addr, addr, proto, port), data: row(port, addr, port),
			flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: mostClients}
	}
	return spec{name: "how", key: row(nftables.TypeMark), data: row(nftables.TypeVerdict)}
}

func (s setID) name() string { return s.spec().name }

// definition is what the kernel tells again of a set that is there.
type definition struct{ flags, keyType, keyLen, dataType, dataLen uint32 }

func (s spec) definition() definition {
	key := nftables.MustConcatSetType(s.key...)
	d := definition{flags: s.flags, keyType: key.GetNFTMagic(), keyLen: key.Bytes}
	if len(s.key) > 1 {
		d.flags |= nftables.NFT_SET_CONCAT
	}
	if len(s.data) > 0 {
		data := nftables.MustConcatSetType(s.data...)
		d.flags |= unix.NFT_SET_MAP
		d.dataType, d.dataLen = data.GetNFTMagic(), data.Bytes
		if s.data[0].Name == nftables.TypeVerdict.Name {
			d.dataType, d.dataLen = unix.NFT_DATA_VERDICT, 0 // as long as the kernel likes
		}
	}
	return d
}

const hostOrder = 1 // BYTEORDER_HOST_ENDIAN of nft

// message adds the set to the table.
func (s spec) message(b *nlbatch.Batch, table string, id uint32) {
	d := s.definition()
	ask(b, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.String(unix.NFTA_SET_TABLE, table)
	b.String(unix.NFTA_SET_NAME, s.name)
	b.BigUint32(unix.NFTA_SET_ID, id)
	b.BigUint32(unix.NFTA_SET_FLAGS, d.flags)
	b.BigUint32(unix.NFTA_SET_KEY_TYPE, d.keyType)
	b.BigUint32(unix.NFTA_SET_KEY_LEN, d.keyLen)
	if len(s.data) > 0 {
		b.BigUint32(unix.NFTA_SET_DATA_TYPE, d.dataType)
		b.BigUint32(unix.NFTA_SET_DATA_LEN, d.dataLen)
	}
	if s.name == shapes.name() { // so that nft shows numbers as they are
		b.Bytes(unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, hostOrder))
	}
	b.Nest(unix.NFTA_SET_DESC, func() {
		if s.size > 0 {
			b.BigUint32(unix.NFTA_SET_DESC_SIZE, s.size)
		}
		if len(s.key) > 1 {
			b.Nest(nftables.NFTA_SET_DESC_CONCAT, func() {
				for _, t := range s.key {
					b.Nest(unix.NFTA_LIST_ELEM, func() { b.BigUint32(1, t.Bytes) }) // NFTA_SET_FIELD_LEN
				}
			})
		}
	})
}

// ask begins a message about family inet.
func ask(b *nlbatch.Batch, kind, flags uint16) {
	b.Message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0})
}

// place is what a frontend is known by.
type place struct {
	addr     netip.Addr
	protocol uint8
	port     uint16
}

func placeOf(f *rules.Frontend) place { return place{f.Addr, f.Protocol, f.Port} }

// Keys and data have each field padded to four bytes, as in registers.

func (p place) append(b []byte) []byte {
	return appendPort(append(appendAddr(b, p.addr), p.protocol, 0, 0, 0), p.port)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		a4 := a.As4()
		return append(b, a4[:]...)
	}
	a16 := a.As16()
	return append(b, a16[:]...)
}

func appendPort(b []byte, port uint16) []byte { return append(b, byte(port>>8), byte(port), 0, 0) }

func appendEndpoint(b []byte, e netip.AddrPort) []byte {
	return appendPort(appendAddr(b, e.Addr()), e.Port())
}

func appendNumber(b []byte, n int) []byte { return binary.NativeEndian.AppendUint32(b, uint32(n)) }

func cutAddr(b []byte, v4 bool) (netip.Addr, []byte) {
	n := addrLen(v4)
	a, _ := netip.AddrFromSlice(b[:n])
	return a, b[n:]
}

func cutPlace(b []byte, v4 bool) (place, []byte) {
	a, b := cutAddr(b, v4)
	return place{a, b[0], binary.BigEndian.Uint16(b[4:])}, b[8:]
}

func cutEndpoint(b []byte, v4 bool) netip.AddrPort {
	a, b := cutAddr(b, v4)
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b))
}

// hairpinKeys are the elements of both families.
func hairpinKeys(local []netip.Addr) (keys []string) {
	for _, a := range local {
		keys = append(keys, string(appendAddr(appendAddr(nil, a), a)))
	}
	slices.Sort(keys)
	return keys
}

func hostKeys(hosts []netip.Addr) (keys []string) {
	for _, a := range hosts {
		keys = append(keys, string(appendAddr(nil, a)))
	}
	slices.Sort(keys)
	return keys
}

// keys turns the elements of a set of both families into others.
func (c *change) keys(s setID, have, want []string) {
	four := int(s.of(true).spec().definition().keyLen)
	added, gone := diff(have, want, strings.Compare)
	for _, key := range added {
		c.add(s.of(len(key) == four), []byte(key), nil)
	}
	for _, key := range gone {
		c.del(s.of(len(key) == four), []byte(key))
	}
	c.full()
}
