package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store"
)

func TestServiceNetworkIsReadOrRefusedWithTheRemedy(t *testing.T) {
	parse := func(services string) (Config, error) {
		return ParseConfig([]byte(`{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48","ServiceNetwork":` + services + `}`))
	}
	for text, want := range map[string][]netip.Prefix{
		`null`:                            nil,
		`"10.0.0.0/16"`:                   {netip.MustParsePrefix("10.0.0.0/16")},
		`"fd00:10::/112"`:                 {netip.MustParsePrefix("fd00:10::/112")},
		`["fd00:10::/112","10.0.0.0/28"]`: {netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("fd00:10::/112")},
	} {
		c, err := parse(text)
		if err != nil || !slices.Equal(c.Services, want) {
			t.Errorf("%s: %v, %v", text, c.Services, err)
		}
	}
	for _, text := range []string{
		`7`, `"x"`, `"10.0.0.1/16"`, `"10.0.0.0/29"`, `"0.0.0.0/0"`, `"10.1.128.0/20"`, `"fd00::/16"`, `"224.0.0.0/8"`, `"127.0.0.0/8"`,
		`["10.0.0.0/16","10.2.0.0/16"]`, `{"a":1}`, `"::ffff:10.0.0.0/112"`,
	} {
		_, err := parse(text)
		if ce, ok := errors.AsType[*ConfigError](err); !ok || ce.Field != "ServiceNetwork" || ce.Remedy == "" {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestClusterDNSIsTheTenthAddress(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.0/16": "10.0.0.10", "fd00:10::/112": "fd00:10::a"} {
		if got := ClusterDNS(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("%s: %v", in, got)
		}
	}
}

func TestServiceNetworksOfTheStoreCountWhereTheConfigurationHasNone(t *testing.T) {
	for name, tt := range map[string]struct {
		config, key string
		want        []netip.Prefix
		problem     string
	}{
		"neither":     {`{"Network":"10.1.0.0/16"}`, "", nil, ""},
		"the key's":   {`{"Network":"10.1.0.0/16"}`, `{"ServiceNetwork":["10.9.0.0/16"]}`, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, ""},
		"the field's": {`{"Network":"10.1.0.0/16","ServiceNetwork":"10.8.0.0/16"}`, `{"ServiceNetwork":"10.9.0.0/16"}`, []netip.Prefix{netip.MustParsePrefix("10.8.0.0/16")}, ""},
		"none wanted": {`{"Network":"10.1.0.0/16","ServiceNetwork":[]}`, `{"ServiceNetwork":"10.9.0.0/16"}`, []netip.Prefix{}, ""},
		"overlap":     {`{"Network":"10.9.0.0/17"}`, `{"ServiceNetwork":"10.9.0.0/16"}`, []netip.Prefix{}, "/p/config-servicenetwork: config field ServiceNetwork = 10.9.0.0/16: overlaps the pod network 10.9.0.0/17"},
		"garbage":     {`{"Network":"10.1.0.0/16"}`, "\x00", []netip.Prefix{}, "delete the key"},
		"no field":    {`{"Network":"10.1.0.0/16"}`, `{}`, []netip.Prefix{}, "delete the key"},
	} {
		w := newViewer("/p", nil)
		s := store.Snapshot{Revision: 1, KVs: []store.KV{{Key: "/p/config", Value: []byte(tt.config), ModRevision: 1}}}
		w.take(configPrefix, s)
		if tt.key != "" { // it comes later
			s.KVs = append(slices.Clone(s.KVs), store.KV{Key: ServicesKey("/p"), Value: []byte(tt.key), ModRevision: 2})
			w.take(configPrefix, s)
		}
		v := w.view()
		if !slices.Equal(v.Config.Services, tt.want) || (v.Config.Services == nil) != (tt.want == nil) {
			t.Errorf("%s: %#v, want %v", name, v.Config.Services, tt.want)
		}
		if got := errors.Join(v.Problems...); (got != nil) != (tt.problem != "") || got != nil && !strings.Contains(got.Error(), tt.problem) {
			t.Errorf("%s: %v, want %s", name, got, tt.problem)
		}
	}
}

func TestServiceNetworksAreChosenClearOfWhatIsThere(t *testing.T) {
	for name, tt := range map[string]struct{ config, avoid, want string }{
		"ordinary":         {`{"Network":"10.1.0.0/16"}`, "192.168.1.0/24", "[10.0.0.0/16]"},
		"the first is pod": {`{"Network":"10.0.0.0/15"}`, "", "[10.2.0.0/16]"},
		"the host's in it": {`{"Network":"10.1.0.0/16"}`, "10.0.7.0/24", "[10.2.0.0/16]"},
		"all of 10/8":      {`{"Network":"10.0.0.0/8"}`, "172.16.0.1/32", "[172.17.0.0/16]"},
		"both families":    {`{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}`, "fd00:10::/64", "[10.0.0.0/16 fd00:10:1::/112]"},
		"nothing is free":  {`{"Network":"10.1.0.0/16"}`, "0.0.0.0/0", "[]"},
	} {
		c, err := ParseConfig([]byte(tt.config))
		if err != nil {
			t.Fatal(err)
		}
		var avoid []netip.Prefix
		if tt.avoid != "" {
			avoid = append(avoid, netip.MustParsePrefix(tt.avoid))
		}
		got := ChooseServices(c, avoid)
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, want %s", name, got, tt.want)
		}
		value, err := MarshalServices(got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := servicesAt(store.KV{Key: "k", Value: value}, c.Ranges); err != nil || !slices.Equal(back, got) {
			t.Errorf("%s: %s is read as %v, %v", name, value, back, err)
		}
	}
}
