package rulestest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

// testBalance: among n connections an endpoint that has the part p of the
// slots is away from n·p by more than 5.5 standard deviations once in some
// ten million.
func testBalance(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	for _, f := range both() {
		b.sync(servicesOn(f.virtually(1, slots(f.b1, 0, 1, 2, 3, 4)...), f.virtually(2, slots(f.a2, 0, 0, 0, 1)...)))
		got := poll(t, w.a1, "udp", netip.Addr{}, at(f.virtual(1), port), 2000)
		for i := range servers {
			if n := got[server("b1", i)]; n < 300 || n > 500 {
				t.Errorf("%s: %d of 2000 connections over 5 slots, want about 400", server("b1", i), n)
			}
		}
		got = poll(t, w.a1, "udp", netip.Addr{}, at(f.virtual(2), port), 400)
		if n := got[server("a2", 0)]; n < 252 || n > 348 || n+got[server("a2", 1)] != 400 {
			t.Errorf("%s: 3 of 4 slots got %v, want about 300 of 400", f.name, got)
		}
	}
}

func testRoundRobin(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	for _, f := range both() {
		fronts := front(rules.Frontend{Addr: f.virtual(1), Port: port, Balance: rules.RoundRobin, Slots: slots(f.b1, 0, 1, 2, 3, 4)})
		b.sync(servicesOn(fronts))
		got := turns(t, w.a1, "tcp", netip.Addr{}, at(f.virtual(1), port), 50)
		for i := 0; i < len(got); i += servers {
			turn := slices.Clone(got[i : i+servers])
			slices.Sort(turn)
			if len(slices.Compact(turn)) != servers {
				t.Errorf("%s: a turn is %q", f.name, got[i:i+servers])
			}
		}
	}
}

// clients are addresses of a1, added for a test.
func clients(t *testing.T, w *world, f addrs) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	var do, undo strings.Builder
	a := f.a1
	for range 16 {
		for a = a.Next(); a.AsSlice()[a.BitLen()/8-1] < 100; {
			a = a.Next()
		}
		out = append(out, a)
		word := fmt.Sprintf("%s dev eth0", netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[a.Is4()]))
		fmt.Fprintf(&do, "addr add %s%s\n", word, map[bool]string{false: " nodad"}[a.Is4()])
		fmt.Fprintf(&undo, "addr del %s\n", word)
	}
	change(t, w.a1, strings.TrimSpace(do.String()), strings.TrimSpace(undo.String()))
	return out
}

// chosen is which server each client is led to.
func chosen(t *testing.T, n *netns.NS, clients []netip.Addr, to netip.AddrPort) map[netip.Addr]string {
	t.Helper()
	out := map[netip.Addr]string{}
	for i, c := range clients {
		out[c] = turns(t, n, protocols()[i%2], c, to, 1)[0]
	}
	return out
}

// expectSame compares which clients are led elsewhere than before.
func expectSame(t *testing.T, what string, got, want map[netip.Addr]string) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: clients are led to %v, before to %v", what, got, want)
	}
}

// spread tells whether not all are led to one.
func spread(chosen map[netip.Addr]string) bool {
	all := slices.Sorted(maps.Values(chosen))
	return len(slices.Compact(all)) > 1
}

func testHash(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	for _, f := range both() {
		from, to := clients(t, w, f), at(f.virtual(1), port)
		fronts := front(rules.Frontend{Addr: f.virtual(1), Port: port, Balance: rules.Hash, Slots: slots(f.b1, 0, 1, 2, 3, 4)})
		b.sync(servicesOn(fronts))
		first := chosen(t, w.a1, from, to)
		if !spread(first) {
			t.Errorf("%s: all are led to one: %v", f.name, first)
		}
		for range 3 {
			expectSame(t, f.name, chosen(t, w.a1, from, to), first)
		}
		b.sync(servicesOn(fronts, f.virtually(2, slots(f.a2, 0)...)))
		expectSame(t, f.name+" beside another service", chosen(t, w.a1, from, to), first)
		b.do(func() error { return b.b.Remove(t.Context()) })
		b.sync(servicesOn(fronts))
		expectSame(t, f.name+" after removal and return", chosen(t, w.a1, from, to), first)
		// More than 32 slots, the same ones again and again.
		many := slices.Repeat(slots(f.b1, 0, 1, 2, 3, 4), 10)
		b.sync(servicesOn(front(rules.Frontend{Addr: f.virtual(1), Port: port, Balance: rules.Hash, Slots: many})))
		first = chosen(t, w.a1, from, to)
		if !spread(first) {
			t.Errorf("%s, many slots: all are led to one: %v", f.name, first)
		}
		expectSame(t, f.name+", many slots", chosen(t, w.a1, from, to), first)
	}
}

