package udp_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/backend/udp/loop"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// datagram is a UDP packet of the pod network without a checksum.
func datagram(src, dst string, payload int) []byte {
	p := make([]byte, 28+payload)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], netip.MustParseAddr(src).AsSlice())
	copy(p[16:], netip.MustParseAddr(dst).AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], 7777)
	binary.BigEndian.PutUint16(p[22:], 7777)
	binary.BigEndian.PutUint16(p[24:], uint16(8+payload))
	return p
}

// inject sends packets to a host's port from another's address.
func inject(t *testing.T, from, to *backendtest.Host, packets ...[]byte) {
	t.Helper()
	var conn net.Conn
	err := from.NS.Do(func() (err error) {
		conn, err = net.Dial("udp4", netip.AddrPortFrom(to.Underlay.Addrs[0], 8285).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, p := range packets {
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyPeersOwnPacketsAreTaken(t *testing.T) {
	c, dir := cluster(t, 4)
	a, b, third, stranger := c.Hosts[0], c.Hosts[1], c.Hosts[2], c.Hosts[3]
	for _, h := range []*backendtest.Host{a, b, third} {
		h.Open(t)
	}
	a.Sync(t, b.Own, third.Own)
	b.Sync(t, a.Own, third.Own)

	var pod net.PacketConn
	err := a.Pod.Do(func() (err error) {
		pod, err = net.ListenPacket("udp4", ":7777")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	counters := func() loop.Counters {
		_, n, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	good := datagram("10.1.2.2", "10.1.1.2", 10)
	cut := func(n int) []byte { return good[:n:n] }
	changed := func(at int, value byte) []byte {
		p := append([]byte(nil), good...)
		p[at] = value
		return p
	}
	for name, test := range map[string]struct {
		from    *backendtest.Host
		packets [][]byte
		forged  uint64
		broken  uint64
		arrive  bool
	}{
		"a peer's own":           {from: b, packets: [][]byte{good}, arrive: true},
		"with something behind":  {from: b, packets: [][]byte{append(good[:len(good):len(good)], "more"...)}, arrive: true},
		"another peer's":         {from: third, packets: [][]byte{good}, forged: 1},
		"a stranger's":           {from: stranger, packets: [][]byte{good}, forged: 1},
		"the host's own":         {from: b, packets: [][]byte{datagram("10.1.1.9", "10.1.1.2", 1)}, forged: 1},
		"nobody's":               {from: b, packets: [][]byte{datagram("10.1.99.9", "10.1.1.2", 1), datagram("192.168.77.2", "10.1.1.2", 1), datagram("127.0.0.1", "10.1.1.2", 1), datagram("0.0.0.0", "10.1.1.2", 1)}, forged: 4},
		"truncated":              {from: b, packets: [][]byte{cut(1), cut(19), cut(20), cut(27), cut(len(good) - 1)}, broken: 5},
		"of wrong lengths":       {from: b, packets: [][]byte{changed(0, 0x44), changed(0, 0x4f), changed(2, 0xff), changed(3, 19)}, broken: 4},
		"no IP":                  {from: b, packets: [][]byte{[]byte("hello, this is no packet at all"), changed(0, 0), changed(0, 0x65)}, broken: 3},
		"IPv6 in an IPv4 tunnel": {from: b, packets: [][]byte{append([]byte{0x60, 7: 64}, make([]byte, 40)...)}, forged: 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := counters()
			inject(t, test.from, a, test.packets...)
			_ = pod.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, _, err := pod.ReadFrom(make([]byte, 2000))
			if (err == nil) != test.arrive {
				t.Errorf("%d bytes arrived: %v", n, err)
			}
			after := counters()
			if f, b := after.Forged-before.Forged, after.Broken-before.Broken; f != test.forged || b != test.broken {
				t.Errorf("%d forged and %d broken counted, want %d and %d", f, b, test.forged, test.broken)
			}
		})
	}
	a.Reach(t, b)
}

func TestASubnetWithoutLeaseIsUnreachable(t *testing.T) {
	c, _ := cluster(t, 2)
	start(t, c)
	a := c.Hosts[0]
	out, err := a.Pod.Run(t.Context(), "ping", "-nc", "2", "-i", "0.2", "-W", "1", "10.1.200.2")
	if err == nil || !strings.Contains(out, "Net Unreachable") {
		t.Errorf("got %v: %s", err, out)
	}
	// Nor does a packet for the host's own subnet leave by the tunnel.
	netnstest.Run(t, a.NS, "ip", "link", "set", "pod0", "down")
	if _, err := a.NS.Run(t.Context(), "ping", "-nc", "1", "-W", "0.5", "10.1.1.2"); err == nil {
		t.Error("a pod without a link answers")
	}
}
