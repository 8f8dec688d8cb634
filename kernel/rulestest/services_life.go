package rulestest

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

// lasting is a connection that is used again and again.
type lasting struct {
	net.Conn
	name, who string
}

// road is from somewhere to a service.
type road struct {
	from *netns.NS
	dest netip.AddrPort
}

// last opens connections of both protocols and families from a1 to the virtual
// address 1, and one from outside to the node port.
func last(t *testing.T, w *world) []lasting {
	t.Helper()
	var out []lasting
	for _, f := range both() {
		for _, network := range protocols() {
			for name, p := range map[string]road{"container": {w.a1, at(f.virtual(1), port)}, "outside": {w.stranger, at(f.a, nodePort+1)}} {
				c, err := connect(p.from, network, netip.Addr{}, p.dest)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				who, _, err := hello(c)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, lasting{c, fmt.Sprint(f.name, " ", network, " ", name), who})
			}
		}
	}
	return out
}

// goesOn tells whether the same endpoint still answers.
func (l lasting) goesOn() error {
	if l.RemoteAddr().Network() == "udp" {
		who, _, err := hello(l)
		if err == nil && who != l.who {
			return fmt.Errorf("%q answers, not %q", who, l.who)
		}
		return err
	}
	said := fmt.Sprintf("%d\n", time.Now().UnixNano())
	_ = l.SetDeadline(time.Now().Add(longest))
	if _, err := l.Write([]byte(said)); err != nil {
		return err
	}
	b := make([]byte, len(said))
	if _, err := l.Read(b); err != nil {
		return err
	}
	if string(b) != said {
		return fmt.Errorf("echo is %q, not %q", b, said)
	}
	return nil
}

// balanced is one service of b1's servers in all places of last.
func balanced(numbers ...int) rules.Services {
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.b1, numbers...)...)...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort + 1, Node: true, Slots: slots(f.b1, numbers...)})...)
	}
	return servicesOn(fronts)
}

// testEstablished: what happens to new connections is no affair of old ones,
// TCP ones even if their endpoint is drained.
func testEstablished(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	b.sync(balanced(0))
	conns := last(t, w)
	check := func(when string, tcpAlone bool) {
		t.Helper()
		for _, c := range conns {
			if c.RemoteAddr().Network() == "udp" && tcpAlone {
				continue
			}
			if err := c.goesOn(); err != nil {
				t.Errorf("%s: %s: %v", when, c.name, err)
			}
		}
	}
	check("at first", false)
	b.sync(balanced(0, 1, 2, 3))
	check("after others came", false)
	b.sync(balanced(0, 4))
	check("after others went", false)
	again := openBalancer(t, w, w.a, s)
	again.sync(balanced(0, 4))
	check("after a restart", false)
	again.sync(balanced(4))
	check("drained", true)
	again.sync(balanced())
	check("without endpoints", true)
	again.sync(servicesOn())
	check("without the service", true)
}

