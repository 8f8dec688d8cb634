package store

import (
	"slices"
	"testing"
)

func TestChangesAreWhatOneOfTwoListsHasAlone(t *testing.T) {
	a, b, c, d := new(int), new(int), new(int), new(int)
	*a, *b, *c, *d = 1, 2, 3, 4
	other := new(int)
	*other = 2 // of b's key
	for name, x := range map[string]struct{ old, now, gone, come []*int }{
		"nothing":       {nil, nil, nil, nil},
		"the same":      {[]*int{a, b, c}, []*int{a, b, c}, nil, nil},
		"all came":      {nil, []*int{a, b}, nil, []*int{a, b}},
		"all went":      {[]*int{a, b}, nil, []*int{a, b}, nil},
		"one replaced":  {[]*int{a, b, c}, []*int{a, other, c}, []*int{b}, []*int{other}},
		"in the middle": {[]*int{a, b, d}, []*int{a, c, d}, []*int{b}, []*int{c}},
		"between same":  {[]*int{a, c}, []*int{b, c, d}, []*int{a}, []*int{b, d}},
	} {
		gone, come := Changes(x.old, x.now, func(a, b *int) int { return *a - *b })
		if !slices.Equal(gone, x.gone) || !slices.Equal(come, x.come) {
			t.Errorf("%s: gone %v, come %v", name, gone, come)
		}
	}
}
