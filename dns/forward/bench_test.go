package forward

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkMiss is questions that all go upstream, four at a time, with the
// upstream's own cost.
func BenchmarkMiss(b *testing.B) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(serverNo(1)))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			buf[2], buf[3] = flagQR, flagRA
			buf[7], buf[11] = 1, 0
			reply := append(buf[:n-optLen], "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01"...)
			if _, err := conn.WriteToUDPAddrPort(reply, from); err != nil {
				return
			}
		}
	}()
	f := New(Options{Upstreams: []netip.AddrPort{serverNo(1)}})
	b.ReportAllocs()
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		q := asked{name: "aaaaaaaaaaaa.example.", kind: typeA, size: 1232}
		_, query := q.wire(b)
		buf := make([]byte, 0, 512)
		for n := uint64(binary.BigEndian.Uint16(query.Msg)) << 40; pb.Next(); n++ {
			for i := range 12 {
				query.Name[1+i] = 'a' + byte(n>>(4*i)&15)
				query.Msg[headerLen+1+i] = query.Name[1+i]
			}
			if _, ok := f.Cached(query, buf); ok {
				continue
			}
			r, err := f.Resolve(b.Context(), query, buf)
			if err != nil || r[3]&0xf != 0 {
				b.Errorf("%x, %v", r, err)
			}
		}
	})
}
