package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// dice makes random values of a small world, in which much collides.
type dice struct{ *rand.Rand }

func (d dice) pick(list ...string) string { return list[d.IntN(len(list))] }

func (d dice) some(most int, f func() string) (list []string) {
	for range d.IntN(most + 1) {
		if s := f(); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func (d dice) addr() string {
	if d.IntN(3) == 0 {
		return fmt.Sprintf("fd00:1::%x", 1+d.IntN(12))
	}
	return fmt.Sprintf("10.1.0.%d", 1+d.IntN(12))
}

func (d dice) addrs(most int) (list []netip.Addr) {
	for _, s := range d.some(most, d.addr) {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func (d dice) name() string    { return d.pick("web", "db", "ns", "a", "b", "c") }
func (d dice) network() string { return d.pick("default", "back", "dns", "b") }
func (d dice) tenant() string  { return d.pick("default", "default", "default", "blue") }
func (d dice) label() string   { return d.pick("x", "y") }

func (d dice) labels(most int) map[string]string {
	var m map[string]string
	for _, k := range d.some(most, d.label) {
		if m == nil {
			m = map[string]string{}
		}
		m[k] = d.pick("1", "2")
	}
	return m
}

// alias is a name for an external service: ours or not, there or not, or one
// that leads back.
func (d dice) alias() string {
	if d.IntN(4) == 0 {
		return d.pick("example.com", "Example.com.", "1.0.1.10.in-addr.arpa", "cluster.local", "a.default.svc")
	}
	return d.name() + "." + d.network() + d.pick("", ".svc", ".svc", ".blue") + ".cluster.local"
}

func (d dice) endpoint() *endpoint.Endpoint {
	e := &endpoint.Endpoint{Tenant: d.tenant(), Network: d.network(), Host: d.pick("host1", "host2", "host3"),
		Container: fmt.Sprintf("%012d-more", d.IntN(12)), IfName: "eth0", Addresses: d.addrs(3), Names: d.some(3, d.name), Labels: d.labels(2)}
	e.ID = e.Host + "," + e.Container + "," + e.IfName
	if d.IntN(2) == 0 {
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[service.LabelPort+"x"] = d.pick("8080", "8081", "80", "x", "0")
	}
	if d.IntN(3) == 0 {
		e.Namespace = d.pick("prod", "default", "svc", "pod")
	}
	for _, name := range d.some(2, d.name) {
		if e.Unhealthy == nil {
			e.Unhealthy = map[string]string{}
		}
		if d.IntN(3) == 0 {
			e.Unhealthy[name] = "sick"
		}
	}
	return e
}

func (d dice) service() *service.Service {
	if d.IntN(4) == 0 {
		return &service.Service{Tenant: d.tenant(), Network: d.network(), Name: d.name(), External: d.alias()}
	}
	s := &service.Service{Tenant: d.tenant(), Network: d.network(), Name: d.name(), Selector: d.labels(2), Endpoints: d.addrs(2)}
	switch d.IntN(4) {
	case 0:
		s.Ports = []service.Port{{Name: "http", Port: 80, Target: 8080, Protocol: "tcp"}}
	case 1:
		s.Ports = []service.Port{{Name: "http", Port: 80, TargetName: "x", Protocol: "tcp"}}
	}
	if s.Headless = d.IntN(2) == 0; !s.Headless && d.IntN(2) == 0 {
		s.VirtualIPs = addrs(d.addr())
	}
	return s
}

func (d dice) added() *Name {
	n := &Name{Tenant: d.tenant(), Network: d.network(), Name: d.name(), Addresses: d.addrs(2)}
	for range d.IntN(3) {
		n.Name += "." + d.name()
	}
	return n
}

// mix adds, replaces and removes some values and keeps the others. There are
// most of the time between 20 and 40.
func mix[T any](d dice, list []*T, change int, create func() *T, order func(a, b *T) int) []*T {
	list = slices.Clone(list)
	if len(list) == 0 {
		change = 20
	}
	for range d.IntN(change + 1) {
		if d.IntN(40) < len(list)-10 {
			i := d.IntN(len(list))
			list = slices.Delete(list, i, i+1)
			continue
		}
		v := create()
		i, there := slices.BinarySearchFunc(list, v, order)
		if there {
			list[i] = v
		} else {
			list = slices.Insert(list, i, v)
		}
	}
	return list
}

func (d dice) next(s State) State {
	s.Endpoints = mix(d, s.Endpoints, 4, d.endpoint, func(a, b *endpoint.Endpoint) int {
		return compareKeys(a.Tenant, a.Network, a.ID, b.Tenant, b.Network, b.ID)
	})
	s.Services = mix(d, s.Services, 2, d.service, func(a, b *service.Service) int {
		return compareKeys(a.Tenant, a.Network, a.Name, b.Tenant, b.Network, b.Name)
	})
	s.Names = mix(d, s.Names, 2, d.added, func(a, b *Name) int {
		return compareKeys(a.Tenant, a.Network, a.Name, b.Tenant, b.Network, b.Name)
	})
	switch d.IntN(12) {
	case 0, 1, 2:
		s.Dead = map[string]string{}
		for _, h := range d.some(2, func() string { return d.pick("host1", "host2", "host3") }) {
			s.Dead[h] = "gone"
		}
	case 3:
		s.Tenant = d.tenant()
	case 4:
		s.PreferLocal = !s.PreferLocal
	case 5:
		s.Networks = prefixes(d.pick("10.1.0.0/16", "10.1.0.0/29 fd00::/14", "10.0.0.0/8 fd00:1::/64"))
	case 6:
		s.Nameservers = d.addrs(2)
	case 7: // not even sorted
		d.Shuffle(len(s.Endpoints), func(i, j int) { s.Endpoints[i], s.Endpoints[j] = s.Endpoints[j], s.Endpoints[i] })
	case 8: // everything written anew
		for i, e := range s.Endpoints {
			c := *e
			s.Endpoints[i] = &c
		}
	}
	return s
}

// world are all names that a zone of such a State may have, and some more.
func world() (names [][]byte) {
	labels := []string{"web", "db", "ns", "a", "b", "c", "nope", "_http._tcp", "_tcp"}
	spaces := []string{"default", "back", "dns", "b", "prod", "svc", "pod", "other"}
	for i := range 12 {
		labels = append(labels, fmt.Sprintf("%012d", i), fmt.Sprintf("10-1-0-%d", i+1), fmt.Sprintf("fd00-1--%x", i+1))
		names = append(names, mustWire(fmt.Sprintf("%d.0.1.10.in-addr.arpa", i+1)),
			mustWire(fmt.Sprintf("%x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", i+1)))
	}
	var below []string
	for _, sp := range spaces {
		below = append(below, sp)
		for _, l := range labels {
			below = append(below, l+"."+sp)
			for _, m := range []string{"web", "a", "b"} {
				below = append(below, l+"."+m+"."+sp)
			}
		}
	}
	for _, base := range []string{"cluster.local", "blue.cluster.local"} {
		names = append(names, mustWire(base))
		for _, b := range below {
			names = append(names, mustWire(b+"."+base), mustWire(b+".svc."+base))
			if len(b) < 32 {
				names = append(names, mustWire(b+".pod."+base))
			}
		}
	}
	return names
}

func TestAnySequenceOfStatesEndsInTheZoneOfTheLast(t *testing.T) {
	names := world()
	types := []uint16{typeA, typeAAAA, typePTR, typeSRV, typeANY}
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for seed := range uint64(5) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		s := State{Domain: "cluster.local", Tenant: "default", Networks: prefixes("10.1.0.0/16 fd00::/16"), Local: "host1"}
		var b Builder
		var serial uint32
		for round := range rounds {
			s = d.next(s)
			z := b.Build(s)
			if z.Serial() < serial {
				t.Fatalf("seed %d, round %d: the serial number fell from %d to %d", seed, round, serial, z.Serial())
			}
			serial = z.Serial()
			fresh := new(Builder).Build(s)
			for _, n := range names {
				for _, q := range types {
					if got, want := asked(z, n, q), asked(fresh, n, q); got != want {
						t.Fatalf("seed %d, round %d: %s %s is %s, but built afresh %s", seed, round, Text(n), typeText(q), got, want)
					}
				}
			}
			if again := b.Build(s); again != z {
				t.Fatalf("seed %d, round %d: the same state made another zone", seed, round)
			}
		}
	}
}

// asked is ask without the text of names that do not exist, which are most.
func asked(z *Zone, wire []byte, qtype uint16) string {
	a, ours := z.Lookup(wire, qtype)
	switch {
	case !ours:
		return "upstream"
	case a.NameError && a.Set.Type == 0:
		return "NXDOMAIN"
	}
	return fmt.Sprintf("%s + %s, unknown %v, NXDOMAIN %v, nothing %v, outside %s", shown(a.sets()), shown(a.Extra), a.Unknown, a.NameError, a.NoData, Text(a.Outside))
}

func TestNoNameBelowOneThatDoesNotExist(t *testing.T) { // RFC 8020
	names := world()
	d := dice{rand.New(rand.NewPCG(7, 7))}
	s := State{Domain: "cluster.local", Tenant: "default", Networks: prefixes("10.1.0.0/16 fd00::/16")}
	var b Builder
	for range 40 {
		s = d.next(s)
		z := b.Build(s)
		for _, n := range names {
			a, ours := z.Lookup(n, typeA)
			if !ours || a.NameError {
				continue
			}
			for up := n; len(up) > 1; up = up[1+int(up[0]):] {
				if a, ours := z.Lookup(up, typeA); ours && a.NameError {
					t.Fatalf("%s exists, but %s does not", Text(n), Text(up))
				}
			}
			if a, _ := z.Lookup(n, typeANY); a.Set.Type == 0 {
				for _, q := range []uint16{typeA, typeAAAA, typePTR, typeSRV, typeTXT, typeNS, typeSOA} {
					if a, _ := z.Lookup(n, q); a.Set.Type != 0 {
						t.Fatalf("%s has %s records, but not any", Text(n), typeText(q))
					}
				}
			}
		}
	}
}

func TestNoRecordIsThereTwiceAndPointersLeadBack(t *testing.T) {
	names := world()
	d := dice{rand.New(rand.NewPCG(3, 9))}
	s := State{Domain: "cluster.local", Tenant: "default", Networks: prefixes("10.1.0.0/16 fd00::/16"), PreferLocal: true, Local: "host1"}
	var b Builder
	for range 40 {
		s = d.next(s)
		z := b.Build(s)
		for _, n := range names {
			for _, q := range []uint16{typeA, typeAAAA, typeSRV, typePTR} {
				a, _ := z.Lookup(n, q)
				seen := map[string]bool{}
				for _, set := range slices.Concat(a.sets(), a.Extra) {
					for _, data := range set.data() {
						k := fmt.Sprintf("%x %d %x", set.Owner, set.Type, data)
						if seen[k] {
							t.Fatalf("%s: %s twice", Text(n), dataText(set.Type, data))
						}
						seen[k] = true
						if set.Type == typePTR && !has(z, data, n) {
							t.Fatalf("%s points to %s, which has another address", Text(n), Text(data))
						}
						if set.Type == typeSRV && !has(z, data[6:], nil) {
							t.Fatalf("%s has the target %s, which has no address", Text(n), Text(data[6:]))
						}
					}
				}
			}
		}
	}
}

// has tells whether a name has the address of a reverse name, or any.
func has(z *Zone, name, rev []byte) bool {
	var at [maxLabels]uint8
	n, _ := split(rev, &at)
	r, _ := reverse(z.nets, rev, at[:n])
	for _, q := range []uint16{typeA, typeAAAA} {
		a, _ := z.Lookup(name, q)
		for _, set := range a.sets() {
			for _, data := range set.data() {
				if have, _ := netip.AddrFromSlice(data); rev == nil || have == r.addr {
					return true
				}
			}
		}
	}
	return false
}
