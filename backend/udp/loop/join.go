package loop

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	flows    = 8     // that are joined at a time
	mostJoin = 64    // packets in one
	mostIP   = 65535 // bytes of one
)

// joiner writes packets to the device, those of one TCP or UDP flow that
// follow each other as one that stands for several. Packets of a flow stay in
// order. What it is given must stay as it is until flush.
type joiner struct {
	l    *Loop
	runs [flows]*run
	n    int // that are used: the first
	one  [2]unix.Iovec
	zero [vnetLen]byte
}

// run is a packet that others may be appended to.
type run struct {
	flow    flow
	head    []byte // the first packet's headers, in its own place
	ip      int    // length of the IP header
	v6      bool
	anyID   bool // the IPv4 ID need not count up
	size    int  // of each payload; the last may be shorter
	length  int  // of the whole
	pieces  int
	full    bool
	next    uint32 // sequence number
	id      uint16
	flags   byte // that the last packet has and the first has not
	vnet    [vnetLen]byte
	vectors [mostJoin + 1]unix.Iovec // the device's header, the packets
}

// flow is whose packets may stand for each other.
type flow struct {
	addrs [32]byte
	ports uint32
	proto uint8
}

func (j *joiner) init(l *Loop) {
	j.l = l
	for i := range j.runs {
		j.runs[i] = &run{}
	}
}

// add takes a packet. p is all of it, h its header.
func (j *joiner) add(h *header, p []byte) {
	if !h.plain || h.proto != unix.IPPROTO_TCP && h.proto != unix.IPPROTO_UDP || len(p) < h.at+udpHeader {
		if !h.plain { // it may be of any flow
			j.flush()
		}
		j.write(p)
		return
	}
	var f flow
	copy(f.addrs[:], h.addrs)
	f.ports, f.proto = binary.NativeEndian.Uint32(p[h.at:]), h.proto
	i := j.find(&f)
	if !joinable(h, p) {
		if i < j.n {
			j.end(i)
		}
		j.write(p)
		return
	}
	if i < j.n && !j.runs[i].append(h, p) {
		j.end(i)
		i = j.n
	}
	if i == j.n {
		if j.n == flows {
			j.end(0)
		}
		i = j.n
		j.n++
		j.runs[i].begin(&f, h, p)
	}
	if j.runs[i].full {
		j.end(i)
	}
}

// find returns the run of a flow; j.n: there is none.
func (j *joiner) find(f *flow) int {
	for i, r := range j.runs[:j.n] {
		if r.flow == *f {
			return i
		}
	}
	return j.n
}

// joinable reports whether a packet may be one of several: it has a payload,
// a checksum that is right, nothing unusual.
func joinable(h *header, p []byte) bool {
	t := p[h.at:]
	if h.proto == unix.IPPROTO_TCP {
		if len(t) < tcpHeader {
			return false
		}
		n := int(t[12]>>4) * 4
		if n < tcpHeader || n >= len(t) || t[13]&^(flagPSH|flagFIN) != flagACK {
			return false
		}
	} else if len(t) == udpHeader || int(binary.BigEndian.Uint16(t[4:])) != len(t) || t[6]|t[7] == 0 {
		return false
	}
	if !h.v6 && fold(sum(p[:h.at], 0)) != 0xffff {
		return false
	}
	return fold(sum(t, pseudo(h, len(t)))) == 0xffff
}

// begin makes a joinable packet the first.
func (r *run) begin(f *flow, h *header, p []byte) {
	headers := h.at + udpHeader
	r.flow, r.ip, r.v6, r.anyID = *f, h.at, h.v6, h.v6 || h.dontCut
	r.full, r.flags = false, 0
	if f.proto == unix.IPPROTO_TCP {
		headers = h.at + int(p[h.at+12]>>4)*4
		r.next = binary.BigEndian.Uint32(p[h.at+4:]) + uint32(len(p)-headers)
		r.full = p[h.at+13] != flagACK
	}
	if !h.v6 {
		r.id = binary.BigEndian.Uint16(p[4:])
	}
	r.head, r.size, r.length, r.pieces = p[:headers], len(p)-headers, len(p), 1
	r.vectors[1] = piece(p)
}

