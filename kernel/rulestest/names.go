package rulestest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

const dnsPort = 53

// answering gives host A the addresses that are on no link, and has somebody
// answer at all of its names.
func answering(t *testing.T, w *world) {
	t.Helper()
	offLink(t, w)
	for _, f := range both() {
		for _, a := range []netip.Addr{f.gatewayA, f.dns} {
			name(t, w.a, a)
		}
	}
}

func offLink(t *testing.T, w *world) {
	t.Helper()
	for _, f := range both() {
		route := "local " + f.dns.String() + " dev lo table local"
		change(t, w.a, "route add "+route, "route del "+route)
	}
}

// name answers UDP packets to port 53 of an address, which need not be one of
// an interface.
func name(t *testing.T, n *netns.NS, a netip.Addr) {
	t.Helper()
	var c net.PacketConn
	listen(t, n, func() (err error) {
		free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			level, option := unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
			if a.Is4() {
				level, option = unix.IPPROTO_IP, unix.IP_FREEBIND
			}
			var err error
			if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
				return e
			}
			return err
		}}
		c, err = free.ListenPacket(t.Context(), "udp", at(a, dnsPort).String())
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:k], from)
		}
	}()
}

// askers are who asks host A for names, by what they are.
func askers(w *world, f addrs) map[string]place {
	return map[string]place{
		"a container, its gateway":              {w.a1, f.gatewayA, ""},
		"a container, the cluster's":            {w.a1, f.dns, ""},
		"a container of another host":           {w.b1, f.gatewayA, ""},
		"this host, the containers' gateway":    {w.a, f.gatewayA, ""},
		"this host, the cluster's":              {w.a, f.dns, ""},
		"somebody outside, if he is answered":   {w.stranger, f.gatewayA, ""},
		"a container twice, from another place": {w.a2, f.dns, ""},
	}
}

// twice asks two questions at once from one socket, as resolvers do, and
// counts the answers.
func twice(t *testing.T, p place) (answers int) {
	t.Helper()
	c := p.dialUDP(t, dnsPort)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	for _, q := range []string{"A", "AAAA"} {
		_, _ = c.Write([]byte(q))
	}
	got := map[string]bool{}
	for b := make([]byte, 512); len(got) < 2; {
		n, err := c.Read(b)
		if err != nil {
			break
		}
		got[string(b[:n])] = true
	}
	return len(got)
}

func (p place) dialUDP(t *testing.T, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := p.from.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(p.addr, port)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tracked lists what host A tracks of DNS.
func tracked(t *testing.T, w *world) string {
	t.Helper()
	var out []string
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(netnstest.Run(t, w.a, "conntrack", "-L", "-f", family, "-p", "udp")) {
			if strings.Contains(line, fmt.Sprintf("dport=%d ", dnsPort)) {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "")
}

// testNames has everybody ask, with all other rules in place.
func testNames(t *testing.T, w *world, s Subject) {
	answering(t, w)
	flt := open(t, w, s)
	r := wanted()
	r.Names, r.OffLink = nil, nil
	flt.sync(r)
	for i, when := range []string{"without names: the test proves nothing", "with names"} {
		for _, f := range both() {
			for who, p := range askers(w, f) {
				flushConnections(t, w)
				if !eventually(func() bool { return twice(t, p) == 2 }) {
					t.Errorf("%s %s, %s: not answered", f.name, who, when)
				}
				if got := tracked(t, w); (got == "") != (i == 1) {
					t.Errorf("%s %s, %s: tracked %q", f.name, who, when, got)
				}
			}
		}
		flt.sync(wanted())
	}
	for name, command := range s.Flushes {
		netnstest.Run(t, w.a, "sh", "-ec", command)
		flt.sync(wanted())
		flushConnections(t, w)
		f := both()[0]
		if !eventually(func() bool { return twice(t, place{w.a1, f.dns, ""}) == 2 }) || tracked(t, w) != "" {
			t.Errorf("after %s: tracked %q", name, tracked(t, w))
		}
	}
}

// refused tells whether somebody is told that a UDP port is closed.
func (p place) refused(t *testing.T, port uint16) bool {
	t.Helper()
	c := p.dialUDP(t, port)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write([]byte("anybody?"))
	_, err := c.Read(make([]byte, 16))
	return errors.Is(err, syscall.ECONNREFUSED)
}

// testClosedNames is about the time when the daemon is being started again.
func testClosedNames(t *testing.T, w *world, s Subject) {
	offLink(t, w)
	flt := open(t, w, s)
	for _, withNames := range []bool{false, true} {
		r := wanted()
		if !withNames {
			r.Names, r.OffLink = nil, nil
		}
		flt.sync(r)
		for _, f := range both() {
			for who, p := range askers(w, f) {
				for port, want := range map[uint16]bool{dnsPort: !withNames, dnsPort + 1: true} {
					switch {
					case want && !eventually(func() bool { return p.refused(t, port) }):
						t.Errorf("%s %s, names %v: is not told that port %d is closed", f.name, who, withNames, port)
					case !want && p.refused(t, port):
						t.Errorf("%s %s, names %v: is told that port %d is closed", f.name, who, withNames, port)
					}
				}
			}
			if outside := (place{w.a1, f.a, ""}); !eventually(func() bool { return outside.refused(t, dnsPort) }) {
				t.Errorf("%s, names %v: an address that is none of them does not tell", f.name, withNames)
			}
		}
	}
}

// testGuardedNames guards a port that names have: nobody means that.
func testGuardedNames(t *testing.T, w *world, s Subject) {
	offLink(t, w)
	listenTCP(t, w.a, dnsPort)
	flt := open(t, w, s)
	r := wanted()
	for _, f := range both() {
		r.Guard = append(r.Guard, at(f.a, dnsPort))
	}
	flt.sync(r)
	for _, f := range both() {
		for who, p := range map[string]place{"its gateway": {w.a1, f.gatewayA, ""}, "the cluster's": {w.a1, f.dns, ""}} {
			if !eventually(func() bool { return connects(t, p.from, p.to(dnsPort)) }) {
				t.Errorf("%s: a container does not reach %s by TCP", f.name, who)
			}
		}
		if connects(t, w.a1, at(f.a, dnsPort).String()) {
			t.Errorf("%s: a guarded port of an address that is no name is reached", f.name)
		}
	}
}
