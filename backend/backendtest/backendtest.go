// Package backendtest is the contract that every backend driver passes, tried
// on hosts made of network namespaces.
package backendtest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// Suite is what the contract must know of a driver.
type Suite struct {
	Driver  func() backend.Driver
	Type    string          // of the backend, in configuration and leases
	Options json.RawMessage // the configuration's Backend; nil: defaults
	// Wrong are Backend options that must be refused, by the field to name.
	Wrong map[string]string
	// Former are Backend options whose device is another than that of Options;
	// nil: there are none.
	Former json.RawMessage
	// Beside are Backend options of another network of the same hosts, which
	// Second makes devices for; nil: the protocol has no identifier.
	Beside json.RawMessage
	Second func() backend.Driver
	// NoDevice: there is no interface that could be deleted.
	NoDevice bool
	// Only the named families, IPv4, IPv6, Dual; nil: all.
	Only []string
	// Damage deletes or breaks one kind of kernel object each, on a host that
	// has peer as one of its peers: programs to run there.
	Damage map[string]func(h *Host, peer subnet.Lease) []string
	// Hostile are BackendData that must be skipped, besides broken JSON.
	Hostile map[string]string
	// Data makes BackendData of an invented peer; nil: peers need none.
	Data func(n int) json.RawMessage
	// Alike: hosts may have equal BackendData.
	Alike bool
	// MostWrites for one peer and family; 0: 4.
	MostWrites int
	// Many is how many peers are invented where there shall be many; 0: 5,000.
	Many int
	// Near: peers are only served on the underlay's own link.
	Near bool
}

// Run tries the driver. It needs root.
func Run(t *testing.T, s Suite) {
	netnstest.NeedRoot(t)
	for name, fams := range map[string]Families{"IPv4": {true, false}, "IPv6": {false, true}, "Dual": {true, true}} {
		if s.Only != nil && !slices.Contains(s.Only, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			tests := map[string]func(*testing.T, Suite, Families){
				"TrafficBothWaysAndFullSize":      testTraffic,
				"RestartAdoptsWithoutLoss":        testRestart,
				"PeerAddedMovedRemoved":           testMoves,
				"StaleEntriesGo":                  testStale,
				"DamageIsRepaired":                testDamage,
				"CloseForwardsAndCleanupRemoves":  testCleanup,
				"WrongOptionsAreRefusedUntouched": testWrong,
				"NothingChangedNothingWritten":    testWrites,
				"HostilePeersAreSkipped":          testHostile,
			}
			if !s.NoDevice {
				tests["DeletedDeviceComesBackAsItWas"] = testDeviceDeleted
			}
			if s.Former != nil {
				tests["FormerConfigurationLeavesNothing"] = testFormer
			}
			if s.Beside != nil {
				tests["TwoNetworksBesideEachOther"] = testBeside
			}
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					t.Parallel() // much of it is waiting
					test(t, s, fams)
				})
			}
		})
	}
}

func testTraffic(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 3)
	c.up(t)
	for _, h := range c.Hosts {
		for _, o := range c.Hosts {
			if h != o {
				h.Reach(t, o)
			}
		}
	}
	a, b := c.Hosts[0], c.Hosts[1]
	for _, n := range b.Own.Subnets {
		headers := 28 // IP and ICMP
		if n.Addr().Is6() {
			headers = 48
		}
		most := a.Device.Info().MTU - headers
		if err := a.ping(t.Context(), n, "-c", "2", "-i", "0.01", "-M", "do", "-s", fmt.Sprint(most)); err != nil {
			t.Errorf("a packet of %d bytes does not cross: %v%s", most+headers, err, a.State(t))
		}
		if err := a.ping(t.Context(), n, "-c", "1", "-M", "do", "-s", fmt.Sprint(most+1)); err == nil {
			t.Errorf("a packet of %d bytes crosses, more than Info().MTU says", most+headers+1)
		}
	}
	// Host processes reach pods too, with the host's address in its subnet.
	for _, n := range b.Own.Subnets {
		netnstest.Run(t, a.NS, "ping", "-n", "-q", "-c", "1", "-W", "1", n.Addr().Next().Next().String())
	}
}

