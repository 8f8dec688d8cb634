package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/probe"
	"github.com/flanneld/flanneld/subnet"
)

func TestLatestGivesTheNewest(t *testing.T) {
	l := newLatest[int]()
	for i := range 10 {
		l.put(i)
	}
	if got := <-l; got != 9 {
		t.Errorf("got %d", got)
	}
	select {
	case v := <-l:
		t.Errorf("an outdated %d", v)
	default:
	}
}

func TestOneDaemonPerHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := lockHost(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockHost(t.Context(), dir); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockHost(t.Context(), dir)
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	_ = again.Close()
}

func TestPeerErrorsAreSortedOut(t *testing.T) {
	peer := &backend.PeerError{Peer: &subnet.Lease{Key: "k"}, Err: errors.New("bad MAC")}
	whole := errors.New("no device")
	unserved := map[string]string{}
	if err := splitPeerErrors(nil, unserved); err != nil || len(unserved) != 0 {
		t.Errorf("nil gives %v %v", err, unserved)
	}
	if err := splitPeerErrors(errors.Join(peer, whole), unserved); !errors.Is(err, whole) || errors.Is(err, peer) {
		t.Errorf("rest is %v", err)
	}
	if unserved["k"] != "lease k: bad MAC" {
		t.Errorf("unserved %v", unserved)
	}
	unserved = map[string]string{}
	if err := splitPeerErrors(peer, unserved); err != nil || len(unserved) != 1 {
		t.Errorf("a single one: %v %v", err, unserved)
	}
}

func TestErrorsTellTheExitCode(t *testing.T) {
	cases := map[string]struct {
		err           error
		taken, config bool
	}{
		"held by somebody": {fmt.Errorf("run: %w", subnet.ErrTaken), true, false},
		"address in use":   {&subnet.InUseError{}, true, false},
		"configuration":    {&subnet.ConfigError{Field: "Network"}, false, true},
		"flags":            {&config.UsageError{Msg: "x"}, false, true},
		"anything else":    {errors.New("x"), false, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if IsTaken(tc.err) != tc.taken || IsConfig(tc.err) != tc.config {
				t.Errorf("taken %v, config %v", IsTaken(tc.err), IsConfig(tc.err))
			}
		})
	}
}

func TestSeedIsAValidConfiguration(t *testing.T) {
	cases := map[string][]string{
		"IPv4": {"10.1.0.0/16"}, "IPv6": {"fd00:1::/48"}, "both": {"10.1.0.0/16", "fd00:1::/48"},
	}
	for name, nets := range cases {
		t.Run(name, func(t *testing.T) {
			var ps []netip.Prefix
			for _, n := range nets {
				ps = append(ps, netip.MustParsePrefix(n))
			}
			c, text, err := seedConfig(ps)
			if err != nil || len(c.Ranges) != len(nets) || c.Backend.Type != "vxlan" {
				t.Errorf("%s gives %+v, %v", text, c, err)
			}
		})
	}
	if _, _, err := seedConfig([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/31")}); !IsConfig(err) {
		t.Errorf("a network too small: %v", err)
	}
}

func TestGuardedAddressesOfOtherHosts(t *testing.T) {
	aps := func(s ...string) (out []netip.AddrPort) {
		for _, a := range s {
			out = append(out, netip.MustParseAddrPort(a))
		}
		return out
	}
	public := []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("fd00:7::1")}
	for name, tc := range map[string]struct{ listen, told []netip.AddrPort }{
		"loopback is of no interest":  {aps("127.0.0.1:2379"), nil},
		"one address":                 {aps("10.9.9.9:2379"), aps("10.9.9.9:2379")},
		"everywhere is where it is":   {aps("[::]:2379"), aps("192.168.7.1:2379", "[fd00:7::1]:2379")},
		"everywhere, written as IPv4": {aps("0.0.0.0:4001"), aps("192.168.7.1:4001", "[fd00:7::1]:4001")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := published(tc.listen, public); !slices.Equal(got, tc.told) {
				t.Errorf("told %v", got)
			}
		})
	}
	n := healthy()
	n.guard = aps("127.0.0.1:2379")
	n.view.Hosts = map[string]subnet.Host{
		"good": {PublicIPs: public, Guard: aps("192.168.7.1:2379")},
		"evil": {PublicIPs: public, Guard: aps("0.0.0.0:7777", "127.0.0.1:53", "10.1.0.1:80")},
		"many": {Guard: aps("10.8.0.1:1", "10.8.0.1:2", "10.8.0.1:3", "10.8.0.1:4", "10.8.0.1:5")},
	}
	want := aps("10.8.0.1:1", "10.8.0.1:2", "10.8.0.1:3", "10.8.0.1:4", "127.0.0.1:2379", "192.168.7.1:2379")
	if got := n.guards(); !slices.Equal(got, want) {
		t.Errorf("guards %v", got)
	}
}

