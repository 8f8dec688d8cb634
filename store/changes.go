package store

// Changes compares two states of one list by pointers: what is in the old one
// alone, and in the new one alone. The lists are sorted by key, by which order
// merges them; were they not, more would be gone and come than need be.
func Changes[T any](old, list []*T, order func(a, b *T) int) (gone, come []*T) {
	front, back := Unchanged(old, list, func(a, b **T) bool { return *a == *b })
	old, list = old[front:len(old)-back], list[front:len(list)-back]
	for len(old) > 0 && len(list) > 0 {
		if old[0] == list[0] {
			old, list = old[1:], list[1:]
			continue
		}
		o := order(old[0], list[0])
		if o <= 0 {
			gone, old = append(gone, old[0]), old[1:]
		}
		if o >= 0 {
			come, list = append(come, list[0]), list[1:]
		}
	}
	return append(gone, old...), append(come, list...)
}
