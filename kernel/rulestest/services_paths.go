package rulestest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

func testVirtual(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(2, slots(f.b1, 1)...)...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		expectCall(t, "to a container of this host", w.a1, at(f.virtual(1), port), server("a2", 0), f.a1)
		expectCall(t, "to a container of another host", w.a1, at(f.virtual(2), port), server("b1", 1), f.a1)
		expectCall(t, "from another container", w.a2, at(f.virtual(2), port), server("b1", 1), f.a2)
	}
}

// testHairpin: an answer to its own address would never leave the container.
func testHairpin(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a1, 0)...)...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort, Node: true, Slots: slots(f.a1, 1)})...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		expectCall(t, "to itself", w.a1, at(f.virtual(1), port), server("a1", 0), f.gatewayA)
		expectCall(t, "to itself by a node port", w.a1, at(f.a, nodePort), server("a1", 1), f.gatewayA)
		expectCall(t, "from another container", w.a2, at(f.virtual(1), port), server("a1", 0), f.a2)
	}
}

func testHostVirtual(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(2, slots(f.b1, 1)...)...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		expectCall(t, "to a container of this host", w.a, at(f.virtual(1), port), server("a2", 0), f.a)
		expectCall(t, "to a container of another host", w.a, at(f.virtual(2), port), server("b1", 1), f.tunnelA)
	}
}

// testPorts has services that differ in port or protocol alone.
func testPorts(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts,
			&rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_TCP, Port: 80, Slots: slots(f.b1, 0)},
			&rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_TCP, Port: 443, Slots: slots(f.b1, 1)},
			&rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_TCP, Port: firstServer, Slots: slots(f.b1, 0)},
			&rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_UDP, Port: 80, Slots: slots(f.a2, 2)},
			&rules.Frontend{Addr: f.virtual(2), Protocol: unix.IPPROTO_TCP, Port: 80, Slots: slots(f.a2, 3)},
			&rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_TCP, Port: 65535, Slots: slots(f.a2, 4)},
		)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		for to, want := range map[string]string{
			at(f.virtual(1), 80).String() + "/tcp":          server("b1", 0),
			at(f.virtual(1), 443).String() + "/tcp":         server("b1", 1),
			at(f.virtual(1), firstServer).String() + "/tcp": server("b1", 0),
			at(f.virtual(1), 80).String() + "/udp":          server("a2", 2),
			at(f.virtual(2), 80).String() + "/tcp":          server("a2", 3),
			at(f.virtual(1), 65535).String() + "/tcp":       server("a2", 4),
		} {
			addr, network := netip.MustParseAddrPort(to[:len(to)-4]), to[len(to)-3:]
			if who, _, err := call(w.a1, network, netip.Addr{}, addr); err != nil || who != want {
				t.Errorf("%s: %q answers (%v), want %q", to, who, err, want)
			}
		}
	}
}

func testBothHosts(t *testing.T, w *world, s ServicesSubject) {
	a, b := openBalancer(t, w, w.a, s), openBalancer(t, w, w.b, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(2, slots(f.b1, 0)...)...)
	}
	a.sync(servicesOn(fronts))
	b.sync(servicesOnB(fronts))
	for _, f := range both() {
		expectCall(t, "from B to A", w.b1, at(f.virtual(1), port), server("a2", 0), f.b1)
		expectCall(t, "from A to B", w.a1, at(f.virtual(2), port), server("b1", 0), f.a1)
		expectCall(t, "host B to A", w.b, at(f.virtual(1), port), server("a2", 0), f.tunnelB)
	}
}

// testRefused is about what nobody answers: without rules, it would hang.
func testRefused(t *testing.T, w *world, s ServicesSubject) {
	offLink(t, w)
	serveTCP(t, w.a, "host", ":8053")
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(2)...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		for who, n := range map[string]place{"a container": {w.a1, f.a1, ""}, "the host": {w.a, f.a, ""}} {
			expectRefused(t, who+" without endpoints", n.from, at(f.virtual(2), port))
			expectRefused(t, who+" at another port", n.from, at(f.virtual(1), port+1))
			expectRefused(t, who+" at an unknown address", n.from, at(f.virtual(9), port))
			if got, _, err := call(n.from, "tcp", netip.Addr{}, at(f.dns, 8053)); err != nil || got != "host" {
				t.Errorf("%s %s at the host's own address among them: %q answers (%v)", f.name, who, got, err)
			}
		}
	}
}

