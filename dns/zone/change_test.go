package zone

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
)

func TestNamesOfADeadHostAreNoAnswersUntilItIsBack(t *testing.T) {
	var b Builder
	alive := example()
	alive.Dead = nil
	dead := alive
	dead.Dead = map[string]string{"host1": "silent", "host2": "silent", "unheard-of": "never there"}
	questions := map[string][2]string{
		"web.default.cluster.local A":                       {"10.1.19.3 10.1.20.3 10.1.21.3 192.0.2.7", "10.1.20.3 10.1.21.3 192.0.2.7"}, // added by hand, too
		"web-1.default.cluster.local AAAA":                  {"fd00:1:19::3", none},
		"two.default.cluster.local A":                       {"10.1.20.6 10.1.20.7", none},
		"10-1-20-7.default.pod.cluster.local A":             {"10.1.20.7", none},
		"7.20.1.10.in-addr.arpa PTR":                        {"two.default.cluster.local.", "nothing 1.10.in-addr.arpa."},
		"headless.default.svc.cluster.local A":              {"10.1.19.3 10.1.20.3 10.1.21.3", "10.1.21.3"},
		"narrow.default.svc.cluster.local AAAA":             {"fd00:1:19::3", none},
		"frontend.default.svc.cluster.local A":              {"10.0.0.80", "10.0.0.80"},
		"listed.default.svc.cluster.local A":                {"10.1.20.6 172.20.0.1 192.0.2.1", "10.1.20.6 172.20.0.1 192.0.2.1"},
		"_http._tcp.narrow.default.svc.cluster.local SRV":   {nx, nx},
		"10-1-20-3.headless.default.svc.cluster.local A":    {"10.1.20.3", none},
		"printer.default.cluster.local A":                   {"10.1.200.1 192.0.2.9", "10.1.200.1 192.0.2.9"},
		"_http._tcp.headless.default.svc.cluster.local SRV": {"", "0 100 80 10-1-21-3.headless.default.svc.cluster.local. + 10-1-21-3.headless.default.svc.cluster.local. A 10.1.21.3"},
	}
	for round, s := range []State{alive, dead, alive, dead} {
		z := b.Build(s)
		for q, want := range questions {
			f := strings.Fields(q)
			if want := want[round%2]; want != "" && ask(z, f[0], typeOfText(t, f[1])) != want {
				t.Errorf("round %d: %s is %s, want %s", round, q, ask(z, f[0], typeOfText(t, f[1])), want)
			}
		}
	}
}

// What was built stays as it was, whatever is built of it.
func TestAZoneNeverChanges(t *testing.T) {
	names := world()
	d := dice{rand.New(rand.NewPCG(5, 5))}
	s := State{Domain: "cluster.local", Tenant: "default", Networks: prefixes("10.1.0.0/16 fd00::/16"), Local: "host1"}
	var b Builder
	for range 10 {
		s = d.next(s)
		s.Tenant = "default"
		z := b.Build(s)
		all := func() []string {
			var list []string
			for _, n := range names {
				if a, _ := z.Lookup(n, typeA); a.NameError {
					continue
				}
				for _, q := range []uint16{typeA, typePTR, typeSRV} {
					list = append(list, asked(z, n, q), told(z.Explain(Text(n), q)))
				}
			}
			return list
		}
		before := all()
		for range 8 {
			s = d.next(s)
			s.Tenant = "default"
			s.Dead = maps.Clone(s.Dead)
			b.Build(s)
		}
		if after := all(); !slices.Equal(before, after) {
			for i := range before {
				if before[i] != after[i] {
					t.Fatalf("%s\nbecame\n%s", before[i], after[i])
				}
			}
		}
	}
}

func TestTheSerialNumberGrowsWithWhatChanges(t *testing.T) {
	b := Builder{Serial: 1000}
	s := example()
	first := b.Build(s)
	if first.Serial() != 1000 {
		t.Errorf("the first is %d", first.Serial())
	}
	same := s
	same.Endpoints, same.Dead = slices.Clone(s.Endpoints), maps.Clone(s.Dead)
	if z := b.Build(same); z != first {
		t.Error("nothing changed, but the zone")
	}
	want := uint32(1000)
	for _, step := range []struct {
		name   string
		change func(*State)
		grows  bool
	}{
		{"another tenant's endpoint", func(s *State) {
			s.Endpoints = append(slices.Clone(s.Endpoints), container(90, "host1", "10.1.19.9", "x", in("blue", "front", "")))
		}, false},
		{"what is said of a dead host", func(s *State) { s.Dead = map[string]string{"host3": "other words"} }, false},
		{"an endpoint less", func(s *State) { s.Endpoints = slices.Clone(s.Endpoints)[1:] }, true},
		{"a name less", func(s *State) { s.Names = s.Names[1:] }, true},
		{"a service less", func(s *State) { s.Services = s.Services[1:] }, true},
		{"a host is back", func(s *State) { s.Dead = nil }, true},
		{"the TTL", func(s *State) { s.TTL = time.Minute }, true},
		{"the networks", func(s *State) { s.Networks = s.Networks[1:] }, true},
		{"the name servers", func(s *State) { s.Nameservers = nil }, true},
		{"the domain", func(s *State) { s.Domain = "other.example" }, true},
		{"the order", func(s *State) { s.PreferLocal = true }, true},
		{"whose names", func(s *State) { s.Tenant = "blue" }, true},
	} {
		step.change(&s)
		if step.grows {
			want++
		}
		z := b.Build(s)
		if z.Serial() != want {
			t.Errorf("%s: %d, want %d", step.name, z.Serial(), want)
			want = z.Serial()
		}
	}
	z := b.Build(s)
	if z.TTL() != 60 || z.NegativeTTL() != 5 {
		t.Errorf("TTL %d, of absence %d", z.TTL(), z.NegativeTTL())
	}
	if got, want := dataText(typeSOA, z.SOA()), "ns.dns.other.example. hostmaster.other.example. 1010 7200 1800 86400 5"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestManyMayAskWhileTheNextIsBuilt(t *testing.T) {
	s := example()
	var b Builder
	z := b.Build(s)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				ask(z, "_http._tcp.headless.default.svc.cluster.local", typeSRV)
				ask(z, "web.default.cluster.local", typeA)
				ask(z, "3.19.1.10.in-addr.arpa", typePTR)
				z.Explain("headless.default.svc.cluster.local", typeA)
			}
		})
	}
	for i := range 50 {
		s.Endpoints = append(slices.Clone(s.Endpoints), container(100+i, "host1", "10.1.19.50", "web", labelled("app=sample"), func(*endpoint.Endpoint) {}))
		b.Build(s)
	}
	group.Wait()
}
