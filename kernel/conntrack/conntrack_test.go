package conntrack

import (
	"context"
	"encoding/binary"
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
	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
	"golang.org/x/sys/unix"
)

// frontend is made from "udp 10.0.0.10:53 10.1.1.2:53 …".
func frontend(line string) *rules.Frontend {
	words := strings.Fields(line)
	at := netip.MustParseAddrPort(words[1])
	f := &rules.Frontend{Addr: at.Addr(), Port: at.Port()}
	f.Protocol = map[string]uint8{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP, "sctp": unix.IPPROTO_SCTP}[words[0]]
	for _, w := range words[2:] {
		f.Slots = append(f.Slots, netip.MustParseAddrPort(w))
	}
	return f
}

func TestOnlyWhatLedElsewhereIsLookedAt(t *testing.T) {
	const a, b, none = "10.1.1.2:53", "10.1.1.3:53", ""
	for name, c := range map[string]struct {
		was, now string // one frontend, "-": none
		want     string
	}{
		"a slot vanished":             {"udp 10.0.0.10:53 " + a + " " + b, "udp 10.0.0.10:53 " + a, "10.0.0.10:53 [" + a + "]"},
		"a slot of several alike":     {"udp 10.0.0.10:53 " + a + " " + a, "udp 10.0.0.10:53 " + a, none},
		"a slot came":                 {"udp 10.0.0.10:53 " + a, "udp 10.0.0.10:53 " + a + " " + b, none},
		"the first slot":              {"udp 10.0.0.10:53", "udp 10.0.0.10:53 " + a, "10.0.0.10:53 [" + a + "]"},
		"the last slot":               {"udp 10.0.0.10:53 " + a, "udp 10.0.0.10:53", "10.0.0.10:53 []"},
		"gone":                        {"udp 10.0.0.10:53 " + a, "-", "10.0.0.10:53 []"},
		"another in its place":        {"udp 10.0.0.10:53 " + a, "udp 10.0.0.9:53 " + a, "10.0.0.9:53 [" + a + "] 10.0.0.10:53 []"},
		"gone, and had none":          {"udp 10.0.0.10:53", "-", none},
		"new":                         {"-", "udp 10.0.0.10:53 " + a, "10.0.0.10:53 [" + a + "]"},
		"new without slots":           {"-", "udp 10.0.0.10:53", none},
		"TCP":                         {"tcp 10.0.0.10:53 " + a, "tcp 10.0.0.10:53 " + b, "10.0.0.10:53 [" + b + "]"},
		"SCTP":                        {"sctp 10.0.0.10:53 " + a, "-", "10.0.0.10:53 []"},
		"the same":                    {"udp 10.0.0.10:53 " + a, "udp 10.0.0.10:53 " + a, none},
		"a protocol for another":      {"tcp 10.0.0.10:53 " + a, "udp 10.0.0.10:53 " + a, "10.0.0.10:53 [] 10.0.0.10:53 [" + a + "]"},
		"a port for another, IPv6":    {"udp [fd00:53::a]:53 [fd00:1::2]:53", "udp [fd00:53::a]:54 [fd00:1::2]:53", "[fd00:53::a]:53 [] [fd00:53::a]:54 [[fd00:1::2]:53]"},
		"the port of a slot, another": {"udp 10.0.0.10:53 " + a, "udp 10.0.0.10:53 10.1.1.2:54", "10.0.0.10:53 [10.1.1.2:54]"},
	} {
		// Others around it did not change.
		first, last := frontend("udp 10.0.0.1:53 "+a), frontend("udp [fd00:ffff::1]:53")
		state := func(line string) rules.Services {
			out := []*rules.Frontend{first}
			if line != "-" {
				out = append(out, frontend(line))
			}
			return rules.Services{Frontends: append(out, last)}
		}
		var got []string
		for _, f := range Changed(state(c.was), state(c.now)) {
			got = append(got, fmt.Sprint(netip.AddrPortFrom(f.Addr, f.Port), " ", f.Slots))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	same := rules.Services{Frontends: []*rules.Frontend{frontend("udp 10.0.0.1:53 " + a)}}
	if got := Changed(same, same); got != nil {
		t.Errorf("nothing changed: %v", got)
	}
	if got := Changed(rules.Services{}, same); len(got) != 1 || got[0] != same.Frontends[0] {
		t.Errorf("after a restart: %v", got)
	}
}

// clean is Clean inside a namespace.
func clean(t *testing.T, n *netns.NS, lines ...string) (deleted int) {
	t.Helper()
	return inside(t, n, false, lines)
}

func inside(t *testing.T, n *netns.NS, settled bool, lines []string) (deleted int) {
	t.Helper()
	var fs []*rules.Frontend
	for _, l := range lines {
		fs = append(fs, frontend(l))
	}
	err := n.Do(func() (err error) {
		deleted, err = Clean(t.Context(), fs, settled)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return deleted
}

// answerAt answers every packet with its own address.
func answerAt(t *testing.T, n *netns.NS, at string) {
	t.Helper()
	var c net.PacketConn
	err := n.Do(func() (err error) { c, err = net.ListenPacket("udp", at); return err })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		for b := make([]byte, 64); ; {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(at), from)
		}
	}()
}

// client sends from one port.
func client(t *testing.T, n *netns.NS, to string) (ask func() string) {
	t.Helper()
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(t.Context(), "udp", to)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() string {
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		b := make([]byte, 64)
		for { // an ICMP error may be of the question before
			if _, err := c.Write([]byte("?")); err == nil {
				break
			}
		}
		k, err := c.Read(b)
		if err != nil {
			return "no answer"
		}
		return string(b[:k])
	}
}

// service sends the packets to 10.0.0.10 and fd00:53::a to an endpoint; "": nowhere.
func service(t *testing.T, n *netns.NS, four, six string) {
	t.Helper()
	text := "table inet t\ndelete table inet t\ntable inet t { chain out { type nat hook output priority -100\n ct state invalid drop\n"
	if four != "" {
		text += "ip daddr 10.0.0.10 udp dport 53 dnat ip to " + four + "\n ip6 daddr fd00:53::a udp dport 53 dnat ip6 to " + six + "\n"
	}
	netnstest.Run(t, n, "nft", text+"}\n}")
}

// TestAUDPClientMovesToAnEndpointThatLives keeps its port, as DNS and games do.
func TestAUDPClientMovesToAnEndpointThatLives(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Run(t, n, "sh", "-ec", `
		for a in 10.0.0.10 10.1.1.2 10.1.1.3 fd00:53::a fd00:1::2 fd00:1::3; do ip addr add $a dev lo; done`)
	for _, at := range []string{"10.1.1.3:53", "[fd00:1::3]:53"} {
		answerAt(t, n, at)
	}
	four, six := client(t, n, "10.0.0.10:53"), client(t, n, "[fd00:53::a]:53")
	ask := func(when, wantFour, wantSix string) {
		t.Helper()
		if got := four(); got != wantFour {
			t.Errorf("%s: %s, want %s", when, got, wantFour)
		}
		if got := six(); got != wantSix {
			t.Errorf("%s: %s, want %s", when, got, wantSix)
		}
	}
	const none = "no answer"
	service(t, n, "", "")
	ask("no endpoint yet", none, none)
	service(t, n, "10.1.1.2:53", "[fd00:1::2]:53") // does not live
	ask("the first endpoint, and the kernel remembers that there was none", none, none)
	if got := clean(t, n, "udp 10.0.0.10:53 10.1.1.2:53", "udp [fd00:53::a]:53 [fd00:1::2]:53"); got != 2 {
		t.Errorf("%d connections to none deleted", got)
	}
	ask("to the dead one", none, none)
	service(t, n, "10.1.1.3:53", "[fd00:1::3]:53")
	ask("the kernel remembers the dead one", none, none)
	lives := []string{"udp 10.0.0.10:53 10.1.1.3:53", "udp [fd00:53::a]:53 [fd00:1::3]:53", "tcp 10.0.0.10:53", "udp 10.0.0.11:53"}
	if got := clean(t, n, lives...); got != 2 {
		t.Errorf("%d connections to the dead endpoint deleted", got)
	}
	ask("cleaned", "10.1.1.3:53", "[fd00:1::3]:53")
	if got := clean(t, n, lives...); got != 0 {
		t.Errorf("%d connections to the living deleted", got)
	}
	if got := clean(t, n, "udp 10.0.0.10:53", "udp [fd00:53::a]:53"); got != 2 {
		t.Errorf("%d deleted of services without endpoints", got)
	}
}

func tuple(b *nlbatch.Batch, kind uint16, protocol uint8, src, dst netip.AddrPort) {
	b.Nest(kind, func() {
		b.Nest(tupleIP, func() {
			k := [2]uint16{ip4Src, ip4Dst}
			if src.Addr().Is6() {
				k = [2]uint16{ip6Src, ip6Dst}
			}
			b.Bytes(k[0], src.Addr().AsSlice())
			b.Bytes(k[1], dst.Addr().AsSlice())
		})
		b.Nest(tupleProto, func() {
			b.Uint8(protoNum, protocol)
			b.Bytes(srcPort, binary.BigEndian.AppendUint16(nil, src.Port()))
			b.Bytes(dstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))
		})
	})
}

// track makes the kernel track connections of as many clients of one address.
func track(t testing.TB, n *netns.NS, client byte, clients int, protocol uint8, to, endpoint string, zoned uint16) {
	t.Helper()
	trackAs(t, n, client, clients, protocol, to, endpoint, zoned, 0)
}

func trackAs(t testing.TB, n *netns.NS, client byte, clients int, protocol uint8, to, endpoint string, zoned uint16, bits uint32) {
	t.Helper()
	var b nlbatch.Batch
	at, slot := netip.MustParseAddrPort(to), netip.MustParseAddrPort(endpoint)
	for i := range clients {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, client}), uint16(i))
		family := byte(unix.AF_INET)
		if at.Addr().Is6() {
			family = unix.AF_INET6
			from = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: client}), uint16(i))
		}
		b.Message(unix.NFNL_SUBSYS_CTNETLINK<<8, unix.NLM_F_CREATE|unix.NLM_F_EXCL, []byte{family, 0, 0, 0})
		tuple(&b, tupleOrig, protocol, from, at)
		tuple(&b, tupleReply, protocol, slot, from)
		b.BigUint32(7, 600) // CTA_TIMEOUT
		if bits != 0 {
			b.BigUint32(status, bits|1<<3) // IPS_CONFIRMED, as every one in the table
		}
		if zoned != 0 {
			b.Bytes(zone, binary.BigEndian.AppendUint16(nil, zoned))
		}
		if protocol == unix.IPPROTO_TCP {
			b.Nest(4, func() { b.Nest(1, func() { b.Uint8(1, 3) }) }) // established
		}
	}
	err := n.Do(func() error {
		c, err := nlbatch.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SizeForBulk()
		var refused error
		err = c.Apply(&b, func(_ int, e *nlbatch.Error) { refused = e })
		return errors.Join(err, refused)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func tracked(t testing.TB, n *netns.NS) string {
	t.Helper()
	return netnstest.Run(t, n, "conntrack", "-C")
}

func TestNothingButStaleUDPIsDeleted(t *testing.T) {
	n := netnstest.New(t)
	for i, c := range []struct {
		protocol     uint8
		to, endpoint string
		zone         uint16
		stale        bool
	}{
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.2:53", 0, true},
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.2:53", 7, true}, // somebody's zone
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.3:53", 9, false},
		{unix.IPPROTO_UDP, "10.0.0.10:54", "10.1.1.2:53", 0, false}, // another port
		{unix.IPPROTO_UDP, "10.0.0.11:53", "10.1.1.2:53", 0, false}, // another address
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.2:53", 0, false},
		{unix.IPPROTO_SCTP, "10.0.0.10:53", "10.1.1.2:53", 0, false},
		{unix.IPPROTO_UDP, "10.0.0.12:53", "10.1.1.2:53", 0, true},     // a service without endpoints
		{unix.IPPROTO_UDP, "192.0.2.1:53", "192.0.2.1:53", 0, false},   // a node port without endpoints: the host's own server
		{unix.IPPROTO_UDP, "192.0.2.1:30053", "10.1.1.2:53", 0, false}, // a good one
		{unix.IPPROTO_UDP, "[fd00:53::a]:53", "[fd00:1::2]:53", 0, true},
		{unix.IPPROTO_UDP, "[fd00:53::a]:53", "[fd00:1::3]:53", 3, false},
	} {
		track(t, n, byte(i), 10, c.protocol, c.to, c.endpoint, c.zone)
		before := tracked(t, n)
		want := 0
		if c.stale {
			want = 10
		}
		got := clean(t, n, "udp 10.0.0.10:53 10.1.1.2:53", "udp 10.0.0.10:53 10.1.1.3:53", "udp 10.0.0.12:53", "tcp 10.0.0.10:53", "udp 192.0.2.1:53",
			"udp 192.0.2.1:30053 10.1.1.2:53 10.1.1.2:53", "udp [fd00:53::a]:53 [fd00:1::3]:53")
		if got != want {
			t.Errorf("%d: %s to %s: %d deleted, want %d (of %s)", c.protocol, c.to, c.endpoint, got, want, before)
		}
	}
	if got := strings.TrimSpace(tracked(t, n)); got != "80" {
		t.Errorf("%s are left, want 80", got)
	}
}

func TestUnansweredConnectionsAreDeletedWhenSettled(t *testing.T) {
	n := netnstest.New(t)
	fronts := []string{
		"udp 10.0.0.10:53 10.1.1.2:53", "tcp 10.0.0.10:53 10.1.1.2:53", "sctp 10.0.0.10:53 10.1.1.2:53", "udp 10.0.0.12:53", "tcp 10.0.0.13:53",
		"tcp 192.0.2.1:30053 10.1.1.2:53", "udp [fd00:53::a]:53 [fd00:1::3]:53", "tcp [fd00:53::a]:54 [fd00:1::3]:53",
	}
	for i, c := range []struct {
		protocol     uint8
		to, endpoint string
		zone         uint16
		status       uint32
		deleted      bool
	}{
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.0.0.10:53", 0, 0, true},
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.0.0.10:53", 3, answered | assured, true}, // somebody's zone
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.0.0.10:53", 0, 0, true},
		{unix.IPPROTO_SCTP, "10.0.0.10:53", "10.0.0.10:53", 0, 0, true},
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.2:53", 0, answered | assured, false},
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.9:53", 0, 0, true}, // an endpoint that never was or went
		{unix.IPPROTO_SCTP, "10.0.0.10:53", "10.1.1.9:53", 0, 0, true},
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.9:53", 0, answered, false},
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.9:53", 0, answered | assured, false}, // it drains
		{unix.IPPROTO_TCP, "10.0.0.10:53", "10.0.0.10:53", 0, answered, true},           // refused
		{unix.IPPROTO_TCP, "10.0.0.13:53", "10.1.1.2:53", 0, 0, true},                   // a service without endpoints
		{unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.9:53", 0, 0, true},
		{unix.IPPROTO_UDP, "10.0.0.12:53", "10.0.0.12:53", 0, 0, false},                        // has no endpoint
		{unix.IPPROTO_TCP, "10.0.0.12:53", "10.0.0.12:53", 0, 0, false},                        // another protocol
		{unix.IPPROTO_UDP, "10.0.0.10:54", "10.0.0.10:54", 0, 0, false},                        // another port
		{unix.IPPROTO_TCP, "192.0.2.1:30053", "192.0.2.1:30053", 0, answered | assured, false}, // the host's own server
		{unix.IPPROTO_TCP, "192.0.2.1:30053", "192.0.2.1:30053", 0, 0, true},                   // nobody
		{unix.IPPROTO_UDP, "[fd00:53::a]:53", "[fd00:53::a]:53", 0, 0, true},
		{unix.IPPROTO_TCP, "[fd00:53::a]:54", "[fd00:53::a]:54", 7, 0, true},
		{unix.IPPROTO_TCP, "[fd00:53::a]:54", "[fd00:1::3]:53", 0, answered | assured, false},
		{unix.IPPROTO_SCTP, "[fd00:53::a]:54", "[fd00:53::a]:54", 0, answered | assured, false},
		{unix.IPPROTO_TCP, "192.0.2.1:30053", "10.1.1.2:53", 0, answered | assured, false},
		{unix.IPPROTO_UDP, "192.0.2.1:30053", "192.0.2.1:30053", 0, answered | assured, false},
	} {
		trackAs(t, n, byte(i), 3, c.protocol, c.to, c.endpoint, c.zone, c.status)
		want := 0
		if c.deleted {
			want = 3
		}
		if got := inside(t, n, true, fronts); got != want {
			t.Errorf("%d: %s to %s: %d deleted, want %d", c.protocol, c.to, c.endpoint, got, want)
		}
	}
	if got := inside(t, n, true, fronts); got != 0 {
		t.Errorf("%d deleted of what is left", got)
	}
}

func TestNothingToDoAsksNobody(t *testing.T) {
	// In no namespace, without rights: nothing is opened.
	if n, err := Clean(t.Context(), []*rules.Frontend{frontend("tcp 10.0.0.1:80 10.1.1.2:80")}, false); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Clean(ctx, []*rules.Frontend{frontend("udp 10.0.0.1:80 10.1.1.2:80")}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestLargeTable says what it took; FLANNELD_MEASURE=1 runs it with 60,000.
func TestLargeTable(t *testing.T) {
	size := 2000
	if os.Getenv("FLANNELD_MEASURE") != "" {
		size = 60000
	}
	n := netnstest.New(t)
	track(t, n, 1, size/2, unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.2:53", 0)
	track(t, n, 2, size/2, unix.IPPROTO_UDP, "10.0.0.10:53", "10.1.1.3:53", 0)
	begin := time.Now()
	if got := clean(t, n, "udp 10.0.0.10:53 10.1.1.2:53 10.1.1.3:53"); got != 0 {
		t.Errorf("%d deleted", got)
	}
	t.Logf("%d read in %v", size, time.Since(begin))
	begin = time.Now()
	if got := clean(t, n, "udp 10.0.0.11:53 10.1.1.2:53"); got != 0 {
		t.Errorf("%d deleted", got)
	}
	t.Logf("%d read in %v", size, time.Since(begin))
	begin = time.Now()
	if got := clean(t, n, "udp 10.0.0.10:53 10.1.1.3:53"); got != size/2 {
		t.Errorf("%d deleted, want %d", got, size/2)
	}
	t.Logf("%d read, %d deleted in %v", size, size/2, time.Since(begin))
	track(t, n, 3, size/2, unix.IPPROTO_TCP, "10.0.0.10:53", "10.1.1.2:53", 0)
	begin = time.Now()
	if got := clean(t, n, "udp 10.0.0.10:53"); got != size/2 {
		t.Errorf("%d deleted, want %d", got, size/2)
	}
	t.Logf("%d of UDP deleted beside %d of TCP in %v", size/2, size/2, time.Since(begin))
	begin = time.Now()
	if got := inside(t, n, true, []string{"tcp 10.0.0.10:53 10.1.1.3:53"}); got != size/2 {
		t.Errorf("%d deleted, want %d", got, size/2)
	}
	t.Logf("%d of TCP deleted in %v", size/2, time.Since(begin))
}

func FuzzEntries(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 0, 0, 0, 4, 0, 1, 128})
	f.Add([]byte{2, 0, 0, 0, 12, 0, 1, 128, 8, 0, 1, 128, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		var e entry
		if e.read(body) && e.orig == nil {
			t.Error("an entry without a tuple")
		}
	})
}
