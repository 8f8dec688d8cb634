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
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
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

// others are rules as Docker (a published port, masquerade), kube-proxy (a
// cluster IP) and firewalld make them.
const others = `
ipt -w -t nat -N DOCKER
ipt -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
ipt -w -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
ipt -w -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
ipt -w -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8099 -j DNAT --to-destination 10.1.1.3:8083
ipt -w -N DOCKER-USER
ipt -w -A FORWARD -j DOCKER-USER
ipt -w -A DOCKER-USER -j RETURN
for i in ipt ip6t; do
	case $i in
	*6*) ip=fd96::1 to=[fd00:1:0:2::2]:8084;;
	*) ip=10.96.0.1 to=10.1.2.2:8084;;
	esac
	for chain in KUBE-SERVICES KUBE-SVC-A KUBE-SEP-A KUBE-POSTROUTING KUBE-MARK-MASQ; do $i -w -t nat -N $chain; done
	$i -w -t nat -I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
	$i -w -t nat -I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
	$i -w -t nat -I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
	$i -w -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
	$i -w -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
	$i -w -t nat -A KUBE-POSTROUTING -j MASQUERADE
	$i -w -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
	$i -w -t nat -A KUBE-SERVICES -d $ip -p tcp -m tcp --dport 443 -j KUBE-SVC-A
	$i -w -t nat -A KUBE-SVC-A -j KUBE-MARK-MASQ
	$i -w -t nat -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
	$i -w -t nat -A KUBE-SVC-A -j KUBE-SEP-A
	$i -w -t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination $to
done
nft -f - <<EOF
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		ct state invalid drop
	}
	chain filter_FORWARD {
		type filter hook forward priority 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		ct state invalid drop
	}
	chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; }
	chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }
}
EOF`

// dumpOthers prints other people's rules, without counters and built-in chains.
const dumpOthers = `nft -s list table inet firewalld
for i in ipt ip6t; do $i-save; done 2>/dev/null | sed -e 's/\[[0-9:]*\]//' | grep -v FLANNELD | grep -e '^[*]' -e '^-A' -e '^:.* - ' |
	awk '/^[*]/ { table = $0; next } { print table, $0 }'`

const undoOthers = `nft delete table inet firewalld
for i in ipt ip6t; do for t in nat filter; do $i -w -t $t -F; $i -w -t $t -X; done; done`

func testOthers(t *testing.T, w *world, s ServicesSubject) {
	finally(t, w.a, "sh", "-c", s.ipt(undoOthers))
	netnstest.Run(t, w.a, "sh", "-ec", s.ipt(others))
	change(t, w.a, "route add 10.96.0.0/16 dev eth0\n-6 route add fd96::/64 dev eth0", "route del 10.96.0.0/16 dev eth0\n-6 route del fd96::/64 dev eth0")
	dump := func() string { return netnstest.Run(t, w.a, "sh", "-ec", s.ipt(dumpOthers)) }
	works := func(when string) {
		t.Helper()
		for name, c := range map[string]struct {
			road
			want string
		}{
			"Docker's published port":                {road{w.stranger, at(both()[0].a, 8099)}, server("a2", 3)},
			"Docker's published port from the host":  {road{w.a, at(both()[0].a, 8099)}, server("a2", 3)},
			"Kubernetes' cluster IP":                 {road{w.a1, at(netip.MustParseAddr("10.96.0.1"), 443)}, server("b1", 4)},
			"Kubernetes' cluster IP from the host":   {road{w.a, at(netip.MustParseAddr("10.96.0.1"), 443)}, server("b1", 4)},
			"Kubernetes' IPv6 cluster IP":            {road{w.a1, at(netip.MustParseAddr("fd96::1"), 443)}, server("b1", 4)},
			"Kubernetes' IPv6 cluster IP, from host": {road{w.a, at(netip.MustParseAddr("fd96::1"), 443)}, server("b1", 4)},
		} {
			who, _, err := call(c.from, "tcp", netip.Addr{}, c.dest)
			if err != nil || who != c.want {
				t.Errorf("%s: %s: %q answers (%v)", when, name, who, err)
			}
		}
	}
	before, whole := dump(), s.dump(t, w.a)
	works("before")
	b := openBalancer(t, w, w.a, s)
	b.sync(all(w))
	if after := dump(); after != before {
		t.Errorf("other people's rules changed:\n%s", difference(before, after))
	}
	works("beside ours")
	worksAll(t, w)
	for range 2 {
		b.do(func() error { return b.b.Remove(t.Context()) })
		s.expectDump(t, "after removal", w.a, whole)
	}
	works("after removal")
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

// testServicesFlushed syncs as the daemon does, until it is as it was.
func testServicesFlushed(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	want := all(w)
	b.sync(want)
	before := s.dump(t, w.a)
	for name, command := range s.Flushes {
		netnstest.Run(t, w.a, "sh", "-ec", command)
		if s.dump(t, w.a) == before {
			t.Errorf("%s changes nothing", name)
		}
		back := false
		for end := time.Now().Add(10 * time.Second); !back && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			b.sync(want)
			back = s.dump(t, w.a) == before
		}
		if !back {
			s.expectDump(t, "after "+name, w.a, before)
		}
		flushConnections(t, w)
		if why := broken(w); why != "" {
			t.Errorf("after %s: %s", name, why)
		}
	}
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

// testBesideFilter has both at work: neither undoes what the other did.
func testBesideFilter(t *testing.T, w *world, s ServicesSubject) {
	f := open(t, w, Subject{Open: s.OpenFilter})
	b := openBalancer(t, w, w.a, s)
	r := wanted()
	r.Names, r.OffLink = nil, nil
	f.sync(r)
	filtered := s.dump(t, w.a)
	b.sync(all(w))
	f.sync(r)
	b.sync(all(w))
	before := s.dump(t, w.a)
	writes := CountWrites(t, w.a)
	wrote := s.writes(b)
	for range 3 {
		f.sync(r)
		b.sync(all(w))
	}
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if n := s.writes(b) - wrote; n != 0 {
		t.Errorf("%d programs wrote, want none", n)
	}
	s.expectDump(t, "rules changed", w.a, before)
	worksAll(t, w)
	for _, f := range both() {
		expectCall(t, "a container to the world's node port", w.stranger, at(f.a, nodePort), server("b1", 0), f.tunnelA)
		expectSeen(t, f.name+" pod to the world", w.a1, netip.Addr{}, f.stranger, f.a.String())
		expectCall(t, "a container", w.a1, at(f.virtual(1), port), server("a2", 0), f.a1)
		if strangerGetsIn(t, w, f) {
			t.Errorf("%s: packets of a stranger are accepted", f.name)
		}
	}
	b.do(func() error { return b.b.Remove(t.Context()) })
	s.expectDump(t, "after removal of services", w.a, filtered)
	b.sync(all(w))
	f.do(func() error { return f.f.Remove(t.Context()) })
	b.sync(all(w))
	worksAll(t, w)
}
