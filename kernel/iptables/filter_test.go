package iptables_test

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

// variant replaces "ipt" by the program under test.
func variant(kind, script string) string {
	return strings.NewReplacer("ip6t", "ip6tables-"+kind, "ipt", "iptables-"+kind).Replace(script)
}

// dump prints rules and chains of ours and others', without counters and
// built-in chains, which stay once they were used.
const dump = `(ipt-save; ip6t-save) 2>/dev/null | sed -e 's/\[[0-9:]*\]//' | grep -e '^[*]' -e '^-A' -e '^:.* - ' |
	awk '/^[*]/ { table = $0; next } { print table, $0 }'; ipset list -n`

func TestContract(t *testing.T) {
	options := map[string]iptables.Options{
		"nft":            {IPTables: "iptables-nft", IP6Tables: "ip6tables-nft"},
		"legacy":         {IPTables: "iptables-legacy", IP6Tables: "ip6tables-legacy"},
		"legacy no sets": {IPTables: "iptables-legacy", IP6Tables: "ip6tables-legacy", NoSets: true},
	}
	for name, o := range options {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind, _, _ := strings.Cut(name, " ")
			flushes := map[string]string{
				"flush of all":       variant(kind, "for i in ipt ip6t; do for t in raw mangle nat; do $i -w -t $t -F; $i -w -t $t -X; done; done"),
				"deletion of a jump": variant(kind, "ipt -w -t mangle -D INPUT 1"),
				"a rule in front":    variant(kind, "ipt -w -t mangle -I INPUT -j ACCEPT"),
				"flush of a chain":   variant(kind, "ipt -w -t mangle -F FLANNELD-TUNNEL"),
				"flush of DNS rules": variant(kind, "ipt -w -t raw -F FLANNELD-NAMES"),
				"a rule more":        variant(kind, "ipt -w -t mangle -I FLANNELD-TUNNEL -j ACCEPT"),
				"a jump twice":       variant(kind, "ipt -w -t nat -A POSTROUTING -m comment --comment 'flanneld jump' -j FLANNELD-POST"),
				"a chain more":       variant(kind, "ipt -w -t nat -N FLANNELD-OLD; ipt -w -t nat -A POSTROUTING -j FLANNELD-OLD"),
			}
			if !o.NoSets {
				flushes["flush of a set"] = "ipset flush flanneld-peers4"
				flushes["an element more"] = "ipset add flanneld-peers4 192.168.77.9"
			}
			rulestest.Run(t, rulestest.Subject{
				Open:    func() (rules.Filter, error) { return iptables.New(t.Context(), o) },
				Flushes: flushes,
				Others: variant(kind, `for i in ipt ip6t; do
					$i -w -t nat -N MINE
					$i -w -t nat -A POSTROUTING -m comment --comment "not ours: FLANNELD" -j MINE
					$i -w -t mangle -A INPUT -p tcp --dport 81 -j DROP
					$i -w -t raw -A PREROUTING -p tcp --dport 82 -j DROP
				done`),
				Dump: variant(kind, dump),
				Runs: func(f rules.Filter) int64 { return f.(*iptables.Filter).Runs() },
			})
		})
	}
}
