package subnet

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }

// prefixes parses a list separated by spaces.
func prefixes(s string) (out []netip.Prefix) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, pfx(f))
	}
	return out
}

func addrs(s string) (out []netip.Addr) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, addr(f))
	}
	return out
}

func mustConfig(t testing.TB, s string) Config {
	t.Helper()
	c, err := ParseConfig([]byte(s))
	if err != nil {
		t.Fatalf("ParseConfig(%s): %v", s, err)
	}
	return c
}

func rng(network string, length int, low, high string) Range {
	return Range{pfx(network), length, addr(low), addr(high)}
}

func TestConfigHasFlannelsDefaults(t *testing.T) {
	v4 := rng("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")
	tests := map[string]struct {
		in   string
		want []Range
		kind string
	}{
		"network alone":         {`{"Network":"10.5.0.0/16"}`, []Range{v4}, "udp"},
		"host bits are masked":  {`{"Network":"10.5.7.9/16"}`, []Range{v4}, "udp"},
		"backend":               {`{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN","VNI":7}}`, []Range{v4}, "vxlan"},
		"names in any case":     {`{"network":"10.5.0.0/16","BACKEND":{"type":"host-gw"}}`, []Range{v4}, "host-gw"},
		"/22 is enough for /24": {`{"Network":"10.5.4.0/22"}`, []Range{rng("10.5.4.0/22", 24, "10.5.5.0", "10.5.7.0")}, "udp"},
		"/23 is quartered":      {`{"Network":"10.5.4.0/23"}`, []Range{rng("10.5.4.0/23", 25, "10.5.4.128", "10.5.5.128")}, "udp"},
		"/28 is quartered":      {`{"Network":"10.5.4.16/28"}`, []Range{rng("10.5.4.16/28", 30, "10.5.4.20", "10.5.4.28")}, "udp"},
		"length":                {`{"Network":"10.0.0.0/8","SubnetLen":20}`, []Range{rng("10.0.0.0/8", 20, "10.0.16.0", "10.255.240.0")}, "udp"},
		"zero means unset": {`{"Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":null,"IPv6Network":null}`,
			[]Range{v4}, "udp"},
		"min and max": {`{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.9.0"}`,
			[]Range{rng("10.5.0.0/16", 24, "10.5.0.0", "10.5.9.0")}, "udp"},
		"dual stack": {`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`,
			[]Range{v4, rng("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:ffff::")}, "udp"},
		"IPv6 alone": {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/56","Backend":{"Type":"vxlan"}}`,
			[]Range{rng("fd00:5::/56", 64, "fd00:5:0:1::", "fd00:5:0:ff::")}, "vxlan"},
		"IPv6 /63 is quartered": {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/63"}`,
			[]Range{rng("fd00:5::/63", 65, "fd00:5:0:0:8000::", "fd00:5:0:1:8000::")}, "udp"},
		"IPv6 range": {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":60,"IPv6SubnetMin":"fd00:5:0:20::","IPv6SubnetMax":"fd00:5:0:40::"}`,
			[]Range{rng("fd00:5::/48", 60, "fd00:5:0:20::", "fd00:5:0:40::")}, "udp"},
		"IPv6Network without EnableIPv6 has no effect": {`{"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48"}`, []Range{v4}, "udp"},
		"nftables is accepted":                         {`{"Network":"10.5.0.0/16","EnableNFTables":true,"Networks":[],"Comment":"ours"}`, []Range{v4}, "udp"},
		"a whole class A":                              {`{"Network":"240.0.0.0/8"}`, []Range{rng("240.0.0.0/8", 24, "240.0.1.0", "240.255.255.0")}, "udp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := mustConfig(t, tt.in)
			if !(Config{Ranges: c.Ranges}).Equal(Config{Ranges: tt.want}) || c.Backend.Type != tt.kind {
				t.Errorf("got %v, backend %s, want %v, %s", c.Ranges, c.Backend.Type, tt.want, tt.kind)
			}
			if !json.Valid(c.Backend.Raw) {
				t.Errorf("backend %q is not JSON", c.Backend.Raw)
			}
		})
	}
}

