package nft_test

import (
	"testing"

	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

func TestContract(t *testing.T) {
	rulestest.Run(t, rulestest.Subject{
		Open: func() (rules.Filter, error) { return nft.New() },
		Flushes: map[string]string{
			"flush ruleset":      "nft flush ruleset",
			"deletion":           "nft delete table inet flanneld",
			"flush of a chain":   "nft flush chain inet flanneld tunnel",
			"flush of a set":     "nft flush set inet flanneld peers4",
			"an element more":    "nft add element inet flanneld peers4 { 192.168.77.9 }",
			"a rule more":        "nft insert rule inet flanneld tunnel accept",
			"another policy":     "nft 'add chain inet flanneld input { policy drop; }'",
			"a dormant table":    "nft 'add table inet flanneld { flags dormant; }'",
			"a chain more":       "nft 'add chain inet flanneld x; add rule inet flanneld input jump x'",
			"a map we never had": "nft 'add map inet flanneld m { type ipv4_addr : verdict; }'",
		},
		Others: `nft -f - <<EOF
table inet mine {
	set s { type ipv4_addr; elements = { 10.9.9.9 }; }
	chain c { type filter hook input priority 0; policy accept; ip saddr @s drop comment "mine"; }
}
EOF
iptables-nft -A INPUT -s 10.9.9.8 -j DROP`,
		Dump: "nft -s list ruleset",
	})
}
