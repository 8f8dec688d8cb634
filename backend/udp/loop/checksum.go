package loop

import (
	"encoding/binary"
	"math/bits"
)

// sum adds the Internet checksum (RFC 1071) of b to acc, unfolded and in the
// machine's own byte order: fold gives what the wire wants. Two parts may be
// added one after the other if the first has an even length.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		w := (*[64]byte)(b)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[0:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[8:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[16:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[24:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[32:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[40:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[48:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(w[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(rest[:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// fold makes the 16 bits of a sum, to be stored in the machine's byte order.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// native16 is a number as it stands in a packet, for sums.
func native16(n uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// pseudo is the sum of the pseudo header (RFC 9293, RFC 8200) of a payload of
// n bytes of a packet.
func pseudo(h *header, n int) uint64 {
	return sum(h.addrs, native16(uint16(h.proto))+native16(uint16(n)))
}

func putSum(b []byte, s uint16) { binary.NativeEndian.PutUint16(b, s) }
