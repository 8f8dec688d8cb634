// Package table reads a table as iptables-save prints it.
package table

import "strings"

// Saved is one table.
type Saved struct {
	Policy map[string]string   // of every chain; "-" if it is not built in
	Rules  map[string][]string // without "-A CHAIN "
}

// Parse reads the output of iptables-save for one table. What it does not
// know it leaves out.
func Parse(out string) Saved {
	s := Saved{Policy: map[string]string{}, Rules: map[string][]string{}}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			name, rest, _ := strings.Cut(rest, " ")
			policy, _, _ := strings.Cut(rest, " ")
			s.Policy[name] = policy
		}
		if rest, ok := strings.CutPrefix(line, "-A "); ok {
			name, text, _ := strings.Cut(rest, " ")
			s.Rules[name] = append(s.Rules[name], text)
		}
	}
	return s
}

// Target returns what a rule of Saved jumps or goes to.
func Target(text string) string {
	f := strings.Fields(text)
	for i := range f {
		if (f[i] == "-j" || f[i] == "-g") && i+1 < len(f) {
			return f[i+1]
		}
	}
	return ""
}