// testHosts has other hosts' own addresses among virtual ones.
func testHosts(t *testing.T, w *world, s ServicesSubject) {
	const own = 9091
	lines, undo := "", ""
	for _, f := range both() {
		for i := range 2 {
			a := f.virtual(100 + i)
			line := fmt.Sprintf("%s/%d dev eth0", a, a.BitLen())
			lines, undo = lines+"addr add "+line+" nodad\n", undo+"addr del "+line+"\n"
		}
	}
	change(t, w.stranger, lines, undo)
	serveTCP(t, w.stranger, "theirs", fmt.Sprintf(":%d", own))
	datagrams := Listen(t, w.stranger, own)
	b := openBalancer(t, w, w.a, s)
	reach := func(when string, which ...int) rules.Services {
		t.Helper()
		var fronts []*rules.Frontend
		for _, f := range both() {
			fronts = append(fronts, f.virtually(1, slots(f.b1, 0)...)...)
		}
		want := servicesOn(fronts)
		for _, f := range both() {
			for _, i := range which {
				want.Hosts = append(want.Hosts, f.virtual(100+i))
			}
		}
		b.sync(want)
		for _, f := range both() {
			for i := range 2 {
				to := at(f.virtual(100+i), own)
				if !slices.Contains(which, i) {
					expectRefused(t, when, w.a1, to)
					expectRefused(t, when, w.a, to)
					continue
				}
				for _, from := range []*netns.NS{w.a1, w.a} {
					if who, _, err := call(from, "tcp", netip.Addr{}, to); err != nil || who != "theirs" {
						t.Errorf("%s: %v: %q answers (%v)", when, to, who, err)
					}
					c, err := connect(from, "udp", netip.Addr{}, to)
					if err != nil {
						t.Fatal(err)
					}
					payload := fmt.Sprint(when, " ", c.LocalAddr())
					_, err = c.Write([]byte(payload))
					if c.Close(); err != nil || !datagrams.Gets(payload)[payload] {
						t.Errorf("%s: %v gets no datagrams (%v)", when, to, err)
					}
				}
			}
			expectCall(t, when, w.a1, at(f.virtual(1), port), server("b1", 0), f.a1)
			expectRefused(t, when+", an unknown address", w.a1, at(f.virtual(9), port))
		}
		return want
	}
	reach("no hosts")
	reach("a host came", 0)
	want := reach("both", 0, 1)
	again := openBalancer(t, w, w.a, s)
	writes, wrote := CountWrites(t, w.a), s.writes(b)
	b.sync(want)
	again.sync(want)
	if n := writes(); n != 0 || s.writes(b) > wrote || s.writes(again) > 0 {
		t.Errorf("%d notifications of nf_tables, want none, and no writes of programs", n)
	}
	b.unrepaired("its own changes")
	reach("one went", 1)
}

// testListed has an endpoint that is no container: it answers whom it knows.
func testListed(t *testing.T, w *world, s ServicesSubject) {
	const listed = 9090
	serve(t, w.stranger, "listed", listed)
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		slot := at(f.stranger, listed)
		fronts = append(fronts, f.virtually(1, slot)...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort, Node: true, Slots: []netip.AddrPort{slot}})...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		expectCall(t, "a container", w.a1, at(f.virtual(1), port), "listed:9090", f.a1)
		expectCall(t, "the host", w.a, at(f.virtual(1), port), "listed:9090", f.a)
		expectCall(t, "another host by a node port", w.b, at(f.a, nodePort), "listed:9090", f.a)
		expectCall(t, "itself by a node port", w.stranger, at(f.a, nodePort), "listed:9090", f.a)
	}
}

