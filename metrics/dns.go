package metrics

import (
	"slices"
	"strconv"

	"github.com/flanneld/flanneld/dns"
	"github.com/flanneld/flanneld/dns/forward"
	"github.com/flanneld/flanneld/flanneld/api"
)

// server is CoreDNS's label for a socket: all of ours answer alike.
const server = "dns://:53"

// dns has the names and labels of CoreDNS's plugin prometheus.
func (b *batch) dns(s dns.Stats) {
	for _, r := range s.Requests {
		b.counter("coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.", r.Count,
			"server", server, "zone", r.Zone, "view", r.View, "proto", r.Proto, "family", strconv.Itoa(r.Family), "type", typeLabel(r.Type))
	}
	for _, r := range s.Responses {
		b.counter("coredns_dns_responses_total", "Counter of response status codes.", r.Count,
			"server", server, "zone", r.Zone, "view", r.View, "rcode", api.RcodeName(r.Rcode), "plugin", plugin(r.Zone))
	}
	for _, d := range s.Durations {
		h := d.Histogram
		b.histogram("coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.", h.Bounds, h.Counts, h.Sum,
			"server", server, "zone", d.Zone, "view", d.View)
	}
	for _, d := range s.Dropped {
		b.counter("flanneld_dns_dropped_total", "Queries that got no answer: too many from one source, from a source that is not served, malformed, or too many under way.", d.Count,
			"view", d.View, "reason", d.Reason)
	}
	b.counter("coredns_panics_total", "A metrics that counts the number of panics.", s.Panics)
}

// plugin is CoreDNS's word for who answered.
func plugin(zone string) string {
	switch zone {
	case dns.ZoneOutside:
		return "forward"
	case dns.ZoneRefused:
		return ""
	}
	return "flanneld"
}

// typeLabel is the mnemonic of the types that CoreDNS tells apart, else
// "other": a client must not be able to make series.
func typeLabel(t uint16) string {
	name := api.TypeName(t)
	if slices.Contains([]string{"A", "AAAA", "MX", "SOA", "CNAME", "PTR", "TXT", "NS", "SRV", "DS", "DNSKEY", "RRSIG", "NSEC", "NSEC3", "HTTPS", "IXFR", "AXFR", "ANY"}, name) {
		return name
	}
	return "other"
}

// forward has the names and labels of CoreDNS's plugins cache and forward.
func (b *batch) forward(s forward.Stats) {
	c := s.Cache
	cache := []string{"server", server, "zones", ".", "view", ""}
	typed := func(t string) []string { return append([]string{"type", t}, cache...) }
	const hits = "coredns_cache_hits_total"
	b.counter(hits, "The count of cache hits.", c.HitsSuccess, typed("success")...)
	b.counter(hits, "The count of cache hits.", c.HitsDenial, typed("denial")...)
	b.counter("coredns_cache_misses_total", "The count of cache misses.", c.Misses, cache...)
	b.counter("coredns_cache_requests_total", "The count of cache requests.", c.HitsSuccess+c.HitsDenial+c.Misses, cache...)
	b.gauge("coredns_cache_entries", "The number of elements in the cache.", float64(c.EntriesSuccess), typed("success")...)
	b.gauge("coredns_cache_entries", "The number of elements in the cache.", float64(c.EntriesDenial), typed("denial")...)
	b.counter("coredns_cache_prefetch_total", "The number of times the cache has prefetched a cached item.", s.Prefetches, cache...)
	b.counter("coredns_cache_served_stale_total", "The number of requests served from stale cache entries.", c.Stale, cache...)
	b.counter("coredns_cache_evictions_total", "The count of cache evictions.", c.Evictions, typed("")...)
	b.gauge("flanneld_dns_cache_bytes", "Memory that the cache's answers take.", float64(c.Bytes))

	b.counter("coredns_forward_max_concurrent_rejects_total", "Counter of the number of queries rejected because the concurrent queries were at maximum.", s.Rejects)
	b.counter("flanneld_dns_upstream_retries_total", "Questions that were sent to an upstream once more.", s.Retries)
	bounds := seconds()
	for _, u := range s.Upstreams {
		to := u.Addr.String()
		up := 1.0
		if u.Down {
			up = 0
		}
		b.gauge("flanneld_dns_upstream_up", "Whether the upstream answers.", up, "to", to)
		b.counter("flanneld_dns_upstream_failures_total", "Times that the upstream did not reply when it should have.", u.Failures, "to", to)
		b.counter("coredns_proxy_healthcheck_failures_total", "Counter of the number of failed healthchecks.", u.ProbeFailures, "proxy_name", "forward", "to", to)
		for rcode, h := range u.Replies {
			counts := slices.Clone(h.Buckets[:])
			rest := h.Count
			for _, n := range counts {
				rest -= n
			}
			b.histogram("coredns_proxy_request_duration_seconds", "Histogram of the time each request took.", bounds, append(counts, rest), h.Sum.Seconds(),
				"proxy_name", "forward", "to", to, "rcode", api.RcodeName(rcode))
		}
	}
}

// seconds are the bounds of the upstreams' histograms.
func seconds() []float64 {
	var out []float64
	for _, d := range forward.Buckets() {
		out = append(out, d.Seconds())
	}
	return out
}