// testWayChanges is about connections that last while hosts find another way
// to each other.
func testWayChanges(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	b.sync(balanced(0))
	conns := last(t, w)
	t.Run("plainly", func(t *testing.T) {
		routePlainly(t, w, w.a)
		for _, c := range conns {
			if err := c.goesOn(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	})
	for _, c := range conns {
		if err := c.goesOn(); err != nil {
			t.Errorf("through the tunnel again: %s: %v", c.name, err)
		}
	}
}

func testSwap(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	for i := range servers {
		b.sync(balanced(i))
		for _, f := range both() {
			expectCall(t, "swapped", w.a1, at(f.virtual(1), port), server("b1", i), f.a1)
			expectCall(t, "swapped", w.stranger, at(f.a, nodePort+1), server("b1", i), f.tunnelA)
		}
	}
	b.sync(balanced())
	for _, f := range both() {
		expectRefused(t, "without endpoints", w.a1, at(f.virtual(1), port))
	}
	b.sync(balanced(2))
	for _, f := range both() {
		expectCall(t, "one came back", w.a1, at(f.virtual(1), port), server("b1", 2), f.a1)
	}
}

// testChanges takes one service after the other through all kinds.
func testChanges(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	kinds := map[string]rules.Frontend{
		"random":      {},
		"round robin": {Balance: rules.RoundRobin},
		"hash":        {Balance: rules.Hash},
		"affinity":    {Affinity: time.Hour},
		"both":        {Balance: rules.Hash, Affinity: time.Hour},
	}
	var wanted [2][]*rules.Frontend
	var empty []*rules.Frontend
	for i := range wanted {
		n := 1
		for _, f := range both() {
			for _, kind := range kinds { // in another order each time, so of another kind
				kind.Addr, kind.Port, kind.Slots = f.virtual(n), port, slots(f.b1, i, i+2)
				wanted[i] = append(wanted[i], front(kind)...)
				kind.Slots = nil
				empty = append(empty, front(kind)...)
				n++
			}
		}
	}
	empty = empty[:len(empty)/2]
	check := func(i int) {
		t.Helper()
		for _, f := range wanted[i] {
			network := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[f.Protocol]
			who, _, err := call(w.a1, network, netip.Addr{}, at(f.Addr, port))
			if err != nil || who != server("b1", i) && who != server("b1", i+2) {
				t.Errorf("state %d, %v by %s: %q answers (%v)", i, f.Addr, network, who, err)
			}
		}
	}
	for _, state := range []int{0, 1, 2, 0, 3, 1} {
		switch state {
		case 2:
			b.sync(servicesOn(empty))
			for _, f := range empty {
				if f.Protocol == unix.IPPROTO_TCP {
					expectRefused(t, "without endpoints", w.a1, at(f.Addr, port))
				}
			}
		case 3:
			b.sync(servicesOn())
		default:
			b.sync(servicesOn(wanted[state]))
			check(state)
		}
	}
}

// worksAll looks at some of what all asks for.
func worksAll(t *testing.T, w *world) {
	t.Helper()
	if why := broken(w); why != "" {
		t.Error(why)
	}
}

// broken says what of all does not work, briefly.
func broken(w *world) string {
	var out []string
	for _, f := range both() {
		for name, c := range map[string]struct {
			road
			want string
		}{
			"a virtual address":           {road{w.a1, at(f.virtual(1), port)}, server("a2", 0)},
			"one from the host":           {road{w.a, at(f.virtual(1), port)}, server("a2", 0)},
			"one with affinity":           {road{w.a1, at(f.virtual(3), port)}, "b1:"},
			"one in turns":                {road{w.a1, at(f.virtual(4), port)}, "b1:"},
			"one with a hash":             {road{w.a1, at(f.virtual(5), port)}, "b1:"},
			"a node port":                 {road{w.stranger, at(f.a, nodePort)}, server("b1", 0)},
			"one without endpoints":       {road{w.a1, at(f.virtual(2), port)}, "refused"},
			"one that is not there":       {road{w.a1, at(f.virtual(9), port)}, "refused"},
			"nor is this one to the host": {road{w.a, at(f.virtual(9), port)}, "refused"},
		} {
			who, _, err := call(c.from, "tcp", netip.Addr{}, c.dest)
			if err != nil {
				who = err.Error()
			}
			if !strings.Contains(who, c.want) {
				out = append(out, fmt.Sprintf("%s %s: %q answers, want %q", f.name, name, who, c.want))
			}
		}
	}
	return strings.Join(out, "\n")
}

func testSecondServicesSync(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	want := all(w)
	b.sync(want)
	before, ran := s.dump(t, w.a), s.runs(b)
	writes := CountWrites(t, w.a)
	for range 3 {
		b.sync(want)
	}
	b.sync(all(w)) // others that say the same
	b.unrepaired("nobody was there")
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if n := s.writes(b); n > ran {
		t.Errorf("%d programs wrote, want none", n)
	}
	b.sync(want)
	ran = s.runs(b)
	b.sync(want)
	if n := s.runs(b) - ran; n != 0 {
		t.Errorf("%d programs run, want none", n)
	}
	s.expectDump(t, "rules changed", w.a, before)
}

func testBalancerRestart(t *testing.T, w *world, s ServicesSubject) {
	first := openBalancer(t, w, w.a, s)
	first.sync(all(w))
	before := s.dump(t, w.a)
	second := openBalancer(t, w, w.a, s)
	writes := CountWrites(t, w.a)
	second.sync(all(w))
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if n := s.writes(second); n != 0 {
		t.Errorf("%d programs wrote, want none", n)
	}
	second.unrepaired("what the former one left is right")
	s.expectDump(t, "rules changed", w.a, before)
	// What the first one knew is not so any more.
	second.sync(balanced(1))
	third := openBalancer(t, w, w.a, s)
	third.sync(all(w))
	worksAll(t, w)
}

func testServicesGone(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	before := s.dump(t, w.a)
	b.sync(rules.Services{})
	s.expectDump(t, "nothing was asked for, rules", w.a, before)
	for _, end := range []func() error{
		func() error { return b.b.Sync(t.Context(), rules.Services{}) },
		func() error { return b.b.Remove(t.Context()) },
		func() error { return b.b.Remove(t.Context()) },
	} {
		b.sync(all(w))
		if s.dump(t, w.a) == before {
			t.Error("no rules were made")
		}
		b.do(end)
		s.expectDump(t, "rules after use", w.a, before)
	}
	fresh := openBalancer(t, w, w.a, s)
	b.sync(all(w))
	fresh.do(func() error { return fresh.b.Remove(t.Context()) })
	s.expectDump(t, "rules after another one's removal", w.a, before)
}
