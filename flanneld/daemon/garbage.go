package daemon

import (
	"os"
	"runtime/debug"
)

// garbage has Go collect as often as suits the state. It belongs to one
// goroutine.
type garbage struct{ percent int } // 0: as Go does it by itself

// fit is told how many endpoints the daemon knows. Who sets GOGC is obeyed.
func (g *garbage) fit(endpoints int) {
	p := garbagePercent(endpoints)
	if p == g.percent || os.Getenv("GOGC") != "" {
		return
	}
	g.percent = p
	debug.SetGCPercent(p)
}

// garbagePercent is GOGC for so many endpoints, in steps, as to set it stops
// the world. A small heap that may grow by 30 % only is collected all the time:
// a question that goes upstream then takes a sixth more processor time than
// with Go's usual 100. The state of a large cluster stays for long, and little
// garbage is made beside it: with 100,000 endpoints 100 costs 26 MB more than
// 30 and saves one millisecond of the 5 ms of processor time that a change
// takes. So garbage may take what the state of 20,000 endpoints takes.
func garbagePercent(endpoints int) int {
	const (
		most, least = 100, 30
		free        = 20_000
		step        = 10
	)
	return min(max(most*free/max(endpoints, 1)/step*step, least), most)
}