func TestPeersAreKnownSinceTheyCame(t *testing.T) {
	leases := func(keys ...string) (out []*subnet.Lease) {
		for _, k := range keys {
			out = append(out, &subnet.Lease{Key: k})
		}
		return out
	}
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	known := track(nil, leases("b", "d"), at(1))
	known = track(known, leases("a", "b", "c", "d"), at(2))
	known = track(known, leases("b", "c", "e"), at(3))
	want := []knownPeer{{"b", at(1)}, {"c", at(2)}, {"e", at(3)}}
	if !slices.Equal(known, want) {
		t.Errorf("got %v", known)
	}
	if got := track(known, nil, at(4)); len(got) != 0 {
		t.Errorf("after all left: %v", got)
	}
}

// TestVerdictSaysWhy goes through what can be wrong, without a kernel.
func TestVerdictSaysWhy(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	cases := map[string]struct {
		change func(n *network)
		want   api.Verdict
		says   string
	}{
		"all well":       {func(*network) {}, api.OK, ""},
		"waiting":        {func(n *network) { n.waiting, n.waitSince = "etcd at X", now.Add(-7*time.Second) }, api.Down, "waiting for etcd at X since 7s"},
		"no device":      {func(n *network) { n.device, n.lastTrouble = nil, "open vxlan device: no" }, api.Down, "open vxlan device: no"},
		"kernel differs": {func(n *network) { n.syncErr = errors.New("no buffer") }, api.Down, "no buffer"},
		"etcd away":      {func(n *network) { n.storeErr, n.storeTurn = errors.New("refused"), now.Add(-3*time.Second) }, api.Degraded, "etcd is out of reach since 3s, traffic goes on: refused"},
		"a bad record":   {func(n *network) { n.view.Problems = []error{errors.New("subnets/x: bad")} }, api.Degraded, "skipped subnets/x: bad"},
		"5,000 bad ones": {func(n *network) { n.view.Problems = make([]error, 5000) }, api.Degraded, "skipped 4950 more records"},
		"a bad peer":     {func(n *network) { n.unserved["k"] = "lease k: bad MAC" }, api.Degraded, "lease k: bad MAC"},
		"lease trouble":  {func(n *network) { n.keepErr = errors.New("renew: timeout") }, api.Degraded, "lease: renew: timeout"},
		"bad new config": {func(n *network) { n.view.ConfigErr = errors.New("field X") }, api.Degraded, "the former one stays: field X"},
		"host not ready": {func(n *network) { n.hostErr = errors.New("read-only file system") }, api.Degraded, "read-only file system"},
		"attachments":    {func(n *network) { n.kernel.containers = &attachments{err: errors.New("bridge cni0")} }, api.Degraded, "bridge cni0"},
		"CNI not there":  {func(n *network) { n.cniErr = errors.New("no plugins") }, api.Degraded, "--cni-install: no plugins"},
		"offload":        {func(n *network) { n.offErr = errors.New("--fix-offload: no") }, api.Degraded, "--fix-offload: no"},
		"a tunnel": {func(n *network) {
			n.probes.list = []*probed{{lease: probeLease(2), result: probe.Result{Paths: []probe.Path{{Verdict: probe.Unreachable, Message: "host2: a firewall?"}}}}}
		}, api.Degraded, "host2: a firewall?"},
		"a peer that is down": {func(n *network) {
			n.probes.list = []*probed{{lease: probeLease(2), result: probe.Result{Paths: []probe.Path{{Verdict: probe.Down, Message: "host2: is down"}}}}}
		}, api.OK, ""},
		"worst decides": {func(n *network) {
			n.syncErr, n.storeErr = errors.New("a"), errors.New("b")
		}, api.Down, "a"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			n := healthy()
			tc.change(n)
			s := n.status(now)
			if s.Verdict != tc.want || !strings.Contains(strings.Join(s.Reasons, "\n"), tc.says) {
				t.Errorf("%s: %q", s.Verdict, s.Reasons)
			}
		})
	}
}

// quietDevice is a tunnel that is always right.
type quietDevice struct{ backend.Device }

func (quietDevice) Info() backend.Info { return backend.Info{Link: "flannel.1", MTU: 1450} }

// healthy is a network with nothing to complain about.
func healthy() *network {
	c := subnet.Config{Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.1.0.0/16")}}, Backend: subnet.Backend{Type: "vxlan"}}
	n := &network{
		cfg: &config.Config{}, log: slog.New(slog.DiscardHandler), viewed: true, opened: c,
		kernel: &kernel{forward: &iptables.Forward{}}, device: quietDevice{}, lease: &subnet.Lease{}, unserved: map[string]string{},
		probes: newProbes(slog.New(slog.DiscardHandler)), names: &names{cfg: &config.Config{}},
	}
	n.balancer = newBalancer(n.kernel, n.log)
	n.names.shown.Store(&shown{})
	n.view.Config = c
	return n
}
