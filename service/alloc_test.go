package service

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store"
)

func prefixes(list string) (all []netip.Prefix) {
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// chooser of these networks: nothing is taken but what is listed, and chance
// always says the same.
func chooser(networks string, chance uint64, taken ...string) Chooser {
	return Chooser{
		Prefix: "/p", Networks: prefixes(networks),
		Taken:  func(key string) (bool, error) { return slices.Contains(taken, strings.TrimPrefix(key, "/p/")), nil },
		Random: func(n uint64) uint64 { return min(chance, n-1) },
	}
}

func TestAServiceWithoutAddressGetsOneFromEachNetwork(t *testing.T) {
	for name, tc := range map[string]struct {
		networks string
		chance   uint64
		taken    []string
		want     string
	}{
		"first":                          {"10.0.0.0/16", 0, nil, "10.0.0.16"},
		"last":                           {"10.0.0.0/16", 1 << 40, nil, "10.0.255.254"},
		"after one that is taken":        {"10.0.0.0/24", 4, []string{"vips/10.0.0.20", "vips/10.0.0.21"}, "10.0.0.22"},
		"around the end":                 {"10.0.0.0/24", 1 << 40, []string{"vips/10.0.0.254"}, "10.0.0.16"},
		"both families":                  {"10.0.0.0/24 fd00:10::/112", 1, nil, "10.0.0.17 fd00:10::11"},
		"IPv6 has no broadcast address":  {"fd00:10::/120", 1 << 40, nil, "fd00:10::ff"},
		"more than 64 bits":              {"fd00:10::/32", 1 << 63, nil, "fd00:10::3fff:ffff:ffff:ffff"},
		"the smallest network with any":  {"10.0.0.32/27", 14, nil, "10.0.0.62"},
		"the smallest that there is":     {"10.0.0.16/28 fd00::/124", 3, nil, "10.0.0.30 fd00::e"},
		"the last of the smallest taken": {"10.0.0.32/27", 14, []string{"vips/10.0.0.62"}, "10.0.0.48"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Service{Tenant: "default", Network: "default", Name: "web"}
			if err := chooser(tc.networks, tc.chance, tc.taken...).Choose(s, nil); err != nil || !slices.Equal(s.VirtualIPs, addrs(tc.want)) {
				t.Errorf("%v, %v, want %s", s.VirtualIPs, err, tc.want)
			}
		})
	}
}

func TestWhatNeedsNoAddressGetsNone(t *testing.T) {
	for name, s := range map[string]*Service{
		"headless": {Headless: true}, "external": {External: "example.org"}, "has one": {VirtualIPs: addrs("10.0.0.99")},
	} {
		had := slices.Clone(s.VirtualIPs)
		if err := chooser("10.0.0.0/24 fd00::/112", 0, "vips/10.0.0.99").Choose(s, nil); err != nil || !slices.Equal(s.VirtualIPs, had) {
			t.Errorf("%s: %v, %v", name, s.VirtualIPs, err)
		}
	}
}

