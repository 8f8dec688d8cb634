package rulestest

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

const victimPort = 5555

// attack is a forged tunnel packet.
type attack struct {
	from  *netns.NS
	to    netip.Addr // of host A
	inner netip.Addr // source inside
}

func attacks(w *world, f addrs) map[string]attack {
	out := map[string]attack{
		"a stranger on the underlay":                                 {w.stranger, f.a, f.b1},
		"a stranger on the underlay, to the gateway address":         {w.stranger, f.gatewayA, f.b1},
		"a container of this host, to its gateway":                   {w.a1, f.gatewayA, f.b1},
		"a container of this host, to the underlay address":          {w.a1, f.a, f.b1},
		"a container of a peer as somebody outside":                  {w.b1, f.a, f.stranger},
		"a container of a peer as a container of this host":          {w.b1, f.a, f.a1},
		"a container of a peer through the tunnel":                   {w.b1, f.gatewayA, f.b1},
		"a container of a peer, as this host's own underlay address": {w.b1, f.a, f.b},
		"a container of a peer, to another address of this host":     {w.b1, f.secondA, f.b1},
	}
	if f.a.Is4() {
		out["a stranger, by broadcast"] = attack{w.stranger, netip.MustParseAddr("192.168.77.255"), f.b1}
	}
	return out
}

// works tells whether the victim, a2, gets the inner packet.
func (a attack) works(t *testing.T, f addrs, v *Victim, name string) bool {
	t.Helper()
	return a.worksAs(t, netip.Addr{}, f, v, name)
}

// worksAs forges the outer source too, if outer is valid.
func (a attack) worksAs(t *testing.T, outer netip.Addr, f addrs, v *Victim, name string) bool {
	t.Helper()
	mac, err := net.ParseMAC(f.mac)
	if err != nil {
		t.Fatal(err)
	}
	payload := fmt.Sprintf("%s %d", name, time.Now().UnixNano())
	send(t, a.from, outer, at(a.to, tunnelPort), VXLAN(1, mac, UDP(at(a.inner, 1234), at(f.a2, victimPort), []byte(payload))))
	return v.Gets(payload)[payload]
}

func strangerGetsIn(t *testing.T, w *world, f addrs) bool {
	t.Helper()
	v := Listen(t, w.a2, victimPort)
	defer v.Close()
	return attack{w.stranger, f.a, f.b1}.works(t, f, v, "stranger")
}

// peerGetsIn tells whether a real packet of a container of host B arrives.
func peerGetsIn(t *testing.T, w *world, f addrs) bool {
	t.Helper()
	return seenAs(t, w.b1, netip.Addr{}, at(f.a2, echoPort)) == f.b1.String()
}

func testAttacks(t *testing.T, w *world, s Subject) {
	v := Listen(t, w.a2, victimPort)
	masqueradeOnB(t, w)
	change(t, w.a, "addr add 192.168.77.101/24 dev eth0\naddr add fd77::101/64 dev eth0 nodad", "addr del 192.168.77.101/24 dev eth0\naddr del fd77::101/64 dev eth0")
	for _, f := range both() {
		for name, a := range attacks(w, f) {
			if !eventually(func() bool { return a.works(t, f, v, name) }) {
				t.Errorf("%s: %s does not work without the rules: the test proves nothing", f.name, name)
			}
		}
	}
	flt := open(t, w, s)
	flt.sync(wanted())
	for _, f := range both() {
		for name, a := range attacks(w, f) {
			if a.works(t, f, v, name) {
				t.Errorf("%s: %s gets in", f.name, name)
			}
		}
		if !peerGetsIn(t, w, f) {
			t.Errorf("%s: a peer does not get in", f.name)
		}
	}
}

// masqueradeOnB makes what containers of host B send to the underlay come from
// host B.
func masqueradeOnB(t *testing.T, w *world) {
	t.Helper()
	const rules = `
add table inet b
add chain inet b post { type nat hook postrouting priority 100; }
add rule inet b post oifname eth0 ip saddr 10.1.0.0/16 masquerade
add rule inet b post oifname eth0 ip6 saddr fd00:1::/48 masquerade`
	err := w.b.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		return cmd.Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.b.Do(exec.Command("nft", "delete", "table", "inet", "b").Run); err != nil {
			t.Error(err)
		}
	})
}

func testPeerChange(t *testing.T, w *world, s Subject) {
	flt := open(t, w, s)
	r := wanted()
	for i := range 5000 {
		r.Tunnel.Peers = append(r.Tunnel.Peers, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}))
	}
	start := time.Now()
	flt.sync(r)
	first := time.Since(start)
	fam := both()
	if strangerGetsIn(t, w, fam[0]) || strangerGetsIn(t, w, fam[1]) {
		t.Error("a stranger gets in")
	}
	joined := r.Clone()
	joined.Tunnel.Peers = append(joined.Tunnel.Peers, fam[0].stranger, fam[1].stranger)
	start = time.Now()
	flt.sync(joined)
	t.Logf("sync of 5,000 peers: %v; two more: %v", first, time.Since(start))
	for _, f := range fam {
		if !eventually(func() bool { return strangerGetsIn(t, w, f) }) {
			t.Errorf("%s: a peer that joined does not get in", f.name)
		}
	}
	flt.sync(r)
	for _, f := range fam {
		if strangerGetsIn(t, w, f) {
			t.Errorf("%s: a peer that left gets in", f.name)
		}
		if !peerGetsIn(t, w, f) {
			t.Errorf("%s: a peer that stayed does not get in", f.name)
		}
	}
}

func onEth0(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		if err == nil {
			err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0")
		}
	}); e != nil {
		return e
	}
	return err
}