func testRestart(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	c.up(t)
	a, b := c.Hosts[0], c.Hosts[1]
	before := a.Device.Info()
	a.Reach(t, b)
	var waits []func() error
	for _, n := range b.Own.Subnets {
		waits = append(waits, a.StartPing(t, n, 300))
	}
	for range 3 {
		if err := a.Device.Close(); err != nil {
			t.Fatal(err)
		}
		a.Open(t)
		a.Sync(t, a.Peers()...)
	}
	for _, wait := range waits {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
	if after := a.Device.Info(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("restart changed Info from %+v to %+v", before, after)
	}
}

func testMoves(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 3)
	c.up(t)
	a, b, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	a.Sync(t)
	for _, n := range b.Own.Subnets {
		if a.ping(t.Context(), n, "-c", "1") == nil {
			t.Errorf("%s is still reached after its lease has gone", n)
		}
	}
	a.Sync(t, b.Own)
	a.Reach(t, b)

	// The third host takes over b's subnets, with another address and MAC.
	moved := b.Own
	moved.PublicIPs, moved.Data, moved.Revision = third.Own.PublicIPs, third.Own.Data, 99
	ip(t, b.NS, "link", "set", "pod0", "down")
	for _, n := range moved.Subnets {
		third.addPod(t, n)
	}
	third.Own.Subnets = moved.Subnets
	third.Sync(t, a.Own)
	a.Sync(t, moved)
	for _, n := range moved.Subnets {
		if err := a.ping(t.Context(), n, "-c", "6", "-i", "0.2"); err != nil {
			t.Errorf("moved subnet %s: %v%s", n, err, a.State(t))
		}
	}
	if err := b.Device.Close(); err != nil {
		t.Error(err)
	}
}

func testStale(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 3)
	c.up(t)
	a, b, gone := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	both := a.State(t)
	a.Sync(t, b.Own)
	alone := a.State(t)
	a.Sync(t, b.Own, gone.Own)
	if got := a.State(t); lines(got) != lines(both) {
		t.Errorf("removing and adding a peer changed the kernel\nfrom %s\nto %s", both, got)
	}
	a.Device.Close()
	a.Open(t)
	a.Sync(t, b.Own)
	if got := a.State(t); lines(got) != lines(alone) {
		t.Errorf("a peer that left while nobody looked has left something:\n%s\nwanted %s", got, alone)
	}
	a.Reach(t, b)
}

func testDamage(t *testing.T, s Suite, fams Families) {
	for name, damage := range s.Damage {
		t.Run(name, func(t *testing.T) {
			c := NewCluster(t, s, fams, 2)
			c.up(t)
			a, b := c.Hosts[0], c.Hosts[1]
			before := lines(a.State(t))
			for _, line := range damage(a, b.Own) {
				args := strings.Fields(line)
				netnstest.Run(t, a.NS, args[0], args[1:]...)
			}
			if lines(a.State(t)) == before && !strings.HasPrefix(name, "sysctl") {
				t.Errorf("the damage did none: %s", a.State(t))
			}
			a.Device.Forget()
			a.Sync(t, a.Peers()...)
			a.Reach(t, b)
			b.Reach(t, a)
			if after := lines(a.State(t)); after != before {
				t.Errorf("not all is as before the damage:\n%s\nbefore:\n%s", after, before)
			}
			w := a.writes(t)
			a.Device.Forget()
			a.Sync(t, a.Peers()...)
			if n := a.writes(t) - w; n != 0 {
				t.Errorf("%d writes after the repair", n)
			}
		})
	}
}

func testDeviceDeleted(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	c.up(t)
	a, b := c.Hosts[0], c.Hosts[1]
	info := a.Device.Info()
	for _, name := range a.Links(t) {
		ip(t, a.NS, "link", "del", name)
	}
	a.Device.Forget()
	a.Sync(t, a.Peers()...)
	if after := a.Device.Info(); fmt.Sprint(after) != fmt.Sprint(info) {
		t.Errorf("Info was %+v and is %+v", info, after)
	}
	a.Reach(t, b)
	b.Reach(t, a)

	// And while nobody looked: what peers know still holds.
	a.Device.Close()
	for _, name := range a.Links(t) {
		ip(t, a.NS, "link", "del", name)
	}
	a.Open(t)
	a.Sync(t, a.Peers()...)
	if after := a.Device.Info(); fmt.Sprint(after) != fmt.Sprint(info) {
		t.Errorf("after a restart Info was %+v and is %+v", info, after)
	}
	b.Reach(t, a)
}

