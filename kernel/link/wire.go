package link

import (
	"encoding/binary"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// addAddr adds an attribute that holds an address of either family.
func addAddr(b *nlbatch.Batch, kind uint16, a netip.Addr) {
	if a.Is4() {
		raw := a.As4()
		b.Bytes(kind, raw[:])
		return
	}
	raw := a.As16()
	b.Bytes(kind, raw[:])
}

// add32 adds a number in the machine's byte order, without allocating.
func add32(b *nlbatch.Batch, kind uint16, v uint32) {
	var raw [4]byte
	native.PutUint32(raw[:], v)
	b.Bytes(kind, raw[:])
}

// addrOf reads an address attribute; the zero Addr if it is none.
func addrOf(raw []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// u32 reads a number attribute; 0 if it is none.
func u32(raw []byte) uint32 {
	if len(raw) < 4 {
		return 0
	}
	return native.Uint32(raw)
}

func u16(raw []byte) uint16 {
	if len(raw) < 2 {
		return 0
	}
	return native.Uint16(raw)
}

func big16(raw []byte) uint16 {
	if len(raw) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(raw)
}

func u8(raw []byte) uint8 {
	if len(raw) < 1 {
		return 0
	}
	return raw[0]
}

// families are the ones that tables are dumped for.
func families() [2]byte { return [2]byte{unix.AF_INET, unix.AF_INET6} }
