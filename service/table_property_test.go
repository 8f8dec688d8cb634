package service

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/rules"
)

// dice makes random values of a small world, in which much collides.
type dice struct{ *rand.Rand }

func (d dice) pick(list ...string) string { return list[d.IntN(len(list))] }

func (d dice) addr() netip.Addr {
	if d.IntN(3) == 0 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", 1+d.IntN(9)))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", 1+d.IntN(9)))
}

func (d dice) addrs(most int) (list []netip.Addr) {
	for range d.IntN(most + 1) {
		if a := d.addr(); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

func (d dice) virtual() (list []netip.Addr) {
	if d.IntN(4) > 0 {
		list = append(list, netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", d.IntN(5)/4, 1+d.IntN(9))))
	}
	if d.IntN(3) == 0 {
		list = append(list, netip.MustParseAddr(fmt.Sprintf("fd00::%x", 1+d.IntN(5))))
	}
	return list
}

func (d dice) labels() map[string]string {
	m := map[string]string{}
	for range d.IntN(3) {
		m[d.pick("x", "y")] = d.pick("1", "2")
	}
	return m
}

const somebody = "0123456789ab"

func (d dice) endpoint() *endpoint.Endpoint {
	e := &endpoint.Endpoint{Tenant: d.pick("default", "default", "default", "blue"), Network: d.pick("default", "back"), Host: d.pick("host1", "host2", "host3"),
		Container: fmt.Sprintf("%s%d", somebody, d.IntN(10)), IfName: "eth0", Addresses: d.addrs(3), Labels: d.labels()}
	e.ID = e.Host + "," + e.Container + "," + e.IfName
	for range d.IntN(3) {
		if n := d.pick("web", "db", somebody, somebody+"-name"); !slices.Contains(e.Names, n) {
			e.Names = append(e.Names, n)
		}
	}
	if d.IntN(4) == 0 {
		e.Unhealthy = map[string]string{d.pick("a", "b"): "sick"}
	}
	if d.IntN(2) == 0 {
		e.Labels[LabelPort+"http"] = d.pick("81", "82", "no")
	}
	if d.IntN(3) == 0 {
		e.Labels[LabelWeight] = d.pick("1", "2", "3", "101", "much")
	}
	return e
}

func (d dice) service() *Service {
	s := &Service{Tenant: d.pick("default", "default", "default", "blue"), Network: d.pick("default", "back"), Name: d.pick("a", "b", "c", "d", "e"),
		Selector: d.labels(), Endpoints: d.addrs(2), created: d.Int64N(4), Local: d.pick("", LocalCluster, LocalOnly, LocalFirst),
		Balance: d.pick("", BalanceHash, BalanceRoundRobin), Affinity: d.IntN(2)}
	switch d.IntN(8) {
	case 0:
		return &Service{Tenant: s.Tenant, Network: s.Network, Name: s.Name, External: "elsewhere"}
	case 1:
		s.Headless = true
	default:
		s.VirtualIPs = d.virtual()
	}
	for i := range d.IntN(3) {
		p := Port{Name: fmt.Sprint("p", i), Port: 80 + uint16(i), Target: uint16(d.IntN(2)) * 8080, Protocol: d.pick("tcp", "tcp", "udp", "sctp")}
		if p.Target == 0 && d.IntN(2) == 0 {
			p.TargetName = "http"
		}
		if !s.Headless && d.IntN(2) == 0 {
			p.NodePort = NodePortFirst + 10*uint16(i) + uint16(d.IntN(2))
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func (d dice) publication() *Publication {
	return &Publication{Tenant: d.pick("default", "default", "blue"), Host: d.pick("host1", "host1", "host2"), Protocol: d.pick("tcp", "udp"),
		Port: uint16([]int{80, 443, NodePortFirst, 8080}[d.IntN(4)]), Network: d.pick("default", "back"), TargetPort: 80,
		Target: d.pick("web", "db", somebody, somebody+"3", somebody+"-name")}
}

// mix adds, replaces and removes some values and keeps the others. The list is
// long most of the time.
func mix[T any](d dice, list []*T, long, change int, create func() *T, key func(*T) string) []*T {
	list = slices.SortedFunc(slices.Values(list), func(a, b *T) int { return strings.Compare(key(a), key(b)) })
	if len(list) == 0 {
		change = long
	}
	for range d.IntN(change + 1) {
		if d.IntN(2*long) < len(list)-long/2 {
			i := d.IntN(len(list))
			list = slices.Delete(list, i, i+1)
			continue
		}
		v := create()
		i, there := slices.BinarySearchFunc(list, key(v), func(o *T, k string) int { return strings.Compare(key(o), k) })
		if there {
			list[i] = v
		} else {
			list = slices.Insert(list, i, v)
		}
	}
	return list
}

func (d dice) next(s State) State {
	s.Endpoints = mix(d, s.Endpoints, 24, 4, d.endpoint, func(e *endpoint.Endpoint) string { return e.Key("") })
	s.Services = mix(d, s.Services, 8, 2, d.service, func(s *Service) string { return s.Key("") })
	s.Published = mix(d, s.Published, 5, 1, d.publication, func(p *Publication) string { return p.Key("") })
	switch d.IntN(30) {
	case 0, 1, 2, 3, 4, 5:
		s.Dead = map[string]string{}
		for range d.IntN(3) {
			s.Dead[d.pick("host1", "host2", "host3")] = "silent"
		}
	case 6:
		s.Tenant = d.pick("default", "blue")
	case 7:
		s.Host = d.pick("host1", "host2")
	case 8, 9:
		s.Networks = prefixes(d.pick("10.0.0.0/16 fd00::/64", "10.0.0.0/16", "10.0.0.0/30", ""))
		s.Hosts = addrs(d.pick("", "10.0.0.2 10.0.0.3", "fd00::2"))
	case 10, 11:
		s.Subnets = prefixes(d.pick("10.1.0.0/29", "fd00:1::/126 10.1.0.0/30", ""))
	case 12, 13:
		s.Nodes = addrs(d.pick("192.0.2.1", "192.0.2.1 2001:db8::1", "10.0.0.3 192.0.2.7", ""))
	case 14, 15:
		s.Pods = prefixes(d.pick("10.1.0.0/16", "fd00:1::/64", "10.1.0.0/16 fd00:1::/64"))
	case 16: // everything written anew
		for i, e := range s.Endpoints {
			c := *e
			s.Endpoints[i] = &c
		}
	case 17:
		for i, v := range s.Services {
			c := *v
			s.Services[i] = &c
		}
	case 18: // not even sorted
		d.Shuffle(len(s.Services), func(i, j int) { s.Services[i], s.Services[j] = s.Services[j], s.Services[i] })
	case 19:
		s.Endpoints, s.Dead = nil, nil
	}
	return s
}

func TestAnySequenceOfStatesEndsInTheFrontendsOfTheLast(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	seen := map[string]int{}
	for seed := range uint64(8) {
		d := dice{rand.New(rand.NewPCG(seed, 5))}
		s := State{Tenant: "default", Host: "host1", Networks: prefixes("10.0.0.0/16 fd00::/64"), Pods: prefixes("10.1.0.0/16"),
			Subnets: prefixes("10.1.0.0/29"), Nodes: addrs("192.0.2.1")}
		var table Table
		var former []*rules.Frontend
		for round := range rounds {
			s = d.next(s)
			before := written(t, s)
			got, problems := table.Build(s)
			want, afresh := new(Table).Build(s)
			if a, b := shown(got, problems), shown(want, afresh); a != b {
				t.Fatalf("seed %d, round %d: %s\nbut built afresh\n%s", seed, round, a, b)
			}
			for i, f := range got.Frontends {
				if i > 0 && got.Frontends[i-1].Compare(f) >= 0 {
					t.Fatalf("seed %d, round %d: not sorted, or twice: %v", seed, round, f)
				}
				j, there := slices.BinarySearchFunc(former, f, (*rules.Frontend).Compare)
				if there && former[j] != f && former[j].Equal(f) {
					t.Fatalf("seed %d, round %d: %v did not change and has another pointer", seed, round, f)
				}
			}
			if again, _ := table.Build(s); len(again.Frontends) > 0 && &again.Frontends[0] != &got.Frontends[0] {
				t.Fatalf("seed %d, round %d: the same state made another list", seed, round)
			}
			if written(t, s) != before {
				t.Fatalf("seed %d, round %d: the state was written to", seed, round)
			}
			former = got.Frontends
			seen["frontends"] += len(former)
			for _, p := range problems {
				_, text, _ := strings.Cut(p.Error(), ": ")
				seen[strings.Join(strings.Fields(text)[:2], " ")]++
			}
			checkBehind(t, s, got)
		}
		for _, n := range []int{len(table.labels.takers), len(table.handles.takers)} {
			if n > 40 {
				t.Errorf("seed %d: takers are left behind: %d", seed, n)
			}
		}
		s.Endpoints, s.Services, s.Published = nil, nil, nil
		if table.Build(s); len(table.labels.takers)+len(table.labels.endpoints)+len(table.handles.takers)+len(table.handles.endpoints)+
			len(table.places)+len(table.contested)+len(table.troubled)+len(table.odd)+len(table.own)+len(table.services)+len(table.published) > 0 {
			t.Errorf("seed %d: something is left behind: %+v", seed, table)
		}
	}
	t.Log(seen)
}

// checkBehind compares what describe says with the frontends, where nothing
// else has a say.
func checkBehind(t *testing.T, s State, got rules.Services) {
	t.Helper()
	for _, v := range s.Services {
		if v.Tenant != s.Tenant || v.Local != "" && v.Local != LocalCluster || len(v.Ports) != 1 || v.Headless || len(v.VirtualIPs) == 0 {
			continue
		}
		ready := map[netip.Addr]bool{}
		for _, c := range Behind(v, s) {
			if c.Ready && c.Addr.Is4() == v.VirtualIPs[0].Is4() {
				ready[c.Addr] = true
			}
			if !c.Ready && c.Why == "" {
				t.Fatalf("%v is not ready without a reason", c)
			}
		}
		at := &rules.Frontend{Addr: v.VirtualIPs[0], Port: v.Ports[0].Port, Protocol: protocolNumber(v.Ports[0].Protocol)}
		i, there := slices.BinarySearchFunc(got.Frontends, at, (*rules.Frontend).Compare)
		if !there || got.Frontends[i].Node || slices.ContainsFunc(s.Services, func(o *Service) bool { return o != v && slices.Contains(o.VirtualIPs, at.Addr) }) {
			continue
		}
		slots := map[netip.Addr]bool{}
		for _, slot := range got.Frontends[i].Slots {
			slots[slot.Addr()] = true
		}
		if !maps.Equal(slots, ready) {
			t.Fatalf("%+v leads to %v, but ready are %v", v, slots, ready)
		}
	}
}

func written(t *testing.T, s State) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func shown(s rules.Services, problems []error) string {
	var b strings.Builder
	fmt.Fprintln(&b, s.Networks, s.Pods, s.Subnets, "local", s.Local)
	for _, f := range s.Frontends {
		fmt.Fprintln(&b, text(f))
	}
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func text(f *rules.Frontend) string {
	s := fmt.Sprintf("%s/%s ->", netip.AddrPortFrom(f.Addr, f.Port), protocolName(f.Protocol))
	if f.Node {
		s = "node " + s
	}
	for _, slot := range f.Slots {
		s += " " + slot.String()
	}
	if f.Balance != rules.Random || f.Affinity != 0 {
		s += fmt.Sprintf(" (balance %d, affinity %v)", f.Balance, f.Affinity)
	}
	return s
}