func testCleanup(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	a, b := c.Hosts[0], c.Hosts[1]
	clean := lines(a.State(t))
	c.up(t)
	a.Reach(t, b)
	if err := a.Device.Close(); err != nil {
		t.Fatal(err)
	}
	a.Reach(t, b)
	for range 2 { // it may be called again
		a.Cleanup(t)
	}
	ip(t, a.NS, "link", "set", "pod0", "mtu", "1500")
	if got := lines(a.State(t)); got != clean {
		t.Errorf("left behind:\n%s\nwas:\n%s", got, clean)
	}
}

func testWrites(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 1)
	c.up(t)
	h := c.Hosts[0]
	n := cmp.Or(s.Many, 5000)
	peers := h.invented(n + 1)
	if s.Near {
		ip(t, h.NS, "route", "add", "172.16.0.0/12", "dev", "eth0")
		ip(t, h.NS, "-6", "route", "add", "fd78::/16", "dev", "eth0")
	}
	sync := func(peers []subnet.Lease) uint64 {
		t.Helper()
		before := h.writes(t)
		h.Sync(t, peers...)
		return h.writes(t) - before
	}
	most := uint64(max(s.MostWrites, 4)) * uint64(len(c.Config.Ranges))
	const once = 10 // addresses and the like
	if w := sync(peers[:n]); w < uint64(n) || w > most*uint64(n)+once {
		t.Errorf("%d writes for the first %d peers, want %d to %d", w, n, n, most*uint64(n)+once)
	}
	if w := sync(peers[:n]); w != 0 {
		t.Errorf("%d writes when nothing changed", w)
	}
	if w := sync(peers); w == 0 || w > most {
		t.Errorf("%d writes for one more among %d peers, want 1 to %d", w, n, most)
	}
	if w := sync(append(peers[:100:100], peers[101:]...)); w == 0 || w > most {
		t.Errorf("%d writes for one less, want 1 to %d", w, most)
	}
	renewed := append(peers[:100:100], peers[101:]...)
	for i := range renewed {
		renewed[i].Revision += 1000
	}
	if w := sync(renewed); w != 0 {
		t.Errorf("%d writes for renewed leases", w)
	}
	h.Device.Forget()
	if w := sync(renewed); w != 0 {
		t.Errorf("%d writes after looking at an undamaged kernel", w)
	}
}

// invented makes leases of hosts that do not exist, sorted by key.
func (h *Host) invented(n int) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		l := subnet.Lease{Type: h.cluster.suite.Type, Key: fmt.Sprintf("/coreos.com/network/subnets/invented-%06d", i), Revision: int64(i)}
		for _, r := range h.cluster.Config.Ranges {
			raw := r.Network.Addr().AsSlice()
			public := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
			if r.Network.Addr().Is4() {
				// 10.1.n.0/24 has room for 256: longer subnets, then.
				raw[2], raw[3] = byte((i+4096)>>6), byte(i<<2)
			} else {
				raw[6], raw[7] = byte((i+16)>>8), byte(i+16)
				public = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x78, 14: byte(i >> 8), 15: byte(i)})
			}
			a, _ := netip.AddrFromSlice(raw)
			bits := r.SubnetLen
			if a.Is4() {
				bits = 30
			}
			l.Subnets = append(l.Subnets, netip.PrefixFrom(a, bits))
			l.PublicIPs = append(l.PublicIPs, public)
		}
		if data := h.cluster.suite.Data; data != nil {
			l.Data = subnet.BackendData{V4: data(i), V6: data(i)}
		}
		out[i] = l
	}
	return out
}

