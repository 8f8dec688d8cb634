package nft_test

import (
	"testing"

	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

func TestServicesContract(t *testing.T) {
	rulestest.RunServices(t, rulestest.ServicesSubject{
		Open:       func() (rules.Balancer, error) { return nft.NewBalancer(nil) },
		OpenFilter: func() (rules.Filter, error) { return nft.New(nil) },
		Flushes: map[string]string{
			"flush ruleset":       "nft flush ruleset",
			"deletion":            "nft delete table inet flanneld-services",
			"flush of the table":  "nft flush table inet flanneld-services",
			"flush of a chain":    "nft flush chain inet flanneld-services services",
			"flush of services":   "nft flush map inet flanneld-services svc4",
			"flush of endpoints":  "nft flush map inet flanneld-services ep4",
			"flush of the chains": "nft flush map inet flanneld-services how",
			"flush of hairpins":   "nft flush set inet flanneld-services hairpin4",
			"flush of nodes":      "nft flush set inet flanneld-services node4",
			"flush of members":    "nft flush set inet flanneld-services of4",
			"an element more":     "nft add element inet flanneld-services hairpin4 { 10.1.19.2 . 10.1.19.3 }",
			"a rule more":         "nft insert rule inet flanneld-services services accept",
			"another policy":      "nft 'add chain inet flanneld-services forward { policy drop; }'",
			"a dormant table":     "nft 'add table inet flanneld-services { flags dormant; }'",
			"a chain more":        "nft 'add chain inet flanneld-services x; add rule inet flanneld-services forward jump x'",
			"a map we never had":  "nft 'add map inet flanneld-services m { type ipv4_addr : verdict; }'",
			"an endpoint more":    "nft add element inet flanneld-services ep4 { 10.0.3.1 . tcp . 80 . 9 : 10.1.19.9 . 80 }",
			"another endpoint":    "nft flush map inet flanneld-services ep4; nft add element inet flanneld-services ep4 { 10.0.3.1 . tcp . 80 . 0 : 10.1.19.9 . 80 }",
			"a service more":      "nft add element inet flanneld-services svc6 { fd00:53::999 . udp . 80 : 80 . 1 }",
			"another chain":       "nft delete element inet flanneld-services how { 1 }; nft add element inet flanneld-services how { 1 : goto lb-2 }",
		},
		IPTables: "iptables-nft",
		// What clients affinity remembers changes by itself, and iptables-nft
		// leaves empty tables behind.
		Dump: `nft -s list ruleset | sed -z 's/\(flags dynamic,timeout\)\n[^{}]*elements = {[^}]*}/\1/g; s/table [^{}]*{\n}\n//g'`,
	})
}