// testHostSources has the host send with addresses of its own that nobody
// outside of the pod network knows a way to: what the route says.
func testHostSources(t *testing.T, w *world, s ServicesSubject) {
	const listed = 9092
	serve(t, w.stranger, "listed", listed)
	serve(t, w.a, "host", listed)
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, at(f.stranger, listed))...)
		fronts = append(fronts, f.virtually(2, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(3, slots(f.b1, 1)...)...)
		fronts = append(fronts, f.virtually(4, at(f.a, listed))...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		for _, own := range []netip.Addr{f.gatewayA, f.tunnelA} {
			line := "route replace " + f.services().String() + " dev eth0"
			change(t, w.a, line+" src "+own.String(), line)
			expectCall(t, "to a listed endpoint", w.a, at(f.virtual(1), port), "listed:9092", f.a)
			expectCall(t, "to a container of this host", w.a, at(f.virtual(2), port), server("a2", 0), own)
			expectCall(t, "to a container of another host", w.a, at(f.virtual(3), port), server("b1", 1), own)
			if who, _, err := call(w.a, "tcp", netip.Addr{}, at(f.virtual(4), port)); err != nil || who != "host:9092" {
				t.Errorf("%v to the host's own address: %q answers (%v)", own, who, err)
			}
		}
		expectCall(t, "a container to a listed endpoint", w.a1, at(f.virtual(1), port), "listed:9092", f.a1)
	}
}

// testSCTP sends the first packet of an association (RFC 9260, 3.3.2) from a
// raw socket, since kernels may lack sockets of that protocol; what has a
// wrong checksum does not get far.
func testSCTP(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, &rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_SCTP, Port: port, Slots: slots(f.b1, 0)})
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		at := rawSCTP(t, place{w.b1, f.b1, ""})
		from := rawSCTP(t, place{w.a1, f.a1, ""})
		source := uint16(1024)
		if !eventually(func() bool {
			source++
			if _, err := from.WriteTo(initChunk(source, port), &net.IPAddr{IP: f.virtual(1).AsSlice()}); err != nil {
				t.Fatal(err)
			}
			return arrives(at, initChunk(source, firstServer))
		}) {
			t.Errorf("%s: no association begins", f.name)
		}
	}
}

func rawSCTP(t *testing.T, p place) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := p.from.Do(func() (err error) {
		c, err = net.ListenPacket(rawNetwork(unix.IPPROTO_SCTP, p.addr.Is4()), "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// arrives tells whether this packet comes within the patience of a test.
func arrives(c net.PacketConn, want []byte) bool {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for b := make([]byte, 512); ; {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return false
		}
		if bytes.Equal(b[:n], want) {
			return true
		}
	}
}

// initChunk is an SCTP packet that begins an association.
func initChunk(source, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, to)
	b = append(b, make([]byte, 8)...)  // verification tag 0, checksum
	b = append(b, 1, 0, 0, 20)         // INIT
	b = append(b, 0, 0, 0, 1)          // initiate tag
	b = append(b, 0, 1, 0, 0)          // receiver window
	b = append(b, 0, 1, 0, 1, 0, 0, 0) // streams, TSN
	b = append(b, 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// testOneFamily: what nobody asked for is left alone.
func testOneFamily(t *testing.T, w *world, s ServicesSubject) {
	for i, f := range both() {
		t.Run(f.name, func(t *testing.T) {
			b := openBalancer(t, w, w.a, s)
			b.sync(rules.Services{
				Networks: []netip.Prefix{f.services()}, Pods: []netip.Prefix{f.network}, Subnets: []netip.Prefix{f.subnetA},
				Frontends: f.virtually(1, slots(f.b1, 0)...), Local: []netip.Addr{f.a1, f.a2},
			})
			expectCall(t, "to a container of another host", w.a1, at(f.virtual(1), port), server("b1", 0), f.a1)
			expectRefused(t, "an unknown address", w.a1, at(f.virtual(2), port))
			o := both()[1-i]
			who, _, err := call(w.a1, "tcp", netip.Addr{}, at(o.b1, firstServer))
			if err != nil || who != server("b1", 0) {
				t.Errorf("%s: %q answers (%v)", fmt.Sprint(o.b1), who, err)
			}
		})
	}
}
