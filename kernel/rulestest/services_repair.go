package rulestest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/conntrack"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

// unrepaired expects no repair of others' deeds so far.
func (b *balancer) unrepaired(why string) {
	b.t.Helper()
	if n := b.b.Repairs(); n != 0 {
		b.t.Errorf("%s: %d repairs, want none", why, n)
	}
}

// testRepairs: neither the first rules nor changes are repairs, whatever others
// do with rules of their own meanwhile.
func testRepairs(t *testing.T, w *world, s ServicesSubject) {
	finally(t, w.a, "sh", "-c", s.ipt("ipt -w -F; ipt -w -X"))
	b := openBalancer(t, w, w.a, s)
	for _, want := range []rules.Services{balanced(0), balanced(0, 1), all(w), {}, balanced(1), servicesOn(), all(w)} {
		b.sync(want)
		b.unrepaired("its own changes")
	}
	for _, want := range []rules.Services{all(w), balanced(0, 1)} {
		netnstest.Run(t, w.a, "sh", "-ec", s.ipt("ipt -w -A FORWARD -d 203.0.113.1 -j ACCEPT"))
		b.sync(want)
		b.unrepaired("somebody else's own rule")
	}
	b.do(func() error { return b.b.Remove(t.Context()) })
	b.sync(balanced(1))
	b.unrepaired("its own removal")
}

// flow is a client that does not choose another port when it is not answered.
type flow struct {
	name string
	road
	want   string
	socket net.Conn // of UDP
	port   uint16   // of TCP
}

// flows of all begin, with ports from *port on. Those over TCP that are answered
// are left out: they are over.
func flows(t *testing.T, w *world, port *uint16) (out []*flow) {
	t.Helper()
	for _, f := range both() {
		for name, x := range map[string]flow{
			"container": {road: road{w.a1, at(f.virtual(1), 80)}, want: server("a2", 0)},
			"the host":  {road: road{w.a, at(f.virtual(1), 80)}, want: server("a2", 0)},
			"outside":   {road: road{w.stranger, at(f.a, nodePort)}, want: server("b1", 0)},
		} {
			x.name = f.name + " " + name
			c, err := connect(x.from, "udp", netip.Addr{}, x.dest)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			_, _ = c.Write([]byte("who is there?"))
			tcp := x
			*port++
			x.socket, tcp.port = c, *port
			if out = append(out, &x); tcp.goesOn(20*time.Millisecond) != nil {
				out = append(out, &tcp)
			}
		}
	}
	return out
}

// goesOn tells whether the client is answered now.
func (f *flow) goesOn(patience time.Duration) error {
	c := f.socket
	if c == nil {
		err := f.from.Do(func() (err error) {
			c, err = (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: int(f.port)}}).Dial("tcp", f.dest.String())
			return err
		})
		if err != nil {
			return err
		}
		defer c.Close()
	}
	who, _, err := hello(c)
	if f.socket != nil && err != nil { // an ICMP error may be of a packet before
		who, _, err = hello(c)
	}
	if err == nil && who != f.want {
		err = fmt.Errorf("%q answers, want %q", who, f.want)
	}
	return err
}

// tracking is somebody else's table for which the kernel tracks connections
// while there is nothing of ours.
const tracking = `nft 'add table inet others
add chain inet others in { type filter hook prerouting priority 0; }
add chain inet others out { type filter hook output priority 0; }
add rule inet others in ct state new accept
add rule inet others out ct state new accept'`

// testServicesFlushed syncs as the daemon does, until it is as it was, and has
// connections that began meanwhile looked at again.
func testServicesFlushed(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	want := all(w)
	b.sync(want)
	before := s.dump(t, w.a)
	more := want // an ordinary change comes at the same time
	more.Frontends = slices.Clone(want.Frontends)
	for _, f := range both() {
		more.Frontends = append(more.Frontends, f.virtually(200, slots(f.b1, 0)...)...)
	}
	slices.SortFunc(more.Frontends, (*rules.Frontend).Compare)
	port, untranslated := uint16(20000), 0
	for name, command := range s.Flushes {
		repairs := b.b.Repairs()
		netnstest.Run(t, w.a, "sh", "-ec", command)
		if s.dump(t, w.a) == before {
			t.Errorf("%s changes nothing", name)
		}
		netnstest.Run(t, w.a, "sh", "-ec", tracking)
		begun := flows(t, w, &port)
		netnstest.Run(t, w.a, "nft", "delete table inet others")
		b.sync(more)
		back := false
		for end := time.Now().Add(10 * time.Second); !back && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			b.sync(want)
			back = s.dump(t, w.a) == before
		}
		if !back {
			s.expectDump(t, "after "+name, w.a, before)
		}
		if b.b.Repairs() == repairs {
			t.Errorf("after %s: it is not counted as repaired", name)
		}
		deleted := 0
		b.do(func() (err error) {
			deleted, err = conntrack.Clean(t.Context(), conntrack.Changed(rules.Services{}, want), true)
			return err
		})
		untranslated += deleted
		for _, f := range begun {
			if deleted == 0 {
				break // what was damaged decides about other connections, or about sources
			}
			if err := f.goesOn(longest); err != nil {
				t.Errorf("after %s: what began meanwhile, %s by port %d: %v", name, f.name, f.port, err)
			}
		}
		flushConnections(t, w)
		if why := broken(w); why != "" {
			t.Errorf("after %s: %s", name, why)
		}
	}
	if untranslated == 0 {
		t.Error("nothing began without being translated: the test proves nothing")
	}
}