// append appends a joinable packet of the flow if it follows; the bytes that
// both must have are equal then. It may make the run full.
func (r *run) append(h *header, p []byte) bool {
	headers := len(r.head)
	n := len(p) - headers
	if n <= 0 || n > r.size || r.length+n > mostIP || r.pieces == mostJoin {
		return false
	}
	if r.v6 {
		if !bytes.Equal(p[:4], r.head[:4]) || p[7] != r.head[7] {
			return false
		}
	} else {
		id := binary.BigEndian.Uint16(p[4:])
		if p[1] != r.head[1] || p[8] != r.head[8] || h.dontCut != (r.head[6]&0x40 != 0) || !r.anyID && id != r.id+1 {
			return false
		}
		r.id = id
	}
	if r.flow.proto == unix.IPPROTO_TCP {
		a, b := r.head[r.ip:], p[r.ip:headers]
		if binary.BigEndian.Uint32(b[4:]) != r.next || !bytes.Equal(a[8:13], b[8:13]) || // acknowledgement, length
			!bytes.Equal(a[14:16], b[14:16]) || !bytes.Equal(a[18:], b[18:headers-r.ip]) { // window; urgent pointer, options
			return false
		}
		r.next += uint32(n)
		r.flags |= b[13] &^ a[13]
		r.full = r.flags != 0
	}
	r.vectors[1+r.pieces] = piece(p[headers:])
	r.pieces++
	r.length += n
	r.full = r.full || n < r.size || r.pieces == mostJoin
	return true
}

// end writes a run and forgets it. Order among flows does not matter.
func (j *joiner) end(i int) {
	r := j.runs[i]
	r.finish()
	j.out(r.vectors[:r.pieces+1])
	j.n--
	j.runs[i], j.runs[j.n] = j.runs[j.n], r
}

// finish makes the first packet's headers those of all.
func (r *run) finish() {
	r.vectors[0] = piece(r.vnet[:])
	v := vnet{}
	if r.pieces > 1 {
		n := r.length - r.ip
		v = vnet{flags: needsSum, headers: uint16(len(r.head)), size: uint16(r.size), sumStart: uint16(r.ip)}
		if r.v6 {
			binary.BigEndian.PutUint16(r.head[4:], uint16(n))
		} else {
			binary.BigEndian.PutUint16(r.head[2:], uint16(r.length))
			putSum(r.head[10:], 0)
			putSum(r.head[10:], ^fold(sum(r.head[:r.ip], 0)))
		}
		t := r.head[r.ip:]
		if r.flow.proto == unix.IPPROTO_TCP {
			t[13] |= r.flags
			v.kind, v.sumOffset = kindTCP4, 16
			if r.v6 {
				v.kind = kindTCP6
			}
		} else {
			binary.BigEndian.PutUint16(t[4:], uint16(n))
			v.kind, v.sumOffset = kindUDP, 6
		}
		addrs := r.flow.addrs[:8]
		if r.v6 {
			addrs = r.flow.addrs[:]
		}
		putSum(t[v.sumOffset:], fold(sum(addrs, native16(uint16(r.flow.proto))+native16(uint16(n)))))
	}
	v.write(r.vnet[:])
}

// flush writes what is left.
func (j *joiner) flush() {
	for j.n > 0 {
		j.end(j.n - 1)
	}
}

// write writes a packet that stands for itself.
func (j *joiner) write(p []byte) {
	j.one[0], j.one[1] = piece(j.zero[:]), piece(p)
	j.out(j.one[:])
}

func (j *joiner) out(v []unix.Iovec) {
	j.l.count.writes.Add(1)
	if writev(j.l.tun, v) != 0 {
		j.l.count.refused.Add(1)
	}
}
