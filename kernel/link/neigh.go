package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Neighbour is an entry of the ARP or neighbour discovery table.
type Neighbour struct {
	Addr netip.Addr
	MAC  MAC
	Link int
	// Permanent: set by somebody; nothing that arrives changes it.
	Permanent bool
}

// FDB is an entry of a VXLAN device's forwarding table: frames for MAC go to
// the tunnel endpoint Dst.
type FDB struct {
	MAC  MAC
	Dst  netip.Addr
	Link int
	// Port, VNI and Via (an interface) are 0 where they are the device's own.
	Port      uint16
	VNI       uint32
	Via       int
	Permanent bool
}

const ndmsgLen = 12 // struct ndmsg

func ndmsg(fam byte, link int, state uint16, flags byte) [ndmsgLen]byte {
	body := [ndmsgLen]byte{0: fam, 10: flags}
	native.PutUint32(body[4:], uint32(link))
	native.PutUint16(body[8:], state)
	return body
}

// addNeighbour appends the message that sets or deletes a neighbour.
func addNeighbour(b *nlbatch.Batch, kind, flags uint16, n *Neighbour) {
	body := ndmsg(family(n.Addr), n.Link, unix.NUD_PERMANENT, 0)
	b.Message(kind, flags, body[:])
	addAddr(b, unix.NDA_DST, n.Addr)
	if kind == unix.RTM_NEWNEIGH {
		b.Bytes(unix.NDA_LLADDR, n.MAC[:])
	}
}

// addFDB appends the message that sets or deletes a forwarding entry.
func addFDB(b *nlbatch.Batch, kind, flags uint16, f *FDB) {
	body := ndmsg(unix.AF_BRIDGE, f.Link, unix.NUD_PERMANENT, unix.NTF_SELF)
	b.Message(kind, flags, body[:])
	b.Bytes(unix.NDA_LLADDR, f.MAC[:])
	if f.Dst.IsValid() {
		addAddr(b, unix.NDA_DST, f.Dst)
	}
	if f.Port != 0 {
		var raw [2]byte
		binary.BigEndian.PutUint16(raw[:], f.Port)
		b.Bytes(unix.NDA_PORT, raw[:])
	}
	if f.VNI != 0 {
		add32(b, unix.NDA_VNI, f.VNI)
	}
	if f.Via != 0 {
		add32(b, unix.NDA_IFINDEX, uint32(f.Via))
	}
}

// parseNeighbour reads a neighbour message of the IP families.
func parseNeighbour(body []byte, n *Neighbour) (ok bool) {
	if len(body) < ndmsgLen {
		return false
	}
	state := native.Uint16(body[8:])
	*n = Neighbour{Link: int(native.Uint32(body[4:])), Permanent: state&unix.NUD_PERMANENT != 0}
	for kind, data := range nlbatch.Attrs(body[ndmsgLen:]) {
		switch {
		case kind == unix.NDA_DST:
			n.Addr = addrOf(data)
		case kind == unix.NDA_LLADDR && len(data) == len(n.MAC):
			n.MAC = MAC(data)
		}
	}
	// What needs no resolution (multicast, loopback) is not an entry of anybody's.
	return n.Addr.IsValid() && state&unix.NUD_NOARP == 0
}

// parseFDB reads a forwarding entry of the device's own table.
func parseFDB(body []byte, f *FDB) (ok bool) {
	if len(body) < ndmsgLen || body[10]&unix.NTF_SELF == 0 {
		return false
	}
	*f = FDB{Link: int(native.Uint32(body[4:])), Permanent: native.Uint16(body[8:])&unix.NUD_PERMANENT != 0}
	for kind, data := range nlbatch.Attrs(body[ndmsgLen:]) {
		switch kind {
		case unix.NDA_LLADDR:
			if len(data) == len(f.MAC) {
				f.MAC = MAC(data)
				ok = true
			}
		case unix.NDA_DST:
			f.Dst = addrOf(data)
		case unix.NDA_PORT:
			f.Port = big16(data)
		case unix.NDA_VNI:
			f.VNI = u32(data)
		case unix.NDA_IFINDEX:
			f.Via = int(u32(data))
		}
	}
	return ok
}

// Neighbours lists the IP neighbours of one interface, both families; the
// kernel does the selecting.
func (h *Handle) Neighbours(link int) ([]Neighbour, error) {
	var out []Neighbour
	for _, fam := range families() {
		body := ndmsg(fam, 0, 0, 0)
		add32(h.message(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, body[:]), unix.NDA_IFINDEX, uint32(link))
		start := len(out)
		err := h.dump(func() { out = out[:start] }, func(body []byte) error {
			var n Neighbour
			if len(body) > 0 && body[0] == fam && parseNeighbour(body, &n) && n.Link == link {
				out = append(out, n)
			}
			return nil
		})
		if err != nil && !noFamily(err) {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
	}
	return out, nil
}

// FDBs lists the forwarding table of one VXLAN device; the kernel does the
// selecting.
func (h *Handle) FDBs(link int) ([]FDB, error) {
	var out []FDB
	body := ndmsg(unix.AF_BRIDGE, link, 0, 0)
	h.message(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, body[:])
	err := h.dump(func() { out = out[:0] }, func(body []byte) error {
		var f FDB
		if parseFDB(body, &f) && f.Link == link {
			out = append(out, f)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	return out, nil
}
