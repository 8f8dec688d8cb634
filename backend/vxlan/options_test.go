package vxlan

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

func configOf(backendJSON string, networks ...string) subnet.Config {
	c := subnet.Config{Backend: subnet.Backend{Type: Type, Raw: json.RawMessage(backendJSON)}}
	for _, n := range networks {
		p := netip.MustParsePrefix(n)
		c.Ranges = append(c.Ranges, subnet.Range{Network: p, SubnetLen: p.Bits() + 8})
	}
	return c
}

func TestOptionsAreFlannels(t *testing.T) {
	plain := options{VNI: 1, Port: 8472, Direct: routed.ByWay}
	for name, c := range map[string]struct {
		in   string
		want options
	}{
		"absent":         {``, plain},
		"type alone":     {`{"Type":"vxlan"}`, plain},
		"all":            {`{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"GBP":true,"Learning":true,"DirectRouting":true}`, options{7, 4789, 1400, true, routed.Always}},
		"any case":       {`{"type":"vxlan","vni":7,"directrouting":true}`, options{VNI: 7, Port: 8472, Direct: routed.Always}},
		"port 0":         {`{"Port":0}`, plain},
		"VNI 0":          {`{"VNI":0}`, options{VNI: 0, Port: 8472, Direct: routed.ByWay}},
		"for Windows":    {`{"Name":"x","MacPrefix":"0E-2A"}`, plain},
		"null is absent": {`{"GBP":null}`, plain},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseOptions(configOf(c.in, "10.1.0.0/16"))
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestWrongOptionsNameTheFieldAndTheRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		in, network, field string
	}{
		"not an object":      {`[]`, "10.1.0.0/16", "Backend"},
		"unknown":            {`{"VIN":1}`, "10.1.0.0/16", "Backend.VIN"},
		"VNI a string":       {`{"VNI":"1"}`, "10.1.0.0/16", "Backend.VNI"},
		"VNI negative":       {`{"VNI":-1}`, "10.1.0.0/16", "Backend.VNI"},
		"VNI too long":       {`{"VNI":16777215}`, "10.1.0.0/16", "Backend.VNI"},
		"VNI too long in v6": {`{"VNI":10000}`, "fd00:1::/48", "Backend.VNI"},
		"MTU":                {`{"MTU":625}`, "10.1.0.0/16", "Backend.MTU"},
		"MTU for v6":         {`{"mtu":1349}`, "fd00:1::/48", "Backend.mtu"},
		"port":               {`{"Port":65536}`, "10.1.0.0/16", "Backend.Port"},
		"half a port":        {`{"Port":0.5}`, "10.1.0.0/16", "Backend.Port"},
		"GBP":                {`{"GBP":1}`, "10.1.0.0/16", "Backend.GBP"},
		"DirectRouting":      {`{"DirectRouting":"yes"}`, "10.1.0.0/16", "Backend.DirectRouting"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Driver{}.Check(configOf(c.in, c.network))
			ce, ok := errors.AsType[*subnet.ConfigError](err)
			if !ok || ce.Field != c.field || ce.Remedy == "" {
				t.Errorf("got %#v, want field %s", err, c.field)
			}
		})
	}
}

func TestAConfigurationWithoutANetworkIsRefused(t *testing.T) {
	err := Driver{}.Check(subnet.Config{})
	if ce, ok := errors.AsType[*subnet.ConfigError](err); !ok || ce.Field != "Network" {
		t.Errorf("got %v", err)
	}
}

func TestMTUIsTheUnderlaysLessTheTunnels(t *testing.T) {
	u := backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	for name, c := range map[string]struct {
		option, underlay int
		network          string
		want             int // 0: an error
	}{
		"default":               {0, 1500, "10.1.0.0/16", 1450},
		"default IPv6":          {0, 1500, "fd00:1::/48", 1430},
		"jumbo":                 {0, 9000, "10.1.0.0/16", 8950},
		"option as flannel's":   {1400, 1500, "10.1.0.0/16", 1350},
		"option over interface": {9000, 1500, "10.1.0.0/16", 1450},
		"least":                 {626, 1500, "10.1.0.0/16", 576},
		"least of IPv6":         {1350, 1500, "fd00:1::/48", 1280},
		"interface too small":   {0, 1300, "fd00:1::/48", 0},
	} {
		t.Run(name, func(t *testing.T) {
			u.MTU = c.underlay
			cfg := configOf(fmt.Sprintf(`{"MTU":%d}`, c.option), c.network)
			o, err := parseOptions(cfg)
			if err != nil {
				t.Fatal(err)
			}
			v, err := newVTEP(cfg.Ranges[0], o, u, "id")
			if (err == nil) != (c.want > 0) || err == nil && v.MTU != c.want {
				t.Errorf("got %+v, %v, want %d", v, err, c.want)
			}
		})
	}
}

func TestMACIsStableUnicastAndLocal(t *testing.T) {
	seen := map[string]bool{}
	for _, id := range []string{"", "a", "b", "c", "d", "e", "f"} {
		for _, dev := range []string{"flannel.1", "flannel.2", "flannel-v6.1"} {
			m := deriveMAC(id, dev)
			if m != deriveMAC(id, dev) || !m.IsUnicast() || m[0]&2 == 0 || seen[m.String()] {
				t.Errorf("%s of %q: %s", dev, id, m)
			}
			seen[m.String()] = true
		}
	}
}
