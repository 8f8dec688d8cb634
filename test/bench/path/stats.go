package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one measurement and what it cost.
type sample struct {
	result
	busy time.Duration // of all CPUs
}

// series are the rounds of one lane and measure.
type series struct {
	ratios             []float64
	hosts, pods        []float64 // per second
	hosts99, pods99    []float64 // seconds
	hostCost, podsCost []float64 // seconds of CPU per unit
}

// add takes a round: two measurements of the hosts and two of the pods.
func (s *series) add(r [2][2]sample) {
	host, pods := r[0][0].rate()+r[0][1].rate(), r[1][0].rate()+r[1][1].rate()
	s.ratios = append(s.ratios, pods/host)
	for i := range 2 {
		h, p := r[0][i], r[1][i]
		s.hosts, s.pods = append(s.hosts, h.rate()), append(s.pods, p.rate())
		s.hosts99, s.pods99 = append(s.hosts99, h.P99.Seconds()), append(s.pods99, p.P99.Seconds())
		s.hostCost, s.podsCost = append(s.hostCost, h.cost()), append(s.podsCost, p.cost())
	}
}

func (s sample) cost() float64 { return s.busy.Seconds() / float64(max(s.Count, 1)) }

// row is the series as cells of a table.
func (s *series) row(what string) string {
	slices.Sort(s.ratios)
	low, high := interval(s.ratios)
	cells := []string{
		fmt.Sprintf("%.2f (%.2f–%.2f; %.2f–%.2f)", median(s.ratios), s.ratios[0], s.ratios[len(s.ratios)-1], low, high),
	}
	if what == "1" || what == "4" {
		const bits = 8e-9
		return strings.Join(append(cells, fmt.Sprintf("%.2f Gbit/s", median(s.hosts)*bits), fmt.Sprintf("%.2f Gbit/s", median(s.pods)*bits), "",
			fmt.Sprintf("%.2f", median(s.podsCost)/median(s.hostCost))), " | ")
	}
	tail := ""
	if what != "udp" {
		tail = fmt.Sprintf("%.0f, %.0f µs", median(s.hosts99)*1e6, median(s.pods99)*1e6)
	}
	return strings.Join(append(cells, fmt.Sprintf("%.0f/s", median(s.hosts)), fmt.Sprintf("%.0f/s", median(s.pods)), tail,
		fmt.Sprintf("%.2f", median(s.podsCost)/median(s.hostCost))), " | ")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// interval is a 95 % confidence interval of the median of sorted values, by
// their order: of nine the second to the eighth (96 %). With less than six
// there is none but their range.
func interval(v []float64) (low, high float64) {
	n := len(v)
	drop := 0
	for coverage(n, drop+1) >= 0.95 {
		drop++
	}
	return v[drop], v[n-1-drop]
}

// coverage is how probably the median lies between the values that are left
// when drop of n are left out at either end (binomial distribution).
func coverage(n, drop int) float64 {
	if 2*drop >= n {
		return 0
	}
	below, ways := 0.0, 1.0
	for i := range drop {
		below += ways
		ways = ways * float64(n-i) / float64(i+1)
	}
	total := 1.0
	for range n {
		total *= 2
	}
	return 1 - 2*below/total
}

// busy is the time that all CPUs together have worked, as far as the kernel
// counts it.
func busy() time.Duration {
	text, _ := os.ReadFile("/proc/stat") // always there on Linux
	line, _, _ := strings.Cut(string(text), "\n")
	const tick = 10 * time.Millisecond // USER_HZ
	var sum time.Duration
	for i, f := range strings.Fields(line) {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i > 0 && i != 4 && i != 5 && i < 8 { // not idle, not iowait
			sum += time.Duration(n) * tick
		}
	}
	return sum
}
