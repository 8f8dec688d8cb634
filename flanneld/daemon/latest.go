package daemon

// latest is a channel of whole states: a newer value replaces one that was
// not received yet, so that a sender never waits and a receiver never sees
// an outdated one. One sender at a time.
type latest[T any] chan T

func newLatest[T any]() latest[T] { return make(latest[T], 1) }

// put offers v to the receiver, in place of an older value.
func (l latest[T]) put(v T) {
	for {
		select {
		case l <- v:
			return
		default:
		}
		select {
		case <-l:
		default:
		}
	}
}
