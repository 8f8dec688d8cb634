package probe

import (
	"context"
	"errors"
	"time"
)

// wire is how a look talks to one peer in one family.
type wire struct {
	// echo sends a packet of a size, headers included, through the tunnel and
	// waits for its answer.
	echo func(ctx context.Context, size int) (time.Duration, error)
	// underlay does so with a small one outside of the tunnel.
	underlay func(ctx context.Context) error
	// exchange tries TCP; nil: not this time.
	exchange func(ctx context.Context) (TCP, error)
	// plain sends packets past the tunnel; nil: not to be tried.
	plain func(ctx context.Context) (Plain, error)
}

// What echo returns beside errors of this host.
var (
	errLost   = errors.New("no answer")
	errTooBig = errors.New("larger than the interface's MTU")
)

// Sizes and counts of a look.
const (
	small = 84 // bytes, as ping sends them; passes wherever IP does
	tries = 2  // of a packet
	// again is how soon unencapsulated packets get their second chance.
	again = 500 * time.Millisecond
)

// look finds out about a path. size is the largest packet that should pass;
// known the largest that did pass last time, 0 if nothing is known. In the
// normal case it costs one packet, and the exchange, and those without the
// tunnel. plain is what is known of these: unless they failed last time, too,
// they get a second chance.
func look(ctx context.Context, w wire, size, known int, plain Plain) observation {
	o := reach(ctx, w, size, known)
	if o.err == nil && w.plain != nil {
		o.plain, o.err = w.plain(ctx)
		if o.err == nil && o.plain == PlainFails && plain != PlainFails {
			select {
			case <-time.After(again):
				o.plain, o.err = w.plain(ctx)
			case <-ctx.Done():
				o.err = ctx.Err()
			}
		}
	}
	if o.err != nil || !o.answered {
		return o
	}
	if plain == PlainPasses && o.plain == PlainFails {
		return o // the way is to change, at once
	}
	if o.mtu == size && w.exchange != nil {
		o.tcp, o.err = w.exchange(ctx)
	}
	return o
}

// reach is the part of look that goes by echo.
func reach(ctx context.Context, w wire, size, known int) (o observation) {
	rtt, err := w.echo(ctx, size)
	if err == nil {
		return observation{answered: true, rtt: rtt, mtu: size}
	}
	if !lost(err) {
		return observation{err: err}
	}
	fullErr := err
	if rtt, err = some(ctx, w, small); err != nil {
		if !lost(err) {
			return observation{err: err}
		}
		err = w.underlay(ctx)
		for i := 1; i < tries && errors.Is(err, errLost); i++ {
			err = w.underlay(ctx)
		}
		if err != nil && !lost(err) {
			return observation{err: err}
		}
		return observation{underlay: err == nil}
	}
	o = observation{answered: true, rtt: rtt}
	if errors.Is(fullErr, errLost) { // of what does not fit nothing else is to be had
		if _, err = some(ctx, w, size); err == nil {
			o.mtu = size
			return o
		}
	}
	o.mtu, o.err = largest(ctx, w, size, known)
	return o
}

// largest finds the largest size below size that passes; small does. What
// passed last time is tried first.
func largest(ctx context.Context, w wire, size, known int) (int, error) {
	low, high := small, size // low passes, high does not
	if known > low && known < high {
		switch _, err := some(ctx, w, known); {
		case err == nil:
			low = known
			if _, err = some(ctx, w, known+1); err != nil && lost(err) {
				return known, nil
			}
		case lost(err):
			high = known
		default:
			return 0, err
		}
	}
	for high-low > 1 {
		middle := (low + high) / 2
		switch _, err := some(ctx, w, middle); {
		case err == nil:
			low = middle
		case lost(err):
			high = middle
		default:
			return 0, err
		}
	}
	return low, nil
}

// some tries a size a few times.
func some(ctx context.Context, w wire, size int) (rtt time.Duration, err error) {
	for range tries {
		if rtt, err = w.echo(ctx, size); !errors.Is(err, errLost) {
			return rtt, err
		}
	}
	return rtt, err
}

// lost: the packet, or its answer, did not arrive; anything else is trouble of
// this host.
func lost(err error) bool { return errors.Is(err, errLost) || errors.Is(err, errTooBig) }
