package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// batch gathers the series of one scrape. Equal ones are added up: a name and
// its labels may come only once.
type batch struct{ families map[string]*family }

type family struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	series map[string]*series
}

type series struct {
	values []string // of the labels
	sum    float64
	// Of a histogram; nil: none. Not cumulated.
	bounds []float64
	counts []uint64
}

// at finds or makes a series; labels are names and values in turn.
func (b *batch) at(name, help string, kind prometheus.ValueType, labels []string) *series {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	f := b.families[name]
	if f == nil {
		f = &family{desc: prometheus.NewDesc(name, help, names, nil), kind: kind, series: map[string]*series{}}
		b.families[name] = f
	}
	key := strings.Join(values, "\xff")
	s := f.series[key]
	if s == nil {
		s = &series{values: values}
		f.series[key] = s
	}
	return s
}

func (b *batch) counter(name, help string, n uint64, labels ...string) {
	b.at(name, help, prometheus.CounterValue, labels).sum += float64(n)
}

func (b *batch) gauge(name, help string, v float64, labels ...string) {
	b.at(name, help, prometheus.GaugeValue, labels).sum += v
}

// histogram adds observations: counts[i] of them up to bounds[i] and above
// bounds[i-1], the last, which has no bound, above all. All of one series have
// the same bounds.
func (b *batch) histogram(name, help string, bounds []float64, counts []uint64, sum float64, labels ...string) {
	s := b.at(name, help, prometheus.UntypedValue, labels)
	s.sum += sum
	s.bounds = bounds
	if s.counts == nil {
		s.counts = make([]uint64, len(bounds)+1)
	}
	for i := range min(len(counts), len(s.counts)) {
		s.counts[i] += counts[i]
	}
}

// send makes metrics of it all.
func (b *batch) send(to chan<- prometheus.Metric) {
	for _, f := range b.families {
		for _, s := range f.series {
			m, err := s.metric(f)
			if err != nil {
				m = prometheus.NewInvalidMetric(f.desc, err)
			}
			to <- m
		}
	}
}

func (s *series) metric(f *family) (prometheus.Metric, error) {
	if s.counts == nil {
		return prometheus.NewConstMetric(f.desc, f.kind, s.sum, s.values...)
	}
	cumulated, total := map[float64]uint64{}, uint64(0)
	for i, n := range s.counts {
		total += n
		if i < len(s.bounds) {
			cumulated[s.bounds[i]] = total
		}
	}
	return prometheus.NewConstHistogram(f.desc, total, s.sum, cumulated, s.values...)
}
