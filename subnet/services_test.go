package subnet

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
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