// sticky is a service with affinity.
func (f addrs) sticky(d time.Duration, slots ...netip.AddrPort) []*rules.Frontend {
	return front(rules.Frontend{Addr: f.virtual(1), Port: port, Affinity: d, Slots: slots})
}

func testAffinity(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	for _, f := range both() {
		from, to := clients(t, w, f), at(f.virtual(1), port)
		fronts := f.sticky(time.Hour, slots(f.b1, 0, 1, 2, 3)...)
		b.sync(servicesOn(fronts))
		first := chosen(t, w.a1, from, to)
		if !spread(first) {
			t.Errorf("%s: all are led to one: %v", f.name, first)
		}
		for range 3 {
			expectSame(t, f.name, chosen(t, w.a1, from, to), first)
		}
		b.sync(servicesOn(fronts, f.virtually(2, slots(f.a2, 0)...)))
		expectSame(t, f.name+" beside another service", chosen(t, w.a1, from, to), first)
		b.sync(servicesOn(f.sticky(time.Hour, slots(f.b1, 0, 1, 2, 3, 4)...)))
		expectSame(t, f.name+" after one joined", chosen(t, w.a1, from, to), first)
		again := openBalancer(t, w, w.a, s)
		again.sync(servicesOn(f.sticky(time.Hour, slots(f.b1, 0, 1, 2, 3, 4)...)))
		expectSame(t, f.name+" after a restart", chosen(t, w.a1, from, to), first)
		again.sync(servicesOn(f.sticky(time.Hour, slots(f.b1, 0, 1)...)))
		second := chosen(t, w.a1, from, to)
		for c, who := range second {
			stays := first[c] == server("b1", 0) || first[c] == server("b1", 1)
			if who != server("b1", 0) && who != server("b1", 1) || stays && who != first[c] {
				t.Errorf("%s: after endpoints went %v is led from %s to %s", f.name, c, first[c], who)
			}
		}
		expectSame(t, f.name+" after endpoints went", chosen(t, w.a1, from, to), second)
	}
}

// testAffinityEnds: the time runs from the last connection.
func testAffinityEnds(t *testing.T, w *world, s ServicesSubject) {
	const lasts = 2 * time.Second
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	from := map[string][]netip.Addr{}
	for _, f := range both() {
		fronts = append(fronts, f.sticky(lasts, slots(f.b1, 0, 1, 2, 3, 4)...)...)
		from[f.name] = clients(t, w, f)
	}
	b.sync(servicesOn(fronts))
	led := func() map[netip.Addr]string {
		out := map[netip.Addr]string{}
		for _, f := range both() {
			maps.Copy(out, chosen(t, w.a1, from[f.name], at(f.virtual(1), port)))
		}
		return out
	}
	last := time.Now()
	first := led()
	for range 2 {
		time.Sleep(lasts * 6 / 10)
		began := time.Now()
		again := led()
		if time.Since(last) > lasts {
			t.Log("this machine is too slow to tell")
			break
		}
		expectSame(t, "within the time", again, first)
		last = began
	}
	first = led()
	time.Sleep(lasts + 1500*time.Millisecond)
	for _, f := range both() {
		if got := chosen(t, w.a1, from[f.name], at(f.virtual(1), port)); slices.ContainsFunc(from[f.name], func(c netip.Addr) bool { return got[c] != first[c] }) {
			continue
		}
		t.Errorf("%s: every client is led to the same endpoint after the time", f.name)
	}
}
