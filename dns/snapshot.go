package dns

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Stats returns what was counted. It may be called at any time. The counts of
// a view end with it.
func (s *Server) Stats() Stats {
	t := tally{
		requests:  map[RequestCount]uint64{},
		responses: map[ResponseCount]uint64{},
		durations: map[[2]string]*Histogram{},
		dropped:   map[DropCount]uint64{},
	}
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.counters))
	s.mu.Unlock()
	for _, c := range all {
		t.add(c)
	}
	return t.stats()
}

// tally adds up the counters of several sockets. The keys of its maps have no
// count of their own.
type tally struct {
	requests  map[RequestCount]uint64
	responses map[ResponseCount]uint64
	durations map[[2]string]*Histogram // by view and zone
	dropped   map[DropCount]uint64
	panics    uint64
}

func (t *tally) add(c *counters) {
	for i := range c.dropped {
		t.dropped[DropCount{View: c.view, Reason: dropReason(i)}] += c.dropped[i].Load()
	}
	t.panics += c.panics.Load()
	for i, z := range *c.zones.Load() {
		name := z.apex
		if i > zoneOutside {
			name = text(z.apex)
		}
		for slot := range z.types {
			t.requests[RequestCount{View: c.view, Zone: name, Proto: c.proto, Family: c.family, Type: slotType(slot)}] += z.types[slot].Load()
		}
		for code := range z.rcodes {
			t.responses[ResponseCount{View: c.view, Zone: name, Rcode: code}] += z.rcodes[code].Load()
		}
		t.histogram(c.view, name).add(z)
	}
}

func (t *tally) histogram(view, zone string) *Histogram {
	key := [2]string{view, zone}
	h := t.durations[key]
	if h == nil {
		h = &Histogram{Counts: make([]uint64, bounds+1)}
		for i := range bounds {
			h.Bounds = append(h.Bounds, (firstBound << i).Seconds())
		}
		t.durations[key] = h
	}
	return h
}

func (h *Histogram) add(z *zoneCounters) {
	for i := range z.durations {
		h.Counts[i] += z.durations[i].Load()
	}
	h.Sum += time.Duration(z.sum.Load()).Seconds()
}

// stats returns the sums that are not zero, in an order of their own.
func (t *tally) stats() Stats {
	s := Stats{Panics: t.panics}
	for k, n := range t.requests {
		if k.Count = n; n > 0 {
			s.Requests = append(s.Requests, k)
		}
	}
	for k, n := range t.responses {
		if k.Count = n; n > 0 {
			s.Responses = append(s.Responses, k)
		}
	}
	for k, h := range t.durations {
		if slices.ContainsFunc(h.Counts, func(n uint64) bool { return n > 0 }) {
			s.Durations = append(s.Durations, DurationCount{View: k[0], Zone: k[1], Histogram: *h})
		}
	}
	for k, n := range t.dropped {
		if k.Count = n; n > 0 {
			s.Dropped = append(s.Dropped, k)
		}
	}
	slices.SortFunc(s.Requests, func(a, b RequestCount) int {
		return cmp.Or(cmp.Compare(a.View, b.View), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Family, b.Family), cmp.Compare(a.Type, b.Type))
	})
	slices.SortFunc(s.Responses, func(a, b ResponseCount) int {
		return cmp.Or(cmp.Compare(a.View, b.View), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Rcode, b.Rcode))
	})
	slices.SortFunc(s.Durations, func(a, b DurationCount) int {
		return cmp.Or(cmp.Compare(a.View, b.View), cmp.Compare(a.Zone, b.Zone))
	})
	slices.SortFunc(s.Dropped, func(a, b DropCount) int {
		return cmp.Or(cmp.Compare(a.View, b.View), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

func dropReason(i int) string {
	return [dropReasons]string{dropRate: "rate", dropSource: "source", dropMalformed: "malformed", dropBusy: "busy"}[i]
}

// text is a name in wire format for people: "cluster.local.". The apexes are
// ours; nothing in them needs to be escaped.
func text(name string) string {
	var b strings.Builder
	for len(name) > 1 {
		n := 1 + int(name[0])
		b.WriteString(name[1:n])
		b.WriteByte('.')
		name = name[n:]
	}
	return b.String()
}
