package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// stats are the figures of one measure.
type stats []time.Duration

func (s stats) median() time.Duration {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	return c[len(c)/2]
}

// String is the median with the least and the greatest.
func (s stats) String() string {
	if len(s) == 0 {
		return ""
	}
	if len(s) == 1 {
		return round(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", round(s.median()), round(slices.Min(s)), round(slices.Max(s)))
}

// round has three digits.
func round(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 100*unit {
			return trim(fmt.Sprintf("%.0f", float64(d)/float64(unit)), unit)
		}
		if d >= 10*unit {
			return trim(fmt.Sprintf("%.1f", float64(d)/float64(unit)), unit)
		}
		if d >= unit {
			return trim(fmt.Sprintf("%.2f", float64(d)/float64(unit)), unit)
		}
	}
	return d.String()
}

func trim(number string, unit time.Duration) string {
	return number + " " + strings.TrimLeft(unit.String(), "1")
}

// floats are ratios.
type floats []float64

func (f floats) String() string {
	c := slices.Sorted(slices.Values(f))
	if len(c) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", c[len(c)/2], c[0], c[len(c)-1])
}

func mb(bytes int) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }

// wait returns early, with the error, if ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
