package cli

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares output for people with testdata/<name>.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and read the difference):\n%s", path, got)
	}
}

func TestStatusReadsAtAGlance(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	yes, no := true, false
	cases := map[string]api.Status{
		"status-ok.txt": {
			Verdict: api.OK, Version: "v0.1.0", Node: "host1", Started: ago(9 * 24 * time.Hour),
			Etcd: api.Etcd{Endpoints: []string{"http://127.0.0.1:2379"}, Connected: true, Since: ago(3 * time.Hour),
				Embedded: &api.Embedded{Listen: "192.168.77.11:2379", Size: 3 << 20, Quota: 2 << 30}},
			Network: &api.Network{Name: "default", Networks: prefixes("10.1.0.0/16", "fd00:1::/48"), Subnets: prefixes("10.1.19.0/24", "fd00:1:0:19::/64"),
				PublicIPs: addrs("192.168.77.11", "fd00:77::11"), Underlay: "eth0", Driver: "vxlan", Device: "flannel.1", MTU: 1430,
				Masquerade: true, Filter: "nftables", Held: ago(26 * time.Hour), Synced: ago(4 * time.Second)},
			Peers: []api.Peer{
				{Node: "host2", Subnets: prefixes("10.1.7.0/24"), PublicIPs: addrs("192.168.77.12"), Driver: "vxlan", Known: ago(time.Hour), Synced: ago(4 * time.Second), Live: &yes,
					Probes: []api.Probe{
						{Addr: addrs("10.1.7.0")[0], Verdict: "ok", RTT: 310 * time.Microsecond, MTU: 1430, TCP: "works"},
						{Addr: addrs("fd00:1:0:7::")[0], Verdict: "ok", RTT: 1290 * time.Microsecond, MTU: 1430, TCP: "works"},
					}},
				{Subnets: prefixes("10.1.8.0/24"), PublicIPs: addrs("192.168.77.13"), Driver: "vxlan", Known: ago(5 * time.Minute), Synced: ago(4 * time.Second)},
			},
			DNS: &api.DNS{Domain: "cluster.local", Addresses: addrs("10.1.19.1", "10.0.0.10", "fd00:1:0:19::1"), Endpoints: 12, Services: 3, Names: 1,
				Upstreams: []api.Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53"), Healthy: true}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:53"), Healthy: true}}},
			Notices: []string{"net.ipv4.ip_forward 0 → 1"},
		},
		"status-degraded.txt": {
			Verdict: api.Degraded, Reasons: []string{"etcd is out of reach since 12s, traffic goes on: connection refused"},
			Version: "v0.1.0", Node: "host1", Started: ago(time.Minute),
			Etcd: api.Etcd{Endpoints: []string{"http://192.168.77.1:2379"}, Since: ago(12 * time.Second), Error: "connection refused"},
			Network: &api.Network{Name: "default", Networks: prefixes("10.1.0.0/16"), Subnets: prefixes("10.1.19.0/24"), PublicIPs: addrs("192.168.77.11"),
				Underlay: "eth0", Driver: "vxlan", Device: "flannel.1", MTU: 1450, Filter: "nftables", Held: ago(time.Minute), Synced: ago(time.Second)},
			DNS: &api.DNS{Domain: "cluster.local", Endpoints: 1, LeftOut: 2, Upstreams: []api.Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}},
			Peers: []api.Peer{{Node: "host3", Subnets: prefixes("10.1.9.0/24"), PublicIPs: addrs("192.168.77.13"), Driver: "vxlan", Known: ago(time.Minute), Synced: ago(time.Second), Live: &no},
				{Node: "host4", Subnets: prefixes("10.1.10.0/24"), PublicIPs: addrs("192.168.77.14"), Driver: "vxlan", Known: ago(time.Minute), Synced: ago(time.Second), Live: &yes,
					Probes: []api.Probe{{Addr: addrs("10.1.10.0")[0], Verdict: "small-mtu", RTT: time.Millisecond, MTU: 1412,
						Message: `host4: packets over 1412 bytes are lost: set MTU 1412 ("MTU":1462 in the configuration's Backend)`}}}},
		},
		"status-down.txt": {
			Verdict: api.Down, Reasons: []string{"waiting for etcd at http://192.168.77.1:2379 since 9s"},
			Version: "v0.1.0", Node: "host1", Started: ago(9 * time.Second),
			Etcd: api.Etcd{Endpoints: []string{"http://192.168.77.1:2379"}, Since: ago(9 * time.Second), Error: "connection refused"},
		},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			printStatus(&out, s, now)
			golden(t, name, out.String())
		})
	}
}
