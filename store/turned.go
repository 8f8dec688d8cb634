package store

// Turned reports whether an error began, changed or ended since the last call,
// which left in was how it read.
func Turned(was *string, err error) bool {
	now := ""
	if err != nil {
		now = err.Error()
	}
	changed := now != *was
	*was = now
	return changed
}
