package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
)

// fake is a daemon that answers with one status, or not at all.
type fake struct {
	status api.Status
	stuck  bool
}

func (f fake) Status(ctx context.Context) (api.Status, error) {
	if f.stuck {
		<-ctx.Done()
		return api.Status{}, ctx.Err()
	}
	return f.status, nil
}

// start runs a server until the test ends and waits until it answers.
func start(t *testing.T, d Daemon, o Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, d, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 200 {
		if c, err := net.Dial("unix", o.Socket); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the server does not listen")
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestStatusReachesTheClientAsItWas(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "s")
	live := true
	want := api.Status{Verdict: api.Degraded, Reasons: []string{"etcd is out of reach"}, Node: "host1",
		Peers: []api.Peer{{Node: "host2", Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}, Live: &live}}}
	start(t, fake{status: want}, Options{Socket: socket})
	got, err := api.NewClient(socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Reasons, got.Peers[0].Subnets, *got.Peers[0].Live) != fmt.Sprint(want.Reasons, want.Peers[0].Subnets, true) {
		t.Errorf("got %+v", got)
	}
}

func TestSocketIsRootsAlone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	start(t, fake{}, Options{Socket: socket})
	fi, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestSocketOfADeadDaemonIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := api.NewClient(socket).Status(t.Context()); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("a dead socket gives %v", err)
	}
	start(t, fake{}, Options{Socket: socket})
	if _, err := api.NewClient(socket).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDeletedSocketComesBack(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	start(t, fake{status: api.Status{Node: "host1"}}, Options{Socket: socket})
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * socketCheck); ; time.Sleep(50 * time.Millisecond) {
		s, err := api.NewClient(socket).Status(t.Context())
		if err == nil && s.Node == "host1" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not back after %v: %v", 2*socketCheck, err)
		}
	}
}

func TestNoDaemonIsSaidPlainly(t *testing.T) {
	_, err := api.NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func TestVerboseHealthListsTheWaysToPeers(t *testing.T) {
	got := ways(api.Status{Peers: []api.Peer{
		{Node: "host2", Probes: []api.Probe{{Addr: netip.MustParseAddr("10.1.2.0"), Verdict: "unreachable", Message: "host2: a firewall?"}}},
		{Probes: []api.Probe{{Addr: netip.MustParseAddr("10.1.3.0"), Verdict: "ok", RTT: 310 * time.Microsecond, MTU: 1450, TCP: "works", Plain: "passes"}}},
		{Node: "host4"},
	}})
	want := []string{"host2 10.1.2.0: unreachable; host2: a firewall?", "- 10.1.3.0: ok, rtt 310µs, 1450 bytes pass, TCP works, plain passes"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReadinessIsHonest(t *testing.T) {
	cases := map[string]struct {
		status  api.Status
		healthz int
		readyz  int
		says    string
	}{
		"all well":  {api.Status{Verdict: api.OK}, 200, 200, "ok"},
		"etcd away": {api.Status{Verdict: api.Degraded, Reasons: []string{"etcd is out of reach"}}, 200, 200, "degraded: etcd is out of reach"},
		"a tunnel is broken": {api.Status{Verdict: api.Degraded, Reasons: []string{"host2: a firewall?"}, Peers: []api.Peer{
			{Node: "host2", Probes: []api.Probe{{Addr: netip.MustParseAddr("10.1.2.0"), Verdict: "unreachable", Message: "host2: a firewall?"}}},
			{Probes: []api.Probe{{Addr: netip.MustParseAddr("10.1.3.0"), Verdict: "ok", RTT: 310 * time.Microsecond, MTU: 1450, TCP: "works", Plain: "passes"}}},
		}}, 200, 200, "degraded: host2: a firewall?"},
		"not in the network": {api.Status{Verdict: api.Down, Reasons: []string{"waiting for a lease", "and more"}}, 200, 503, "down: waiting for a lease; and more"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			at := freePort(t)
			start(t, fake{status: tc.status}, Options{Socket: filepath.Join(t.TempDir(), "s"), Healthz: at})
			if code, body := get(t, fmt.Sprintf("http://%s/healthz", at)); code != tc.healthz || body != "ok" {
				t.Errorf("healthz %d %q", code, body)
			}
			if code, body := get(t, fmt.Sprintf("http://%s/healthz?verbose", at)); code != tc.healthz || body != strings.Join(append([]string{tc.says}, ways(tc.status)...), "\n") {
				t.Errorf("verbose %d %q", code, body)
			}
			if code, body := get(t, fmt.Sprintf("http://%s/readyz", at)); code != tc.readyz || body != tc.says {
				t.Errorf("readyz %d %q", code, body)
			}
		})
	}
}

func TestStuckDaemonIsUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := ask(t.Context(), fake{stuck: true})
		if err == nil || !strings.Contains(err.Error(), "does not answer within 3s") {
			t.Errorf("got %v", err)
		}
	})
}

func TestHealthPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	err = Run(t.Context(), fake{}, Options{Socket: filepath.Join(t.TempDir(), "s"), Healthz: at})
	if err == nil || !strings.Contains(err.Error(), "--healthz-port") || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("got %v", err)
	}
}
