package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/miekg/dns"
)

// bridge is a host's bridge with containers on it, each in a namespace.
type bridge struct {
	host       *netns.NS
	containers []*netns.NS
}

const gateway = "10.9.0.1"

// newBridge makes a host and n containers, 10.9.0.2 and fd09::2 and on.
func newBridge(t testing.TB, n int) *bridge {
	t.Helper()
	b := &bridge{host: netnstest.New(t)}
	ip(t, b.host, "link add br0 type bridge")
	ip(t, b.host, "link set br0 up")
	ip(t, b.host, "addr add "+gateway+"/24 dev br0")
	ip(t, b.host, "addr add fd09::1/64 dev br0 nodad")
	for i := range n {
		c := netnstest.New(t)
		ip(t, b.host, fmt.Sprintf("link add c%d type veth peer name eth0 netns %s", i, c.Path()))
		ip(t, b.host, fmt.Sprintf("link set c%d master br0 up", i))
		ip(t, c, "link set eth0 up")
		ip(t, c, fmt.Sprintf("addr add 10.9.0.%d/24 dev eth0", 2+i))
		ip(t, c, fmt.Sprintf("addr add fd09::%d/64 dev eth0 nodad", 2+i))
		b.containers = append(b.containers, c)
	}
	return b
}

func ip(t testing.TB, n *netns.NS, args string) {
	t.Helper()
	netnstest.Run(t, n, "ip", strings.Fields(args)...)
}

// within calls f in a namespace.
func within(t testing.TB, n *netns.NS, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

func TestContainersAreAnsweredAndStrangersAreNot(t *testing.T) {
	b := newBridge(t, 2)
	view := View{
		Name:    "default",
		Addrs:   []netip.Addr{netip.MustParseAddr(gateway), netip.MustParseAddr("fd09::1"), netip.MustParseAddr("10.0.0.10")},
		Sources: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32"), netip.MustParsePrefix("fd09::2/128")},
		Zone:    names(t),
		Listen:  b.host.Do,
	}
	ip(t, b.containers[0], "route add default via "+gateway)
	s := serve(t, Options{Port: 53}, view)
	msg := pack(t, ask("db.default.cluster.local.", dns.TypeA))
	const want = "NOERROR aa nora\n= db.default.cluster.local. A 10.1.2.2"

	inside := func(at string) {
		t.Helper()
		within(t, b.containers[0], func() error {
			eventually(t, func() error {
				if _, err := askTCP(netip.MustParseAddrPort(at), msg); err != nil {
					return err
				}
				_, err := askUDP(netip.MustParseAddrPort(at), msg)
				return err
			})
			exchange(t, "udp", netip.MustParseAddrPort(at), msg, want)
			exchange(t, "tcp", netip.MustParseAddrPort(at), msg, want)
			return nil
		})
	}
	inside(gateway + ":53")
	inside("[fd09::1]:53")
	ip(t, b.host, "route add local 10.0.0.10 dev lo table local") // the cluster's address comes later than its socket
	inside("10.0.0.10:53")

	within(t, b.host, func() error {
		exchange(t, "udp", netip.MustParseAddrPort(gateway+":53"), msg, want)
		exchange(t, "tcp", netip.MustParseAddrPort("10.0.0.10:53"), msg, want)
		return nil
	})
	within(t, b.containers[1], func() error {
		for _, at := range []string{gateway + ":53", "[fd09::1]:53"} {
			if got, err := askUDPFor(netip.MustParseAddrPort(at), msg, 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a stranger gets %x, %v at %s over UDP; want silence", got, err, at)
			}
			if got, err := askTCP(netip.MustParseAddrPort(at), msg); err == nil {
				t.Errorf("a stranger gets %x at %s over TCP", got, at)
			}
		}
		return nil
	})
	if n := dropped(s, "source"); n != 4 {
		t.Errorf("%d dropped, want 4", n)
	}
}

func TestConnectionsOfOneSourceAreBounded(t *testing.T) {
	b := newBridge(t, 2)
	at := netip.MustParseAddrPort(gateway + ":53")
	serve(t, Options{Port: 53, ConnsEach: 5}, View{
		Name: "default", Addrs: []netip.Addr{at.Addr()}, Sources: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Zone: names(t), Listen: b.host.Do,
	})
	msg := pack(t, ask("db.default.cluster.local.", dns.TypeA))
	var open []net.Conn
	within(t, b.containers[0], func() error {
		eventually(t, func() error {
			_, err := askTCP(at, msg)
			return err
		})
		for range 20 {
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				continue
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Write(framed(msg)); err == nil {
				if _, err := readFramed(c); err == nil {
					open = append(open, c)
				}
			}
		}
		return nil
	})
	if len(open) < 4 || len(open) > 5 { // the first may not be gone yet
		t.Errorf("%d connections, want 5", len(open))
	}
	within(t, b.containers[1], func() error {
		_, err := askTCP(at, msg)
		return err
	})
}

func TestRateOverTCPIsKeptByWaiting(t *testing.T) {
	b := newBridge(t, 1)
	at := netip.MustParseAddrPort(gateway + ":53")
	serve(t, Options{Port: 53, Rate: 100, Burst: 10}, View{
		Name: "default", Addrs: []netip.Addr{at.Addr()}, Sources: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Zone: names(t), Listen: b.host.Do,
	})
	msg := pack(t, ask("db.default.cluster.local.", dns.TypeA))
	within(t, b.containers[0], func() error {
		eventually(t, func() error {
			_, err := askTCP(at, msg)
			return err
		})
		c := dialTCP(t, at)
		start := time.Now()
		for range 30 {
			if _, err := c.Write(framed(msg)); err != nil {
				return err
			}
		}
		for range 30 {
			if _, err := readFramed(c); err != nil {
				return err
			}
		}
		if took := time.Since(start); took < 150*time.Millisecond {
			t.Errorf("30 queries took %v at 100 a second", took)
		}
		return nil
	})
}
