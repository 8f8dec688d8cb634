package backendtest

import (
	"regexp"
	"slices"
	"strings"
)

// transient lines come and go by themselves.
func transient(line string) bool {
	for _, s := range []string{" REACHABLE", " STALE", " DELAY", " PROBE", " FAILED", " INCOMPLETE", "fe80::", " NOARP"} {
		if strings.Contains(line, s) {
			return true
		}
	}
	return strings.HasPrefix(line, "33:33:") || strings.HasPrefix(line, "01:00:5e:")
}

// normal drops from a line what depends on when it was asked for.
func normal(line string) string {
	for _, re := range []*regexp.Regexp{
		regexp.MustCompile(`^\d+: `),
		regexp.MustCompile(`(valid_lft|preferred_lft) \w+`),
		regexp.MustCompile(`expires \d+sec`),
		regexp.MustCompile(`@if\d+`),
		regexp.MustCompile(`permaddr \S+`), // of tunnels over IPv6: random
		regexp.MustCompile(`\w+_timer +[\d.]+`),
		regexp.MustCompile(`link-netnsid \d+`),
		regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|,M-DOWN| linkdown`), // told a moment later
		regexp.MustCompile(`state (UNKNOWN|UP|DOWN|LOWERLAYERDOWN)`),
	} {
		line = re.ReplaceAllString(line, "")
	}
	return strings.Join(strings.Fields(line), " ")
}

func sorted(lines []string) []string {
	slices.Sort(lines)
	return lines
}
