package gre

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

// configOf is a network of the given ranges with Backend options.
func configOf(options string, networks ...string) subnet.Config {
	c := subnet.Config{Backend: subnet.Backend{Type: Type}}
	if options != "" {
		c.Backend.Raw = json.RawMessage(options)
	}
	for _, n := range networks {
		r := subnet.Range{Network: netip.MustParsePrefix(n), SubnetLen: 24}
		if r.Network.Addr().Is6() {
			r.SubnetLen = 64
		}
		c.Ranges = append(c.Ranges, r)
	}
	return c
}

func TestOptions(t *testing.T) {
	for text, want := range map[string]options{
		``:                                {Direct: routed.ByWay},
		`{"Type":"gre"}`:                  {Direct: routed.ByWay},
		`{"Key":null,"Mode":null}`:        {Direct: routed.ByWay},
		`{"KEY":0}`:                       {header: header{Keyed: true}, Direct: routed.ByWay},
		`{"Key":4294967295,"MTU":1400}`:   {header: header{Key: 1<<32 - 1, Keyed: true}, MTU: 1400, Direct: routed.ByWay},
		`{"checksum":true}`:               {header: header{Checksum: true}, Direct: routed.ByWay},
		`{"Sequence":true,"mode":"Mesh"}`: {header: header{Sequence: true}, Mesh: true},
		`{"Mode":"external","DirectRouting":false}`: {},
		`{"Mode":"mesh","DirectRouting":true}`:      {Mesh: true, Direct: routed.Always},
		`{"MTU":600}`:                               {MTU: 600, Direct: routed.ByWay},
	} {
		if got, err := parseOptions(configOf(text, "10.1.0.0/16")); err != nil || got != want {
			t.Errorf("%s: got %+v %v, want %+v", text, got, err, want)
		}
	}
}

func TestWrongOptionsNameTheField(t *testing.T) {
	for text, field := range map[string]string{
		`{"Kee":1}`:              "Backend.Kee",
		`{"Key":-1}`:             "Backend.Key",
		`{"Key":4294967296}`:     "Backend.Key",
		`{"Key":1.5}`:            "Backend.Key",
		`{"Mode":"point"}`:       "Backend.Mode",
		`{"Mode":1}`:             "Backend.Mode",
		`{"Checksum":1}`:         "Backend.Checksum",
		`{"Sequence":"no"}`:      "Backend.Sequence",
		`{"MTU":603,"Key":1}`:    "Backend.MTU",
		`{"MTU":"big"}`:          "Backend.MTU",
		`{"DirectRouting":"on"}`: "Backend.DirectRouting",
		`["gre"]`:                "Backend",
		`{"MTU":611,"Checksum":true,"Sequence":true,"Key":1}`: "Backend.MTU",
	} {
		_, err := parseOptions(configOf(text, "10.1.0.0/16"))
		if ce, ok := errors.AsType[*subnet.ConfigError](err); !ok || ce.Field != field || ce.Remedy == "" {
			t.Errorf("%s: got %v, want a remedy for %s", text, err, field)
		}
	}
	if _, err := parseOptions(configOf(`{"MTU":1300}`, "fd00:1::/48")); err == nil {
		t.Error("an MTU that leaves IPv6 too little is taken")
	}
	if _, err := parseOptions(configOf(``)); err == nil {
		t.Error("a configuration without a network is taken")
	}
}

func TestOverheadFollowsTheHeader(t *testing.T) {
	for h, want := range map[header]routed.Overhead{
		{}:                            {V4: 24, V6: 44},
		{Keyed: true}:                 {V4: 28, V6: 48},
		{Keyed: true, Checksum: true}: {V4: 32, V6: 52},
		{Checksum: true, Sequence: true, Keyed: true}: {V4: 36, V6: 56},
	} {
		if got := h.overhead(); got != want {
			t.Errorf("%+v: %+v, want %+v", h, got, want)
		}
	}
}

func TestMeshNamesDifferByPeerAndKey(t *testing.T) {
	names := map[string]bool{}
	n := 0
	for _, h := range []header{{}, {Keyed: true}, {Keyed: true, Key: 1}} {
		for a := range 2000 {
			for _, ip := range []netip.Addr{
				netip.AddrFrom4([4]byte{192, 168, byte(a >> 8), byte(a)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(a >> 8), 15: byte(a)}),
			} {
				name := meshName(h, ip)
				if len(name) != 15 || name[:5] != meshPrefix {
					t.Fatalf("name %q", name)
				}
				names[name] = true
				n++
			}
		}
	}
	if len(names) != n {
		t.Errorf("%d names for %d devices", len(names), n)
	}
}
