package dns

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what was counted since the start, without what is zero.
type Stats struct {
	Requests  []RequestCount
	Responses []ResponseCount
	Durations []DurationCount // from reading a query to having sent its answer
	Dropped   []DropCount     // queries that got no answer
	Panics    uint64          // queries that this program's faults left without one
}

// Words for Zone where no zone of ours answered.
const (
	ZoneOutside = "."       // it was forwarded
	ZoneRefused = "dropped" // it was refused before a zone was looked for
)

// RequestCount counts the queries of a kind that were answered.
type RequestCount struct {
	View   string
	Zone   string // apex with the dot at the end, or one of the words
	Proto  string // udp or tcp
	Family int    // 1: IPv4, 2: IPv6
	Type   uint16 // 0: another
	Count  uint64
}

// ResponseCount counts the answers with a code.
type ResponseCount struct {
	View, Zone string
	Rcode      int
	Count      uint64
}

// DurationCount tells how long the answers of a zone took.
type DurationCount struct {
	View, Zone string
	Histogram  Histogram
}

// DropCount counts queries that were dropped in silence.
type DropCount struct {
	View   string
	Reason string // rate, source, malformed, busy
	Count  uint64
}

// Histogram of durations in seconds: Counts[i] of them were above Bounds[i-1]
// and up to Bounds[i]; the last of Counts, which has one more, were above all.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}

// The histogram's bounds are firstBound times the powers of two: CoreDNS's,
// which begin at 250 µs, and three below.
const (
	firstBound = 31250 * time.Nanosecond
	bounds     = 19
)

// counters of one socket. They are written by few goroutines, mostly one, and
// read by any.
type counters struct {
	view, proto string
	family      int

	dropped [dropReasons]atomic.Uint64
	panics  atomic.Uint64

	zones atomic.Pointer[[]*zoneCounters] // replaced when there is a new one
	mu    sync.Mutex                      // held by whoever replaces zones
}

// zoneCounters are a socket's counters of one zone.
type zoneCounters struct {
	apex      string // in wire format; one of the words for what has no zone
	types     [typeSlots]atomic.Uint64
	rcodes    [rcodeBadVers + 1]atomic.Uint64
	durations [bounds + 1]atomic.Uint64
	sum       atomic.Uint64 // ns
}

// counted is what counters are kept for.
type counted struct {
	view  string
	place place
}

// countersOf returns the counters of a view at a place, which outlive the
// socket.
func (s *Server) countersOf(view string, p place) *counters {
	key := counted{view, p}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counters[key]
	if c == nil {
		family := 1
		if p.addr.Is6() {
			family = 2
		}
		c = newCounters(view, p.proto, family)
		s.counters[key] = c
	}
	return c
}

// Reasons to drop a query.
const (
	dropRate = iota
	dropSource
	dropMalformed
	dropBusy
	dropReasons
)

const (
	zoneRefused = 0 // their places among a socket's zones
	zoneOutside = 1
	mostZones   = 64 // of one socket; further ones count as the last
)

func newCounters(view, proto string, family int) *counters {
	c := &counters{view: view, proto: proto, family: family}
	c.zones.Store(&[]*zoneCounters{{apex: ZoneRefused}, {apex: ZoneOutside}})
	return c
}

// zone returns the counters of the zone with an apex.
func (c *counters) zone(apex []byte) *zoneCounters {
	for {
		zones := *c.zones.Load()
		for _, z := range zones[zoneOutside+1:] {
			if z.apex == string(apex) {
				return z
			}
		}
		if len(zones) == mostZones {
			return zones[mostZones-1]
		}
		c.add(string(apex))
	}
}

// add makes counters for an apex, if there are none.
func (c *counters) add(apex string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.zones.Load()
	for _, z := range old[zoneOutside+1:] {
		if z.apex == apex {
			return
		}
	}
	zones := slices.Concat(old, []*zoneCounters{{apex: apex}})
	c.zones.Store(&zones)
}

// answered counts an answer of r's.
func (c *counters) answered(r *responder, o outcome, took time.Duration) {
	var z *zoneCounters
	switch o {
	case ours:
		z = c.zone(r.apex)
	case refused:
		z = (*c.zones.Load())[zoneRefused]
	default:
		z = (*c.zones.Load())[zoneOutside]
	}
	z.count(r.q.qtype, r.rcode, took)
}

// fetched counts the answer that an errand brought.
func (c *counters) fetched(e *errand, reply []byte, took time.Duration) {
	z := (*c.zones.Load())[zoneOutside]
	if e.alias != nil {
		z = c.zone(e.apex)
	}
	z.count(e.q.qtype, int(reply[3]&15), took)
}

func (z *zoneCounters) count(qtype uint16, rcode int, took time.Duration) {
	z.types[typeSlot(qtype)].Add(1)
	z.rcodes[rcode].Add(1)
	z.durations[bucket(took)].Add(1)
	z.sum.Add(uint64(took))
}

func bucket(took time.Duration) int {
	if took <= firstBound {
		return 0
	}
	return min(bits.Len64(uint64((took-1)/firstBound)), bounds)
}

// Types are counted one by one below lowTypes, then these; slot 0 is the rest.
const (
	lowTypes  = 64
	typeSVCB  = 64
	typeHTTPS = 65
	typeSlots = lowTypes + 3
)

func typeSlot(qtype uint16) int {
	switch {
	case qtype < lowTypes:
		return int(qtype)
	case qtype == typeSVCB, qtype == typeHTTPS:
		return int(qtype)
	case qtype == typeANY:
		return typeSlots - 1
	}
	return 0
}

func slotType(slot int) uint16 {
	if slot == typeSlots-1 {
		return typeANY
	}
	return uint16(slot)
}