func TestWrongConfigNamesFieldValueAndRemedy(t *testing.T) {
	tests := map[string]struct{ in, field, text string }{
		"empty":              {``, "", "config = (empty): must be a JSON object"},
		"null":               {`null`, "", "must be a JSON object"},
		"array":              {`[]`, "", "must be a JSON object"},
		"broken":             {`{"Network":`, "", "at byte 11"},
		"no network":         {`{}`, "Network", `config field Network: is missing (for IPv6 alone set "EnableIPv4":false); set e.g. {"Network":"10.5.0.0/16"}`},
		"number for network": {`{"Network":10}`, "Network", "= 10: must be an IPv4 network"},
		"wrong family":       {`{"Network":"fd00::/48"}`, "Network", "must be an IPv4 network"},
		"wrong family 6":     {`{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"10.6.0.0/16"}`, "IPv6Network", "must be an IPv6 network"},
		"mapped":             {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::ffff:10.0.0.0/104"}`, "IPv6Network", "must be an IPv6 network"},
		"everything":         {`{"Network":"0.0.0.0/0"}`, "Network", `config field Network = "0.0.0.0/0": must be a /8 or smaller`},
		"unspecified":        {`{"Network":"0.0.0.0/8"}`, "Network", "overlaps 0.0.0.0/8"},
		"loopback":           {`{"Network":"127.0.0.0/16"}`, "Network", "loopback"},
		"link-local":         {`{"Network":"169.254.0.0/16"}`, "Network", "link-local"},
		"multicast":          {`{"Network":"225.0.0.0/8"}`, "Network", "multicast"},
		"broadcast":          {`{"Network":"255.255.0.0/16"}`, "Network", "broadcast"},
		"IPv6 everything":    {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::/0"}`, "IPv6Network", "/8 or smaller"},
		"IPv6 link-local":    {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/48"}`, "IPv6Network", "link-local"},
		"IPv6 multicast":     {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ff05::/48"}`, "IPv6Network", "multicast"},
		"too small":          {`{"Network":"10.5.0.0/29"}`, "Network", "too small"},
		"length above":       {`{"Network":"10.0.0.0/18","SubnetLen":33}`, "SubnetLen", `config field SubnetLen = 33: must be between 20 and 30; set e.g. {"SubnetLen":24}`},
		"length below":       {`{"Network":"10.0.0.0/16","SubnetLen":17}`, "SubnetLen", "between 18 and 30"},
		"length negative":    {`{"Network":"10.0.0.0/16","SubnetLen":-1}`, "SubnetLen", "between 18 and 30"},
		"length as text":     {`{"Network":"10.0.0.0/16","SubnetLen":"24"}`, "SubnetLen", `= "24": must be between`},
		"length of IPv6":     {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":127}`, "IPv6SubnetLen", `{"IPv6SubnetLen":64}`},
		"min outside":        {`{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, "SubnetMin", `must be inside the network 10.5.0.0/16; set e.g. {"SubnetMin":"10.5.1.0"}`},
		"max outside":        {`{"Network":"10.5.0.0/16","SubnetMax":"10.6.0.0"}`, "SubnetMax", "inside the network"},
		"min misaligned":     {`{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.1"}`, "SubnetMin", "first address of a /24"},
		"min garbage":        {`{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0/24"}`, "SubnetMin", "first address of a subnet"},
		"min of wrong kind":  {`{"Network":"10.5.0.0/16","SubnetMin":"fd00::"}`, "SubnetMin", "first address of a subnet"},
		"min over max":       {`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}`, "SubnetMax", "not be below SubnetMin"},
		"no family":          {`{"EnableIPv4":false}`, "EnableIPv4", "one family must be enabled"},
		"bool as text":       {`{"EnableIPv6":"yes"}`, "EnableIPv6", "true or false"},
		"IPv6 missing":       {`{"Network":"10.5.0.0/16","EnableIPv6":true}`, "IPv6Network", "missing although EnableIPv6"},
		"misspelt backend":   {`{"Network":"10.5.0.0/16","Bakend":{"Type":"vxlan"}}`, "Bakend", `config field Bakend = {"Type":"vxlan"}: unknown field; did you mean Backend? Rename or remove it`},
		"misspelt length":    {`{"Network":"10.5.0.0/16","subnet_len":25}`, "subnet_len", "did you mean SubnetLen?"},
		"backend as text":    {`{"Network":"10.5.0.0/16","Backend":"vxlan"}`, "Backend", `"Backend":{"Type":"vxlan"}`},
		"backend of no type": {`{"Network":"10.5.0.0/16","Backend":{"Typ":"vxlan"}}`, "Backend.Type", "must name the tunnel"},
		"backend null":       {`{"Network":"10.5.0.0/16","Backend":null}`, "Backend", "= null: must name the tunnel"},
		"backend type twice": {`{"Network":"10.5.0.0/16","Backend":{"type":"vxlan","TYPE":"udp"}}`, "Backend.TYPE", "is there twice"},
		"option twice":       {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":[{}],"VNI":2}}`, "Backend.VNI", "remove one"},
		"network twice":      {`{"Network":"10.5.0.0/16","network":"10.6.0.0/16"}`, "network", "is there twice"},
		"backend type 5":     {`{"Network":"10.5.0.0/16","Backend":{"Type":5}}`, "Backend.Type", "= 5: must name the tunnel"},
		"too long":           {strings.Repeat(" ", 1<<20) + "{}", "", "1048578 bytes: must be at most 1 MiB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := ParseConfig([]byte(tt.in))
			e, ok := errors.AsType[*ConfigError](err)
			if !ok {
				t.Fatalf("got %+v, error %v, want a *ConfigError", c, err)
			}
			if e.Field != tt.field || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got field %q, %q; want field %q, text with %q", e.Field, err, tt.field, tt.text)
			}
			if len(err.Error()) > 400 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}}`))
	f.Add([]byte(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":126}`))
	f.Add([]byte(`{"EnableIPv6":true,"Network":"255.0.0.0/8","IPv6Network":"fd00::/8","Bakend":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			if _, ok := errors.AsType[*ConfigError](err); !ok {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if len(c.Ranges) == 0 || c.Backend.Type == "" {
			t.Fatalf("incomplete: %+v", c)
		}
		for _, r := range c.Ranges {
			for _, edge := range []netip.Addr{r.SubnetMin, r.SubnetMax} {
				if s := netip.PrefixFrom(edge, r.SubnetLen); !r.holds(s) {
					t.Fatalf("%v does not hold its own %v", r, s)
				}
			}
		}
		subnets, err := c.Free(nil, nil)
		if err != nil || !c.Fits(subnets) {
			t.Fatalf("first subnets %v do not fit %+v: %v", subnets, c, err)
		}
	})
}
