package probe

import (
	"context"
	"errors"
	"testing"
	"time"
)

// way is a path that exists only here.
type way struct {
	passes   int // the largest packet that passes; 0: none
	fits     int // the largest that this host lets out; 0: any
	loses    int // so many packets first, whatever their size
	err      error
	underlay error
	tcp      TCP
	plain    Plain
	second   Plain // what the second try finds; "": the same

	sent, exchanges, plains int
}

func (w *way) wire() wire {
	return wire{
		echo: func(_ context.Context, size int) (time.Duration, error) {
			switch w.sent++; {
			case w.err != nil:
				return 0, w.err
			case w.fits > 0 && size > w.fits:
				return 0, errTooBig
			case w.loses > 0:
				w.loses--
				return 0, errLost
			case size > w.passes:
				return 0, errLost
			}
			return time.Millisecond, nil
		},
		underlay: func(context.Context) error { return w.underlay },
		exchange: func(context.Context) (TCP, error) { w.exchanges++; return w.tcp, nil },
		plain: func(context.Context) (Plain, error) {
			if w.plains++; w.plains == 2 && w.second != "" {
				return w.second, nil
			}
			return w.plain, nil
		},
	}
}

var errHere = errors.New("operation not permitted")

func TestLook(t *testing.T) {
	for name, c := range map[string]struct {
		way   way
		known int
		plain Plain // known before
		want  observation
		most  int // packets
	}{
		"all is well: one packet": {
			way: way{passes: 9000, tcp: TCPWorks, plain: PlainPasses}, plain: PlainPasses,
			want: observation{answered: true, mtu: 1450, tcp: TCPWorks, plain: PlainPasses}, most: 1,
		},
		"plain gets a second chance unless it failed before": {
			way: way{passes: 9000, plain: PlainFails, second: PlainPasses}, plain: PlainPasses,
			want: observation{answered: true, mtu: 1450, plain: PlainPasses}, most: 1,
		},
		"none where it did": {
			way: way{passes: 9000, plain: PlainFails, second: PlainPasses}, plain: PlainFails,
			want: observation{answered: true, mtu: 1450, plain: PlainFails}, most: 1,
		},
		"one lost packet is no news": {
			way:  way{passes: 9000, loses: 1, tcp: TCPWorks, plain: PlainFails},
			want: observation{answered: true, mtu: 1450, tcp: TCPWorks, plain: PlainFails}, most: 3,
		},
		"TCP fails": {
			way:  way{passes: 9000, tcp: TCPFails, plain: PlainElsewhere},
			want: observation{answered: true, mtu: 1450, tcp: TCPFails, plain: PlainElsewhere}, most: 1,
		},
		"the largest is searched for, and TCP left alone": {
			way:  way{passes: 1412, tcp: TCPFails},
			want: observation{answered: true, mtu: 1412}, most: 30,
		},
		"what was the largest last time is looked at first": {
			way: way{passes: 1412}, known: 1412,
			want: observation{answered: true, mtu: 1412}, most: 7,
		},
		"it has become smaller": {
			way: way{passes: 1300}, known: 1412,
			want: observation{answered: true, mtu: 1300}, most: 32,
		},
		"it has grown, but not enough": {
			way: way{passes: 1440}, known: 1412,
			want: observation{answered: true, mtu: 1440}, most: 20,
		},
		"what this host does not let out is not sent again": {
			way:  way{passes: 9000, fits: 1400},
			want: observation{answered: true, mtu: 1400}, most: 14,
		},
		"silent, but the underlay answers": {
			way:  way{},
			want: observation{underlay: true}, most: 3,
		},
		"silent altogether": {
			way:  way{underlay: errLost},
			want: observation{}, most: 3,
		},
		"trouble of this host": {
			way:  way{err: errHere},
			want: observation{err: errHere}, most: 1,
		},
		"trouble of this host outside of the tunnel": {
			way:  way{underlay: errHere},
			want: observation{err: errHere}, most: 3,
		},
		"plain has stopped passing": {
			way: way{underlay: errLost, plain: PlainFails}, plain: PlainPasses,
			want: observation{plain: PlainFails}, most: 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := look(t.Context(), c.way.wire(), 1450, c.known, c.plain)
			got.rtt = 0
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if c.way.sent > c.most {
				t.Errorf("%d packets, at most %d are fine", c.way.sent, c.most)
			}
		})
	}
}

// Whatever the largest size is, it is found, in a bounded number of packets.
func TestEverySizeIsFound(t *testing.T) {
	for passes := small; passes < 1450; passes++ {
		for _, known := range []int{0, passes, passes - 7, passes + 7, 1449} {
			w := way{passes: passes}
			if got := look(t.Context(), w.wire(), 1450, known, PlainPasses); got.mtu != passes || got.err != nil {
				t.Fatalf("known %d: found %d, want %d: %v", known, got.mtu, passes, got.err)
			}
			if w.sent > 34 {
				t.Fatalf("%d packets for %d, known %d", w.sent, passes, known)
			}
		}
	}
}
