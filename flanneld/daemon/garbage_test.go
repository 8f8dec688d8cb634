package daemon

import (
	"runtime/debug"
	"testing"
)

func TestMoreIsCollectedInLargeClusters(t *testing.T) {
	for endpoints, want := range map[int]int{0: 100, 1: 100, 20_000: 100, 21_000: 90, 40_000: 50, 60_000: 30, 100_000: 30, 10_000_000: 30} {
		if got := garbagePercent(endpoints); got != want {
			t.Errorf("%d endpoints: %d %%, want %d", endpoints, got, want)
		}
	}
}

func TestTheCollectorIsSetOnlyWhenItChanges(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	var g garbage
	g.fit(100_000)
	if p := debug.SetGCPercent(77); p != 30 {
		t.Errorf("100,000 endpoints: %d", p)
	}
	g.fit(110_000)
	if p := debug.SetGCPercent(77); p != 77 {
		t.Errorf("nothing new: %d", p)
	}
	t.Setenv("GOGC", "50")
	g.fit(10)
	if p := debug.SetGCPercent(77); p != 77 {
		t.Errorf("against GOGC: %d", p)
	}
	t.Setenv("GOGC", "")
	g.fit(10)
	if p := debug.SetGCPercent(77); p != 100 {
		t.Errorf("10 endpoints: %d", p)
	}
}
