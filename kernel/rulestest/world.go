package rulestest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// world is two hosts with tunnels and containers, and a stranger, on one wire.
// The filter under test works on host A.
type world struct {
	a, b     *netns.NS // hosts
	a1, a2   *netns.NS // containers of A
	b1       *netns.NS // container of B
	stranger *netns.NS // on the underlay, also somebody in the world outside
}

const (
	tunnelPort = 8472
	echoPort   = 7
	macA       = "0a:00:00:00:00:01"
	macA6      = "0a:00:00:00:06:01"
)

// addrs of one family.
type addrs struct {
	name                 string
	a, b, stranger       netip.Addr // underlay
	tunnelA, tunnelB     netip.Addr
	gatewayA, a1, a2, b1 netip.Addr
	third                netip.Addr // a pod of a third host, and that host
	thirdHost, secondA   netip.Addr // a second underlay address of A
	network              netip.Prefix
	subnetA, subnetB     netip.Prefix
	multicast            netip.Addr
	dns                  netip.Addr // of every host, on no link
	link, mac            string
}

func both() []addrs {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return []addrs{{
		name: "ipv4", a: ip("192.168.77.1"), b: ip("192.168.77.2"), stranger: ip("192.168.77.9"),
		tunnelA: ip("10.1.1.0"), tunnelB: ip("10.1.2.0"), gatewayA: ip("10.1.1.1"), a1: ip("10.1.1.2"), a2: ip("10.1.1.3"), b1: ip("10.1.2.2"),
		network: prefix("10.1.0.0/16"), subnetA: prefix("10.1.1.0/24"), subnetB: prefix("10.1.2.0/24"), third: ip("10.1.3.2"), thirdHost: ip("192.168.77.3"), secondA: ip("192.168.77.101"),
		multicast: ip("239.1.2.3"), dns: ip("10.0.0.10"), link: "flannel.1", mac: macA,
	}, {
		name: "ipv6", a: ip("fd77::1"), b: ip("fd77::2"), stranger: ip("fd77::9"),
		tunnelA: ip("fd00:1:0:1::"), tunnelB: ip("fd00:1:0:2::"), gatewayA: ip("fd00:1:0:1::1"), a1: ip("fd00:1:0:1::2"), a2: ip("fd00:1:0:1::3"), b1: ip("fd00:1:0:2::2"),
		network: prefix("fd00:1::/48"), subnetA: prefix("fd00:1:0:1::/64"), subnetB: prefix("fd00:1:0:2::/64"), third: ip("fd00:1:0:3::2"), thirdHost: ip("fd77::3"), secondA: ip("fd77::101"),
		multicast: ip("ff05::1234"), dns: ip("fd00:53::a"), link: "flannel-v6.1", mac: macA6,
	}}
}

// sysctls make a namespace's behaviour independent of the machine's.
const sysctls = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"

func newWorld(t *testing.T) *world {
	t.Helper()
	wire := netnstest.NewNamed(t)
	w := &world{a: netnstest.NewNamed(t), b: netnstest.NewNamed(t), a1: netnstest.NewNamed(t), a2: netnstest.NewNamed(t), b1: netnstest.NewNamed(t), stranger: netnstest.NewNamed(t)}
	for _, n := range []*netns.NS{w.a, w.b, w.stranger} {
		netnstest.Run(t, n, "sysctl", append([]string{"-qw"}, strings.Fields(sysctls)...)...)
	}
	netnstest.Run(t, wire, "ip", "link", "add", "wire", "up", "type", "bridge")
	w.cable(t, wire, "wire", w.a, "192.168.77.1/24", "fd77::1/64")
	w.cable(t, wire, "wire", w.b, "192.168.77.2/24", "fd77::2/64")
	w.cable(t, wire, "wire", w.stranger, "192.168.77.9/24", "fd77::9/64")
	w.host(t, w.a, 1, 2)
	w.host(t, w.b, 2, 1)
	w.container(t, w.a, w.a1, 1, 2)
	w.container(t, w.a, w.a2, 1, 3)
	w.container(t, w.b, w.b1, 2, 2)
	batch(t, w.stranger, `
route add 10.1.1.0/24 via 192.168.77.1
route add 10.1.2.0/24 via 192.168.77.2
-6 route add fd00:1:0:1::/64 via fd77::1
-6 route add fd00:1:0:2::/64 via fd77::2`)
	for _, n := range []*netns.NS{w.a, w.b, w.a1, w.a2, w.b1, w.stranger} {
		echo(t, n, echoPort)
	}
	return w
}

