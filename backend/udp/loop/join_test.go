package loop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeDevice is a loop whose device is a pair of sockets that keep packets
// apart; written returns what was written to it.
func fakeDevice(t *testing.T) (l *Loop, written func() [][]byte) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20) // without root the batches are small enough
		t.Cleanup(func() { unix.Close(fd) })
	}
	l = &Loop{tun: fds[0], sock: -1}
	l.SetTable(NewTable(nil))
	buf := make([]byte, mostPacket)
	return l, func() (out [][]byte) {
		for {
			n, err := unix.Read(fds[1], buf)
			if err != nil {
				return out
			}
			out = append(out, bytes.Clone(buf[:n]))
		}
	}
}

// asTheKernel splits what was written to the device as the kernel would.
func asTheKernel(t *testing.T, b []byte) [][]byte {
	t.Helper()
	var v vnet
	v.read(b)
	p := b[vnetLen:]
	if v.kind == kindNone {
		if v != (vnet{}) {
			t.Fatalf("a header for nothing: %+v", v)
		}
		return [][]byte{p}
	}
	s, ok := understand(p)
	if !ok {
		t.Fatalf("not a packet: %+v %x", v, p[:min(len(p), 80)])
	}
	again := s.offloaded(int(v.size))
	var want vnet
	want.read(again)
	want.headers = uint16(len(p) - len(s.payload))
	if v != want || !bytes.Equal(again[vnetLen:], p) {
		t.Fatalf("the kernel would not understand %+v\n%x\nbut %+v\n%x", v, p[:80], want, again[vnetLen:][:80])
	}
	return s.split(int(v.size))
}

// same reports whether two packets are, but for the ID of one that must not be
// fragmented, which means nothing (RFC 6864).
func same(a, b []byte) bool {
	if a[0]>>4 == 4 && a[6]&0x40 != 0 && len(a) == len(b) && len(a) >= 20 {
		b = bytes.Clone(b)
		copy(b[4:6], a[4:6])
		copy(b[10:12], a[10:12])
	}
	return bytes.Equal(a, b)
}

// traffic is a mix of flows that behave, mostly.
func traffic(r *rand.Rand, n int) (out [][]byte) {
	flows := make([]spec, 12)
	for i := range flows {
		flows[i] = randomSpec(r, i%2 == 0, []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[i/2%2], 0)
		flows[i].sport = uint16(i)
	}
	for len(out) < n {
		f := &flows[r.IntN(len(flows))]
		size := []int{1448, 64, 1, 100}[r.IntN(4)]
		for range 1 + r.IntN(50) {
			p := *f
			p.payload = make([]byte, size)
			for i := range p.payload {
				p.payload[i] = byte(r.Uint32())
			}
			switch r.IntN(40) {
			case 0:
				p.flags |= flagPSH
			case 1:
				p.payload = p.payload[:r.IntN(size+1)]
			case 2:
				f.seq += 1000 // lost
			case 3:
				f.window++
			case 4:
				f.ack++
			case 5:
				f.ttl--
			case 6:
				f.tos ^= 4
			case 7:
				f.id += 5
			case 8:
				f.flags ^= 0x40
			}
			if f.src.Is6() {
				p.tos, p.id = 0, 0
			}
			if f.proto == unix.IPPROTO_UDP {
				p.flags, p.window, p.ack, p.seq = 0, 0, 0, 0
			}
			b := p.bytes()
			switch r.IntN(60) {
			case 0:
				b[len(b)-1] ^= 1 // broken on the way
			case 1:
				if b[0]>>4 == 4 {
					b[6] |= 0x20 // a fragment
					binary.BigEndian.PutUint16(b[10:], 0)
					binary.BigEndian.PutUint16(b[10:], plainSum(b[:20]))
				}
			case 2:
				b[10] ^= 1 // IPv4's header checksum, or the IPv6 source
			}
			out = append(out, b)
			f.seq += uint32(len(p.payload))
			f.id++
		}
	}
	return out
}

func TestJoinedPacketsAreThoseThatCame(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	l, written := fakeDevice(t)
	var j joiner
	j.init(l)
	packets, writes := 0, 0
	for range 60 {
		byFlow := map[string][][]byte{}
		key := func(p []byte) string {
			var h header
			if !h.parse(p) {
				t.Fatalf("no packet: %x", p[:min(len(p), 40)])
			}
			return fmt.Sprintf("%x %d %x", h.addrs, h.proto, p[h.at:h.at+4])
		}
		for _, p := range traffic(r, 300) {
			packets++
			byFlow[key(p)] = append(byFlow[key(p)], bytes.Clone(p))
			var h header
			h.parse(p)
			j.add(&h, p)
		}
		j.flush()
		for _, w := range written() {
			writes++
			for _, p := range asTheKernel(t, w) {
				want := byFlow[key(p)]
				if len(want) == 0 || !same(want[0], p) {
					all := slices.Concat(want...)
					t.Fatalf("flow %s: %x…, want %x…", key(p), p[:min(len(p), 70)], all[:min(len(all), 70)])
				}
				byFlow[key(p)] = want[1:]
			}
		}
		for f, left := range byFlow {
			if len(left) > 0 {
				t.Fatalf("flow %s: %d packets are missing", f, len(left))
			}
		}
	}
	if writes*2 > packets {
		t.Errorf("%d packets took %d writes: nearly nothing was joined", packets, writes)
	}
}

func TestWholeStreamIsOneWrite(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, v6 := range []bool{false, true} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			l, written := fakeDevice(t)
			var j joiner
			j.init(l)
			s := randomSpec(r, v6, proto, 40*1000+17)
			for _, p := range s.split(1000) {
				var h header
				h.parse(p)
				j.add(&h, p)
			}
			j.flush()
			if n := len(written()); n != 1 {
				t.Errorf("IPv6 %t protocol %d: %d writes", v6, proto, n)
			}
		}
	}
}

func FuzzWhatPeersSend(f *testing.F) {
	r := rand.New(rand.NewPCG(13, 14))
	for i, p := range traffic(r, 40) {
		f.Add(p, uint16(len(p)/(1+i%3)))
	}
	peers := []Peer{
		{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddrPort("192.0.2.1:1")},
		{netip.MustParsePrefix("::/0"), netip.MustParseAddrPort("192.0.2.1:1")},
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		l, written := fakeDevice(t)
		table := NewTable(peers)
		rec := newReceiver(l)
		from := addrKey(peers[0].Public.Addr())
		for rest := bytes.Clone(b); len(rest) > 0 && size > 0; {
			n := min(int(size), len(rest))
			rec.packet(table, from, rest[:n])
			rest = rest[n:]
		}
		rec.join.flush()
		total := 0
		for _, w := range written() {
			total += len(w) - vnetLen
			asTheKernel(t, w)
		}
		if total > len(b) {
			t.Fatalf("%d bytes became %d", len(b), total)
		}
	})
}