func testHostile(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	c.up(t)
	a, b := c.Hosts[0], c.Hosts[1]
	before := lines(a.State(t))
	bad := map[string]func(l *subnet.Lease){
		"another type":     func(l *subnet.Lease) { l.Type = "no-such" },
		"our public IP":    func(l *subnet.Lease) { l.PublicIPs = a.Own.PublicIPs },
		"a peer's address": func(l *subnet.Lease) { l.PublicIPs = b.Own.PublicIPs },
		"broadcast":        func(l *subnet.Lease) { l.PublicIPs = []netip.Addr{netip.MustParseAddr("192.168.77.255")} },
		"the link itself":  func(l *subnet.Lease) { l.PublicIPs = []netip.Addr{netip.MustParseAddr("192.168.77.0")} },
		"to everybody":     func(l *subnet.Lease) { l.PublicIPs = everybody() },
		"our subnet":       func(l *subnet.Lease) { l.Subnets = a.Own.Subnets },
		"a peer's subnet":  func(l *subnet.Lease) { l.Subnets = b.Own.Subnets },
		"no public IP":     func(l *subnet.Lease) { l.PublicIPs = nil },
		"outside":          func(l *subnet.Lease) { l.Subnets = outside(l.Subnets) },
		"the network":      func(l *subnet.Lease) { l.Subnets = networks(c.Config) },
		"public IP inside": func(l *subnet.Lease) { l.PublicIPs = insides(c.Config) },
		"invalid":          func(l *subnet.Lease) { l.Subnets, l.PublicIPs = make([]netip.Prefix, 2), make([]netip.Addr, 2) },
	}
	if s.Data != nil {
		data := map[string]string{"no data": "", "broken JSON": `{"`, "a number": "7", "null": "null", "1 MB": `{"x":"` + strings.Repeat("x", 1<<20) + `"}`}
		for name, value := range s.Hostile {
			data[name] = value
		}
		for name, value := range data {
			bad[name] = func(l *subnet.Lease) { l.Data = subnet.BackendData{V4: raw(value), V6: raw(value)} }
		}
	}
	if s.Data != nil && !s.Alike {
		bad["our data"] = func(l *subnet.Lease) { l.Data = a.Own.Data }
		bad["a peer's data"] = func(l *subnet.Lease) { l.Data = b.Own.Data }
	}
	peers := []subnet.Lease{b.Own}
	for name, spoil := range bad {
		l := a.invented(1)[0]
		// Before b's by key, but created later: the elder has it.
		l.Key, l.Created = "/coreos.com/network/subnets/0-"+name, 1000
		spoil(&l)
		peers = append(peers, l)
	}
	for range 2 {
		err := a.Device.Sync(t.Context(), &a.Own, Peers(peers...))
		told := map[string]bool{}
		for _, e := range split(err) {
			pe, ok := errors.AsType[*backend.PeerError](e)
			if !ok {
				t.Errorf("not a *backend.PeerError: %v", e)
				continue
			}
			told[strings.TrimPrefix(pe.Peer.Key, "/coreos.com/network/subnets/0-")] = true
			if len(pe.Error()) > 600 {
				t.Errorf("error of %d bytes: %.200s…", len(pe.Error()), pe)
			}
		}
		for name := range bad {
			// Without a subnet of any family there is nothing to serve, nor to report.
			if !told[name] && name != "invalid" {
				t.Errorf("%s: not reported", name)
			}
		}
		if told[b.Own.Key] {
			t.Errorf("the good peer is reported: %v", err)
		}
		a.Reach(t, b)
		if got := lines(a.State(t)); got != before {
			t.Errorf("hostile peers changed the kernel:\n%s\nwas:\n%s", got, before)
		}
		a.Device.Forget()
	}
	a.Sync(t, b.Own)
}

// split lists the errors that a Sync joined.
func split(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func outside(s []netip.Prefix) (out []netip.Prefix) {
	for _, p := range s {
		a := netip.MustParseAddr("10.9.9.0")
		if p.Addr().Is6() {
			a = netip.MustParseAddr("fd09:9::")
		}
		out = append(out, netip.PrefixFrom(a, p.Bits()))
	}
	return out
}

func networks(c subnet.Config) (out []netip.Prefix) {
	for _, r := range c.Ranges {
		out = append(out, r.Network)
	}
	return out
}

func everybody() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff05::1")}
}

func insides(c subnet.Config) (out []netip.Addr) {
	for _, r := range c.Ranges {
		out = append(out, subnetOf(r, 200).Addr().Next())
	}
	return out
}

// lines is a state without what changes by itself: order, indexes, counters,
// neighbours that were learnt, addresses that the kernel made.
func lines(state string) string {
	var out []string
	for line := range strings.Lines(state) {
		line = strings.TrimSpace(line)
		if line == "" || transient(line) {
			continue
		}
		out = append(out, normal(line))
	}
	return strings.Join(sorted(out), "\n")
}
