package plugin

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func killAfter(i int) time.Duration { return time.Duration(i%13) * 300 * time.Microsecond }

// reaches tells whether n can ping with this source address.
func reaches(t *testing.T, n *netns.NS, from, to string) bool {
	_, err := n.Run(t.Context(), "ping", "-c1", "-W1", "-I", from, to)
	return err == nil
}

func TestContainerCannotSendFromWhatIsNotItsOwn(t *testing.T) {
	h := newHost(t)
	evil, victim := netnstest.New(t), netnstest.New(t)
	c := h.conf()
	h.add("evil", evil, c)
	h.add("victim", victim, c)
	run := func(args ...string) { netnstest.Run(t, evil, args[0], args[1:]...) }
	dropped := func() string {
		out := h.run("nft", "list", "chain", "bridge", "flanneld-cni", "guard")
		return strings.TrimSpace(out[strings.Index(out, "counter"):])
	}
	if !reaches(t, evil, "10.1.2.2", "10.1.2.3") || !reaches(t, evil, "fd00:1:2::2", "fd00:1:2::3") || !reaches(t, evil, "10.1.2.2", "10.1.2.1") {
		t.Fatal("its own addresses do not work")
	}
	run("ip", "addr", "add", "10.1.2.77/24", "dev", "eth0")
	run("ip", "addr", "add", "fd00:1:2::77/64", "dev", "eth0", "nodad")
	for from, to := range map[string]string{"10.1.2.77": "10.1.2.3", "fd00:1:2::77": "fd00:1:2::3"} {
		before := dropped()
		if reaches(t, evil, from, to) {
			t.Errorf("%s reached %s", from, to)
		}
		if dropped() == before {
			t.Errorf("nothing from %s was dropped", from)
		}
	}
	if reaches(t, evil, "10.1.2.77", "10.1.2.1") {
		t.Error("a foreign address reached the host")
	}
	// Another MAC.
	run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:66")
	if reaches(t, evil, "10.1.2.2", "10.1.2.3") {
		t.Error("a foreign MAC passes")
	}
	run("ip", "link", "set", "eth0", "address", "0a:58:0a:01:02:02")
	if !reaches(t, evil, "10.1.2.2", "10.1.2.3") {
		t.Error("its own MAC does not pass any more")
	}
	if !reaches(t, victim, "10.1.2.3", "10.1.2.1") {
		t.Error("the victim is cut off")
	}
}

func TestGuardCanBeSwitchedOff(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf().with(conf{"macspoofchk": false, "ipMasq": false})
	h.add("a", n, c)
	if rules := h.run("nft", "list", "ruleset"); rules != "" {
		t.Errorf("rules: %s", rules)
	}
	netnstest.Run(t, n, "ip", "addr", "add", "10.1.2.77/24", "dev", "eth0")
	if !reaches(t, n, "10.1.2.77", "10.1.2.1") {
		t.Error("it guards")
	}
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
}

// TestWhatLeavesTheNetworkBearsTheHostsAddress has a neighbour of the host
// that knows no way to the containers.
func TestWhatLeavesTheNetworkBearsTheHostsAddress(t *testing.T) {
	for name, filter := range filters() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.filter = filter
			masquerades(t, h)
		})
	}
}

func masquerades(t *testing.T, h *host) {
	outside, a, b := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	h.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside.Path())
	for _, x := range []string{"192.168.9.1/24", "fd09::1/64"} {
		h.run("ip", "addr", "add", x, "dev", "up0", "nodad")
	}
	h.run("ip", "link", "set", "up0", "up")
	for _, x := range []string{"192.168.9.2/24", "fd09::2/64"} {
		netnstest.Run(t, outside, "ip", "addr", "add", x, "dev", "eth0", "nodad")
	}
	netnstest.Run(t, outside, "ip", "link", "set", "eth0", "up")
	for _, to := range []string{"192.168.9.2", "fd09::2"} { // until the wire works
		for i := 0; !reaches(t, h.ns, "up0", to) && i < 5; i++ {
			continue
		}
	}
	c := h.conf()
	h.add("a", a, c)
	h.add("b", b, c.with(conf{"name": "plain", "ipMasq": false, "ipam": h.ipam(conf{"ranges": []any{[]any{conf{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.100"}}}})}))
	for from, to := range map[string]string{"10.1.2.2": "192.168.9.2", "fd00:1:2::2": "fd09::2"} {
		if !reaches(t, a, from, to) {
			t.Errorf("%s does not reach %s", from, to)
		}
	}
	if reaches(t, b, "10.1.2.100", "192.168.9.2") {
		t.Error("a network without ipMasq is masqueraded")
	}
	if !reaches(t, b, "10.1.2.100", "10.1.2.2") {
		t.Error("containers do not reach each other")
	}
	// After a DEL without a namespace the address is not masqueraded any more.
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.ok(request{command: "DEL", id: "b", conf: c.with(conf{"name": "plain"})})
	h.run("ip", "link", "del", "up0")
	h.clean()
}

// BenchmarkRoundTrip is a datagram from one container to another and back.
func BenchmarkRoundTrip(b *testing.B) {
	for _, guard := range []bool{false, true, false, true} {
		b.Run(fmt.Sprintf("guard=%t", guard), func(b *testing.B) {
			h := newHost(b)
			c := h.conf().with(conf{"macspoofchk": guard, "ipMasq": false})
			var conns [2]*net.UDPConn
			var addrs [2]*net.UDPAddr
			for i := range conns {
				n := netnstest.New(b)
				r := h.add(fmtID(i), n, c)
				if err := n.Do(func() (err error) {
					conns[i], err = net.ListenUDP("udp4", &net.UDPAddr{IP: r.IPs[0].Address.IP})
					return err
				}); err != nil {
					b.Fatal(err)
				}
				defer conns[i].Close()
				addrs[i] = conns[i].LocalAddr().(*net.UDPAddr)
			}
			buf := make([]byte, 64)
			for b.Loop() {
				for i := range conns { // there, and back
					if _, err := conns[i].WriteToUDP(buf, addrs[1-i]); err != nil {
						b.Fatal(err)
					}
					if _, _, err := conns[1-i].ReadFromUDP(buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
