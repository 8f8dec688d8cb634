// Package metrics serves what the rooms of this host counted to Prometheus.
package metrics

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flanneld/flanneld/dns"
	"github.com/flanneld/flanneld/dns/forward"
)

// Sources are asked at every scrape, concurrently.
type Sources struct {
	Version string
	// DNS and Forward return snapshots; nil: there are none on this host.
	DNS     func() dns.Stats
	Forward func() forward.Stats
}

// Handler answers GET /metrics: names in the words of CoreDNS, so that its
// dashboards and alerts serve here too, and this process.
func Handler(s Sources) http.Handler {
	return promhttp.HandlerFor(registry(s), promhttp.HandlerOpts{
		// One series that cannot be does not take the others along.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	})
}

// registry is not the library's global one, in which an embedded etcd
// registers itself.
func registry(s Sources) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{s},
	)
	return r
}

// collector makes metrics of the snapshots.
type collector struct{ sources Sources }

var _ prometheus.Collector = collector{}

// Describe tells nothing: which series there are depends on what was asked.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	b := batch{families: map[string]*family{}}
	b.gauge("flanneld_build_info", "Version of flanneld and of Go.", 1, "version", c.sources.Version, "goversion", runtime.Version())
	if c.sources.DNS != nil {
		b.dns(c.sources.DNS())
	}
	if c.sources.Forward != nil {
		b.forward(c.sources.Forward())
	}
	b.send(to)
}