// cable gives n an eth0 whose other end is a port of the bridge in hub.
func (w *world) cable(t *testing.T, hub *netns.NS, bridge string, n *netns.NS, cidrs ...string) {
	t.Helper()
	name := filepath.Base(n.Path())
	port := "p" + name[len(name)-6:]
	port = strings.ReplaceAll(port, "-", "x")
	batch(t, hub, fmt.Sprintf("link add %s master %s up type veth peer name eth0 netns %s", port, bridge, name))
	lines := "link set eth0 up"
	for _, c := range cidrs {
		lines += "\naddr add " + c + " dev eth0"
		if strings.Contains(c, ":") {
			lines += " nodad"
		}
	}
	batch(t, n, lines)
}

// host makes tunnels and a bridge as a driver and a CNI plugin would; i is
// this host's number, peer the other's. The bridge keeps its address whatever
// ports come and go: containers remember it.
func (w *world) host(t *testing.T, n *netns.NS, i, peer int) {
	t.Helper()
	r := strings.NewReplacer("I", fmt.Sprint(i), "P", fmt.Sprint(peer))
	batch(t, n, r.Replace(`
link add cni0 address 0a:00:00:00:c0:0I up type bridge
addr add 10.1.I.1/24 dev cni0
addr add fd00:1:0:I::1/64 dev cni0 nodad
link add flannel.1 address 0a:00:00:00:00:0I type vxlan id 1 local 192.168.77.I dev eth0 dstport 8472 nolearning
link set flannel.1 up
addr add 10.1.I.0/32 dev flannel.1
route add 10.1.3.0/24 via 10.1.P.0 dev flannel.1 onlink
route add 10.1.P.0/24 via 10.1.P.0 dev flannel.1 onlink
neigh add 10.1.P.0 lladdr 0a:00:00:00:00:0P dev flannel.1 nud permanent
link add flannel-v6.1 address 0a:00:00:00:06:0I type vxlan id 1 local fd77::I dev eth0 dstport 8472 nolearning
link set flannel-v6.1 up
addr add fd00:1:0:I::/128 dev flannel-v6.1 nodad
-6 route add fd00:1:0:3::/64 via fd00:1:0:P:: dev flannel-v6.1 onlink
-6 route add fd00:1:0:P::/64 via fd00:1:0:P:: dev flannel-v6.1 onlink
neigh add fd00:1:0:P:: lladdr 0a:00:00:00:06:0P dev flannel-v6.1 nud permanent`))
	netnstest.Run(t, n, "bridge", "fdb", "append", r.Replace("0a:00:00:00:00:0P"), "dev", "flannel.1", "dst", r.Replace("192.168.77.P"), "self", "permanent")
	netnstest.Run(t, n, "bridge", "fdb", "append", r.Replace("0a:00:00:00:06:0P"), "dev", "flannel-v6.1", "dst", r.Replace("fd77::P"), "self", "permanent")
}

func (w *world) container(t *testing.T, host, n *netns.NS, i, addr int) {
	t.Helper()
	w.cable(t, host, "cni0", n, fmt.Sprintf("10.1.%d.%d/24", i, addr), fmt.Sprintf("fd00:1:0:%d::%d/64", i, addr))
	batch(t, n, fmt.Sprintf("route add default via 10.1.%d.1\n-6 route add default via fd00:1:0:%d::1", i, i))
}

