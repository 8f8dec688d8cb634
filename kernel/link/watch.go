package link

import (
	"errors"
	"slices"
	"strings"
)

// watchedLinks are the interfaces that there are of those named.
func watchedLinks(h *Handle, names []string) ([]Link, error) {
	var out []Link
	for _, name := range names {
		if !strings.HasSuffix(name, "*") {
			l, err := h.LinkByName(name)
			if err == nil {
				out = append(out, l)
			} else if !errors.Is(err, ErrNoLink) {
				return nil, err
			}
			continue
		}
		all, err := h.Links("")
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			if named([]string{name}, l.Name) {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// named tells whether a name is one of names, which may end in *.
func named(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		begin, many := strings.CutSuffix(n, "*")
		return n == name || many && strings.HasPrefix(name, begin)
	})
}
