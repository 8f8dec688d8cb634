package store

// Unchanged tells how many elements two states of one list have in common at
// the front and, of the others, at the back: what is left of both is all that
// changed. Where one among thousands changes, the rest costs a comparison
// each, in the order of memory.
func Unchanged[Old, Now any](old []Old, now []Now, same func(*Old, *Now) bool) (front, back int) {
	n := min(len(old), len(now))
	for front < n && same(&old[front], &now[front]) {
		front++
	}
	n -= front
	for back < n && same(&old[len(old)-1-back], &now[len(now)-1-back]) {
		back++
	}
	return front, back
}
