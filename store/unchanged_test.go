package store_test

import (
	"testing"

	"github.com/flanneld/flanneld/store"
)

func TestWhatIsLeftOfBothEndsChanged(t *testing.T) {
	for name, tc := range map[string]struct {
		old, now    string
		front, back int
	}{
		"nothing changed":      {"abc", "abc", 3, 0},
		"one more":             {"abd", "abcd", 2, 1},
		"one less":             {"abcd", "abd", 2, 1},
		"another":              {"abc", "axc", 1, 1},
		"one of equals more":   {"aaa", "aaaa", 3, 0},
		"two, far apart":       {"abcdef", "axcdxf", 1, 1},
		"all":                  {"abc", "xyz", 0, 0},
		"from nothing":         {"", "abc", 0, 0},
		"to nothing":           {"abc", "", 0, 0},
		"at the front":         {"bc", "abc", 0, 2},
		"the others come last": {"ab", "abc", 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			front, back := store.Unchanged([]byte(tc.old), []byte(tc.now), func(a, b *byte) bool { return *a == *b })
			if front != tc.front || back != tc.back {
				t.Errorf("%d at the front and %d at the back, want %d and %d", front, back, tc.front, tc.back)
			}
		})
	}
}
