package loop

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSumIsThatOfTheRFC(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	for range 1000 {
		from := r.IntN(200)
		to := from + r.IntN(len(b)-from)
		var got [2]byte
		putSum(got[:], ^fold(sum(b[from:to], 0)))
		if want := plainSum(b[from:to]); got != [2]byte{byte(want >> 8), byte(want)} {
			t.Fatalf("sum of bytes %d to %d is %x, want %04x", from, to, got, want)
		}
	}
	for _, fill := range []byte{0, 0xff} {
		all := bytes.Repeat([]byte{fill}, 65536)
		if s, want := fold(sum(all, 0)), ^plainSum(all); s != want {
			t.Errorf("sum of %x… is %04x, want %04x", fill, s, want)
		}
	}
}

// cutAll splits as the sender does.
func cutAll(t *testing.T, b []byte) (out [][]byte) {
	t.Helper()
	var v vnet
	v.read(b)
	p := b[vnetLen:]
	if v.kind == kindNone {
		if !v.finish(p) {
			t.Fatal("checksum outside of the packet")
		}
		return [][]byte{p}
	}
	var c cutter
	if !c.begin(&v, p) {
		t.Fatalf("not taken: %+v", v)
	}
	for c.more() {
		head, payload := c.cut(make([]byte, maxHeaders))
		out = append(out, append(head, payload...))
	}
	return out
}

func TestLargePacketsAreSplitAsTheKernelWould(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 600 {
		proto := uint8(unix.IPPROTO_TCP)
		if r.IntN(3) == 0 {
			proto = unix.IPPROTO_UDP
		}
		s := randomSpec(r, r.IntN(2) == 0, proto, r.IntN(65000-60)+1)
		if proto == unix.IPPROTO_TCP {
			s.flags = []byte{flagACK, flagACK | flagPSH, flagACK | flagFIN, flagACK | flagCWR | 0x40}[r.IntN(4)]
		}
		size := []int{0, 1 + r.IntN(1500), 1448, len(s.payload), 9000}[r.IntN(5)]
		if size != 0 && len(s.payload)/size > 2000 {
			size = 100
		}
		want := [][]byte{s.bytes()}
		if size != 0 {
			want = s.split(size)
		}
		got := cutAll(t, s.offloaded(size))
		if len(got) != len(want) {
			t.Fatalf("%d bytes by %d: %d packets, want %d", len(s.payload), size, len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("%d bytes by %d, packet %d:\n%x\nwant\n%x", len(s.payload), size, i, got[i][:min(len(got[i]), 80)], want[i][:min(len(want[i]), 80)])
			}
		}
	}
}

func TestZeroChecksumOfUDPIsWrittenAsOnes(t *testing.T) {
	s := randomSpec(rand.New(rand.NewPCG(5, 6)), false, unix.IPPROTO_UDP, 4)
	for i := range 1 << 16 { // one of them sums up to zero
		s.payload[0], s.payload[1] = byte(i>>8), byte(i)
		whole, several := cutAll(t, s.offloaded(0))[0], cutAll(t, s.offloaded(4))[0]
		if whole[26]|whole[27] == 0 || several[26]|several[27] == 0 {
			t.Fatalf("payload %x has no checksum", s.payload)
		}
	}
}

func FuzzWhatTheDeviceGives(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, v6 := range []bool{false, true} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			s := randomSpec(r, v6, proto, 3000)
			f.Add(s.offloaded(1000))
			f.Add(s.offloaded(0))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetLen {
			return
		}
		var v vnet
		v.read(b)
		p := b[vnetLen:]
		var c cutter
		if v.kind == kindNone {
			v.finish(p)
			return
		}
		if !c.begin(&v, p) {
			return
		}
		sent := 0
		for buf := make([]byte, maxHeaders); c.more(); {
			head, payload := c.cut(buf)
			if len(head) > maxHeaders || len(head) == 0 {
				t.Fatalf("header of %d bytes", len(head))
			}
			sent += len(payload)
		}
		if sent != len(p)-c.headers {
			t.Fatalf("%d bytes of payload became %d", len(p)-c.headers, sent)
		}
	})
}
