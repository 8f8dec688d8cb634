package iptables

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/iptables/table"
)

// prefix begins the names of all chains of ours; tag begins the comments of
// our rules.
const (
	prefix         = "FLANNELD-"
	servicesPrefix = prefix + "SVC" // of those of the Balancer
	tag            = "flanneld"
	jumpTag        = "flanneld jump"
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

// owner tells whether a chain of ours is one's own. The Filter and Forward have
// chains beside those of the Balancer, whose jumps stand in front.
type owner func(chain string) bool

func ofServices(chain string) bool { return strings.HasPrefix(chain, servicesPrefix) }
func ofOthers(chain string) bool   { return anyOfOurs(chain) && !ofServices(chain) }
func anyOfOurs(chain string) bool  { return strings.HasPrefix(chain, prefix) }

// isJump tells whether a rule jumps to a chain of ours that is somebody's own.
func isJump(text string, mine owner) bool {
	target := table.Target(text)
	return mine(target) || strings.Contains(text, `"`+jumpTag+`"`) && !anyOfOurs(target)
}

// script returns what must be done to a table for it to hold want and nothing
// else of an owner's; "" if it does.
func script(name string, mine owner, want []chain, have table.Saved) string {
	var body strings.Builder
	wanted := make(map[string]bool, len(want))
	var changed []chain
	for _, c := range want {
		wanted[c.name] = true
		if !c.equals(have) {
			changed = append(changed, c)
			fmt.Fprintf(&body, ":%s - [0:0]\n", c.name)
		}
	}
	var stale []string
	for name := range have.Policy {
		if mine(name) && !wanted[name] {
			stale = append(stale, name)
		}
	}
	slices.Sort(stale)
	for _, c := range changed {
		for _, r := range c.rules {
			fmt.Fprintf(&body, "-A %s %s\n", c.name, r.text())
		}
	}
	jumps(&body, mine, want, have)
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
func jumps(body *strings.Builder, mine owner, want []chain, have table.Saved) {
	parents := map[string]*chain{}
	for name := range have.Rules {
		if !anyOfOurs(name) {
			parents[name] = nil
		}
	}
	for _, c := range want {
		if c.parent != "" {
			parents[c.parent] = &c
		}
	}
	for _, parent := range slices.Sorted(maps.Keys(parents)) {
		c, now := parents[parent], jumpsNow(have.Rules[parent], mine)
		place := 0
		if c != nil && c.place != nil {
			place = c.place(now.others)
		}
		if c != nil && len(now.ours) == 1 && table.Target(now.ours[0]) == c.name && now.at == place {
			continue
		}
		for _, text := range now.ours {
			fmt.Fprintf(body, "-D %s %s\n", parent, text)
		}
		if c != nil {
			fmt.Fprintf(body, "-I %s %d -m comment --comment \"%s\" -j %s\n", parent, now.index[place]+1, jumpTag, c.name)
		}
	}
}

// jumping is a built-in chain as it is.
type jumping struct {
	ours, others []string
	at           int   // others before the last one of ours
	index        []int // where each of others stands without ours, and the end
}

// jumpsNow leaves out the jumps of services, which are in nobody's way, unless
// it is about those.
func jumpsNow(rules []string, mine owner) jumping {
	j, i := jumping{at: -1}, 0
	for _, text := range rules {
		switch {
		case isJump(text, mine):
			j.ours, j.at = append(j.ours, text), len(j.others)
			continue
		case !ofServices(table.Target(text)):
			j.others, j.index = append(j.others, text), append(j.index, i)
		}
		i++
	}
	j.index = append(j.index, i)
	return j
}
