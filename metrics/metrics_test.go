package metrics

import (
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/flanneld/flanneld/dns"
	"github.com/flanneld/flanneld/dns/forward"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample has every kind of count, some twice, as several sockets have them.
func sample() Sources {
	h := dns.Histogram{Bounds: []float64{0.001, 0.002}, Counts: []uint64{5, 3, 1}, Sum: 0.5}
	var fast forward.Histogram
	fast.Buckets[0], fast.Buckets[3], fast.Count, fast.Sum = 7, 2, 10, 20*time.Second // one was slower than all buckets
	return Sources{
		Version: "v0.1.0",
		DNS: func() dns.Stats {
			return dns.Stats{
				Requests: []dns.RequestCount{
					{View: "default", Zone: "cluster.local.", Proto: "udp", Family: 1, Type: 1, Count: 8},
					{View: "default", Zone: "cluster.local.", Proto: "udp", Family: 1, Type: 1, Count: 2},
					{View: "default", Zone: "cluster.local.", Proto: "tcp", Family: 2, Type: 33, Count: 1},
					{View: "default", Zone: dns.ZoneOutside, Proto: "udp", Family: 1, Type: 0, Count: 3},
					{View: "default", Zone: dns.ZoneOutside, Proto: "udp", Family: 1, Type: 64, Count: 1},
				},
				Responses: []dns.ResponseCount{
					{View: "default", Zone: "cluster.local.", Rcode: 0, Count: 9},
					{View: "default", Zone: "cluster.local.", Rcode: 3, Count: 2},
					{View: "default", Zone: dns.ZoneOutside, Rcode: 2, Count: 4},
					{View: "default", Zone: dns.ZoneRefused, Rcode: 5, Count: 1},
				},
				Durations: []dns.DurationCount{{View: "default", Zone: "cluster.local.", Histogram: h}, {View: "default", Zone: "cluster.local.", Histogram: h}},
				Dropped:   []dns.DropCount{{View: "default", Reason: "rate", Count: 6}},
				Panics:    1,
			}
		},
		Forward: func() forward.Stats {
			return forward.Stats{
				Cache:      forward.CacheStats{HitsSuccess: 100, HitsDenial: 20, Misses: 30, Stale: 2, Evictions: 1, EntriesSuccess: 11, EntriesDenial: 4, Bytes: 4096},
				Prefetches: 5, Retries: 2, Rejects: 1,
				Upstreams: []forward.UpstreamStats{
					{Addr: netip.MustParseAddrPort("192.0.2.1:53"), Replies: map[int]forward.Histogram{0: fast, 3: fast}, Failures: 1},
					{Addr: netip.MustParseAddrPort("[2001:db8::1]:53"), Down: true, ProbeFailures: 9},
				},
			}
		},
	}
}

// scrape returns what Prometheus would read, without the process's own.
func scrape(t *testing.T, s Sources) (ours, all string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	b, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d, %v: %s", w.Code, err, b)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if strings.HasPrefix(name, "coredns_") || strings.HasPrefix(name, "flanneld_") && !strings.HasPrefix(name, "flanneld_build_info{") {
			out.WriteString(line)
		}
	}
	return out.String(), string(b)
}

func TestMetricsHaveTheNamesOfCoreDNS(t *testing.T) {
	got, all := scrape(t, sample())
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and read the difference):\n%s", golden, got)
	}
	for _, w := range []string{"flanneld_build_info{", `version="v0.1.0"`, "go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(all, w) {
			t.Errorf("no %s in\n%s", w, all)
		}
	}
}

func TestHistogramsAreCumulated(t *testing.T) {
	got, _ := scrape(t, sample())
	for _, w := range []string{
		`coredns_dns_request_duration_seconds_bucket{server="dns://:53",view="default",zone="cluster.local.",le="0.002"} 16`,
		`coredns_dns_request_duration_seconds_bucket{server="dns://:53",view="default",zone="cluster.local.",le="+Inf"} 18`,
		`coredns_proxy_request_duration_seconds_count{proxy_name="forward",rcode="NOERROR",to="192.0.2.1:53"} 10`,
		`coredns_proxy_request_duration_seconds_sum{proxy_name="forward",rcode="NXDOMAIN",to="192.0.2.1:53"} 20`,
	} {
		if !strings.Contains(got, w+"\n") {
			t.Errorf("no %s in\n%s", w, got)
		}
	}
}

// TestNamesFollowTheConventions leaves CoreDNS's own alone.
func TestNamesFollowTheConventions(t *testing.T) {
	families, err := registry(sample()).Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestHostWithoutNamesHasTheRest(t *testing.T) {
	got, all := scrape(t, Sources{Version: "v0.1.0"})
	if strings.Contains(got, "coredns_") || !strings.Contains(all, "flanneld_build_info{") {
		t.Errorf("got %s", all)
	}
}

func TestZoneThatCannotBeALabelDoesNotHideTheOthers(t *testing.T) {
	s := sample()
	s.DNS = func() dns.Stats {
		return dns.Stats{Requests: []dns.RequestCount{{Zone: "\xff.", Proto: "udp", Family: 1, Type: 1, Count: 1}}}
	}
	if got, _ := scrape(t, s); !strings.Contains(got, "coredns_cache_hits_total{") {
		t.Errorf("got %s", got)
	}
}