func TestAddressesThatNoServiceMayHaveAreRefused(t *testing.T) {
	var full []string
	for i := range 15 {
		full = append(full, fmt.Sprintf("vips/10.0.0.%d", 16+i))
	}
	for name, tc := range map[string]struct {
		networks, want string
		taken          []string
		says           string
	}{
		"elsewhere":              {"10.0.0.0/24 fd00::/112", "10.0.1.20", nil, "VirtualIPs = 10.0.1.20: must be in 10.0.0.0/24 or fd00::/112"},
		"the network's":          {"10.0.0.0/24", "10.0.0.0", nil, "the first 16 addresses of 10.0.0.0/24"},
		"the DNS":                {"10.0.0.0/24", "10.0.0.10", nil, "10.0.0.10 is the cluster's DNS"},
		"the sixteenth":          {"fd00::/112", "fd00::f", nil, "the first 16 addresses"},
		"broadcast":              {"10.0.0.0/24", "10.0.0.255", nil, "the last of IPv4"},
		"DNS of the smallest":    {"10.0.0.0/28", "10.0.0.10", nil, "the first 11 addresses of 10.0.0.0/28"},
		"no network":             {"", "10.0.0.20", nil, "no network of services is in use on this host"},
		"no network, none asked": {"", "", nil, "make the service headless"},
		"none is left":           {"10.0.0.0/27", "", full, "none of the 15 addresses for services in 10.0.0.0/27 is free"},
		"none at all":            {"10.0.0.0/30", "", nil, "none of the 0 addresses"},
	} {
		err := chooser(tc.networks, 3, tc.taken...).Choose(&Service{VirtualIPs: addrs(tc.want)}, nil)
		if e, ok := errors.AsType[*FieldError](err); !ok || e.Field != "VirtualIPs" || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := chooser("10.0.0.32/27", 3)
	c.Hosts = addrs("10.0.0.51 10.0.0.52")
	if err := c.Choose(&Service{VirtualIPs: addrs("10.0.0.52")}, nil); err == nil || !strings.Contains(err.Error(), "VirtualIPs = 10.0.0.52: is a host's own address") {
		t.Errorf("a host's own: %v", err)
	}
	chosen := &Service{}
	if err := c.Choose(chosen, nil); err != nil || !slices.Equal(chosen.VirtualIPs, addrs("10.0.0.53")) {
		t.Errorf("beside hosts: %v, %v", chosen.VirtualIPs, err)
	}
	// What the service has stays, wherever the network went.
	s := &Service{VirtualIPs: addrs("10.9.0.20")}
	if err := chooser("10.0.0.0/24", 0).Choose(s, &Service{VirtualIPs: addrs("10.9.0.20")}); err != nil {
		t.Error(err)
	}
}

func TestNodePortsAreChosenFromTheirRange(t *testing.T) {
	auto := func(protocols ...string) *Service {
		s := &Service{Headless: true}
		for i, p := range protocols {
			s.Ports = append(s.Ports, Port{Name: fmt.Sprint("p", i), Port: uint16(80 + i), Protocol: p, NodePort: AutoPort})
		}
		return s
	}
	got := func(s *Service, c Chooser, former *Service) string {
		t.Helper()
		if err := c.Choose(s, former); err != nil {
			return err.Error()
		}
		var out []uint16
		for _, p := range s.Ports {
			out = append(out, p.NodePort)
		}
		return fmt.Sprint(out)
	}
	if g := got(auto("tcp", "tcp", "udp"), chooser("", 5, "nodeports/tcp-30006"), nil); g != "[30005 30007 30005]" {
		t.Error(g)
	}
	if g := got(auto("tcp", "tcp"), chooser("", 1<<40), nil); g != "[32767 30000]" {
		t.Error(g)
	}
	former := &Service{Ports: []Port{{Port: 81, Protocol: "tcp", NodePort: 31111}, {Port: 80, Protocol: "udp", NodePort: 31112}}}
	if g := got(auto("tcp", "tcp"), chooser("", 0, "nodeports/tcp-31111"), former); g != "[30000 31111]" {
		t.Errorf("a port that was there got another: %s", g)
	}
	s := auto("tcp", "tcp")
	s.Ports[0].NodePort = 31111
	if g := got(s, chooser("", 0), former); g != "[31111 30000]" {
		t.Errorf("a port that the service asks for was chosen too: %s", g)
	}
	all := chooser("", 7)
	all.Taken = func(string) (bool, error) { return true, nil }
	if g := got(auto("sctp"), all, nil); !strings.Contains(g, "Ports[0].NodePort: no port from 30000 to 32767 of sctp is free") {
		t.Error(g)
	}
	broken := errors.New("etcd is away")
	all.Taken = func(string) (bool, error) { return false, broken }
	if err := all.Choose(auto("tcp"), nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestClaimsSayWhoseTheyAre(t *testing.T) {
	s := &Service{Tenant: "blue", Network: "front", Name: "web", VirtualIPs: addrs("fd00::80 10.0.0.80"), Ports: []Port{
		{Port: 80, Protocol: "tcp", NodePort: 30080}, {Port: 443, Protocol: "tcp"}, {Port: 53, Protocol: "udp", NodePort: AutoPort},
	}}
	if got := strings.Join(s.Claims("/p"), " "); got != "/p/nodeports/tcp-30080 /p/vips/10.0.0.80 /p/vips/fd00::80" {
		t.Error(got)
	}
	if got := string(s.Claim()); got != `{"Service":"blue/front/web"}` {
		t.Error(got)
	}
	if got := Claimant("/p", store.KV{Value: s.Claim()}); got != s.Key("/p") {
		t.Error(got)
	}
	for _, value := range []string{"", "{", "7", `{"Service":7}`, `{"Service":"web"}`, `{"Service":"a/b/c/d"}`} {
		if got := Claimant("/p", store.KV{Value: []byte(value)}); got != "" {
			t.Errorf("%s is a claim of %s", value, got)
		}
	}
}

// FuzzChoose: whatever the network is, what is chosen may be asked for by name.
func FuzzChoose(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0}, uint8(27), uint64(3), uint8(0))
	f.Add([]byte{0xfd, 15: 0}, uint8(112), uint64(1<<63), uint8(7))
	f.Fuzz(func(t *testing.T, addr []byte, bits uint8, chance uint64, busy uint8) {
		a, ok := netip.AddrFromSlice(addr)
		if !ok || a.Is4In6() || int(bits) > a.BitLen()-4 {
			return
		}
		p := netip.PrefixFrom(a, int(bits)).Masked()
		asked := 0
		c := Chooser{Networks: []netip.Prefix{p}, Random: func(n uint64) uint64 { return chance % n },
			Taken: func(string) (bool, error) { asked++; return asked <= int(busy), nil }}
		s := &Service{}
		if err := c.Choose(s, nil); err != nil {
			if _, n := choice(p); n > uint64(busy) {
				t.Errorf("%v: %v", p, err)
			}
			return
		}
		if err := c.Choose(&Service{VirtualIPs: s.VirtualIPs}, nil); err != nil || asked != int(busy)+1 {
			t.Errorf("%v: %v after %d questions", p, err, asked)
		}
	})
}

func TestEndpointsInsideTheNetworkOfServicesAreRefused(t *testing.T) {
	c := Chooser{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/112")}, Hosts: []netip.Addr{netip.MustParseAddr("10.0.0.40")},
		Taken: func(string) (bool, error) { return false, nil }}
	with := func(headless bool, list ...string) *Service {
		s := &Service{Headless: headless}
		for _, a := range list {
			s.Endpoints = append(s.Endpoints, netip.MustParseAddr(a))
		}
		return s
	}
	for _, tc := range []struct {
		s, former *Service
		says      string
	}{
		{with(false, "192.0.2.7", "10.1.0.1"), nil, ""},
		{with(false, "192.0.2.7", "10.0.0.30"), nil, "Endpoints = 10.0.0.30: is inside the network of services 10.0.0.0/16: list the containers' or servers' own addresses"},
		{with(false, "10.0.0.10"), nil, "Endpoints = 10.0.0.10: is inside"},
		{with(false, "fd00::a"), nil, "Endpoints = fd00::a: is inside the network of services fd00::/112"},
		{with(false, "10.0.0.40"), nil, ""}, // a host's own
		{with(false, "10.0.0.30"), with(false, "10.0.0.30"), ""},
		{with(false, "10.0.0.30"), with(true, "10.0.0.30"), "is inside"},
		{with(true, "10.0.0.30"), nil, ""},
	} {
		if err := c.Choose(tc.s, tc.former); (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v, headless %v: %v, want %q", tc.s.Endpoints, tc.s.Headless, err, tc.says)
		}
	}
}