// outsider is a container on a bridge of host A, with addresses that are none
// of the pod network's.
func (w *world) outsider(t *testing.T, bridge string, i int) *netns.NS {
	t.Helper()
	n := netnstest.NewNamed(t)
	r := strings.NewReplacer("I", fmt.Sprint(i), "BR", bridge)
	on := func(n *netns.NS, do, undo string) { change(t, n, r.Replace(do), r.Replace(undo)) }
	if bridge != "cni0" {
		on(w.a, "link add BR up type bridge", "link del BR")
	}
	on(w.a, "addr add 172.30.I.1/24 dev BR\naddr add fd30:I::1/64 dev BR nodad", "addr del 172.30.I.1/24 dev BR\naddr del fd30:I::1/64 dev BR")
	on(w.stranger, "route add 172.30.I.0/24 via 192.168.77.1\n-6 route add fd30:I::/64 via fd77::1", "route del 172.30.I.0/24\n-6 route del fd30:I::/64")
	w.cable(t, w.a, bridge, n, fmt.Sprintf("172.30.%d.2/24", i), fmt.Sprintf("fd30:%d::2/64", i))
	batch(t, n, fmt.Sprintf("route add default via 172.30.%d.1\n-6 route add default via fd30:%d::1", i, i))
	return n
}

// change runs lines of ip commands now and others when the test ends.
func change(t *testing.T, n *netns.NS, do, undo string) {
	t.Helper()
	batch(t, n, do)
	t.Cleanup(func() {
		for line := range strings.Lines(undo) {
			if _, err := n.Run(context.WithoutCancel(t.Context()), "ip", strings.Fields(line)...); err != nil {
				t.Error(err)
			}
		}
	})
}

// batch runs lines of ip commands.
func batch(t *testing.T, n *netns.NS, lines string) {
	t.Helper()
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		netnstest.Run(t, n, "ip", strings.Fields(line)...)
	}
}

// echo answers UDP packets with the address that they came from.
func echo(t *testing.T, n *netns.NS, port int) {
	t.Helper()
	c := listenUDP(t, n, port)
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	}()
}

func listenUDP(t *testing.T, n *netns.NS, port int) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	listen(t, n, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// listen opens a port in a namespace. A program that another test is just
// starting holds every socket of this process, those closed meanwhile too,
// until it execs.
func listen(t *testing.T, n *netns.NS, open func() error) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := n.Do(open)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// patience is how long an answer may take. Everything is one machine.
const patience = 250 * time.Millisecond

// eventually gives what must happen on a busy machine some tries.
func eventually(happens func() bool) bool {
	for range 5 {
		if happens() {
			return true
		}
	}
	return false
}

// seenAs sends from a namespace (from the address src, if valid) and returns
// the source that the receiver saw; "" if no answer came.
func seenAs(t *testing.T, n *netns.NS, src netip.Addr, to netip.AddrPort) string {
	t.Helper()
	for range 5 { // the first packet may wait for a neighbour
		if s := ask(t, n, src, to); s != "" {
			return s
		}
	}
	return ""
}

func ask(t *testing.T, n *netns.NS, src netip.Addr, to netip.AddrPort) string {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		var local *net.UDPAddr
		if src.IsValid() {
			local = &net.UDPAddr{IP: src.AsSlice()}
		}
		c, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("who am I"))
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 128)
	k, _ := c.Read(b)
	return string(b[:k])
}

// send sends one packet, broadcast too, from the address src if valid.
func send(t *testing.T, n *netns.NS, src netip.Addr, to netip.AddrPort, payload []byte) {
	t.Helper()
	err := n.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) }); e != nil {
				return e
			}
			return err
		}}
		if src.IsValid() {
			d.LocalAddr = &net.UDPAddr{IP: src.AsSlice()}
		}
		c, err := d.DialContext(t.Context(), "udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(payload)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// connects tells whether a TCP connection comes about.
func connects(t *testing.T, n *netns.NS, to string) bool {
	t.Helper()
	var ok bool
	err := n.Do(func() error {
		d := net.Dialer{Timeout: patience}
		c, err := d.DialContext(t.Context(), "tcp", to)
		if ok = err == nil; ok {
			return c.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func listenTCP(t *testing.T, n *netns.NS, port int) {
	t.Helper()
	var l net.Listener
	listen(t, n, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}
