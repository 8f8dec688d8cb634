package iptables

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/iptables/table"
)

// prefix begins the names of all chains of ours; tag begins the comments of
// our rules.
const (
	prefix  = "FLANNELD-"
	tag     = "flanneld"
	jumpTag = "flanneld jump"
)

// chain is one of our chains as it must be.
type chain struct {
	table, name string
	parent      string // the built-in chain that jumps here; "": another one of ours does
	rules       []rule
	// place says where among the parent's other rules the jump belongs; nil:
	// first.
	place func(others []string) int
}

type rule struct{ match, target string }

// text is the rule as an argument list, with its digest as comment.
func (r rule) text() string {
	return strings.TrimSpace(r.match+` -m comment --comment "`+tag+" "+r.digest()+`"`) + " -j " + r.target
}

func (r rule) digest() string {
	h := fnv.New64a()
	h.Write([]byte(r.match + " -j " + r.target))
	return hex.EncodeToString(h.Sum(nil))
}

func isOurJump(text string) bool {
	return strings.Contains(text, `"`+jumpTag+`"`) || strings.HasPrefix(table.Target(text), prefix)
}

// script returns what must be done to a table for it to hold want and nothing
// else of ours; "" if it does.
func script(name string, want []chain, have table.Saved) string {
	var body strings.Builder
	var stale []string
	for name := range have.Policy {
		if strings.HasPrefix(name, prefix) && !slices.ContainsFunc(want, func(c chain) bool { return c.name == name }) {
			stale = append(stale, name)
		}
	}
	slices.Sort(stale)
	for _, c := range want {
		if !c.equals(have) {
			fmt.Fprintf(&body, ":%s - [0:0]\n", c.name)
		}
	}
	for _, c := range want {
		if !c.equals(have) {
			for _, r := range c.rules {
				fmt.Fprintf(&body, "-A %s %s\n", c.name, r.text())
			}
		}
	}
	jumps(&body, want, have)
	for _, name := range stale {
		fmt.Fprintf(&body, "-F %s\n", name)
	}
	for _, name := range stale {
		fmt.Fprintf(&body, "-X %s\n", name)
	}
	if body.Len() == 0 {
		return ""
	}
	return "*" + name + "\n" + body.String() + "COMMIT\n"
}

// equals tells whether the table holds the chain as it must be.
func (c chain) equals(have table.Saved) bool {
	if _, there := have.Policy[c.name]; !there {
		return false
	}
	return slices.EqualFunc(have.Rules[c.name], c.rules, func(text string, r rule) bool {
		return strings.Contains(text, `"`+tag+" "+r.digest()+`"`)
	})
}

// jumps writes what makes every built-in chain have exactly the jumps that it
// must have, where they belong.
func jumps(body *strings.Builder, want []chain, have table.Saved) {
	parents := make([]string, 0, len(have.Rules))
	for name := range have.Rules {
		parents = append(parents, name)
	}
	for _, c := range want {
		if c.parent != "" {
			parents = append(parents, c.parent)
		}
	}
	slices.Sort(parents)
	for _, parent := range slices.Compact(parents) {
		if strings.HasPrefix(parent, prefix) {
			continue
		}
		var ours, others []string
		at := -1
		for _, text := range have.Rules[parent] {
			if isOurJump(text) {
				ours = append(ours, text)
				at = len(others)
			} else {
				others = append(others, text)
			}
		}
		i := slices.IndexFunc(want, func(c chain) bool { return c.parent == parent })
		place := 0
		if i >= 0 && want[i].place != nil {
			place = want[i].place(others)
		}
		if i >= 0 && len(ours) == 1 && table.Target(ours[0]) == want[i].name && at == place {
			continue
		}
		for _, text := range ours {
			fmt.Fprintf(body, "-D %s %s\n", parent, text)
		}
		if i >= 0 {
			fmt.Fprintf(body, "-I %s %d -m comment --comment \"%s\" -j %s\n", parent, place+1, jumpTag, want[i].name)
		}
	}
}
