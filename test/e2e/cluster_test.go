package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// Configurations of the key "config".
// Hosts draw subnets below 10.1.200.0: those from there on are written by
// hand in tests.
const (
	ipv4 = `{"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","Backend":{"Type":"vxlan"}}`
	ipv6 = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:1::/48","Backend":{"Type":"vxlan"}}`
	dual = `{"EnableIPv6":true,"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","IPv6Network":"fd00:10:1::/48","Backend":{"Type":"vxlan"}}`
)

const prefix = "/coreos.com/network"

// cluster is a lab with Debian's etcd on the switch.
type cluster struct {
	t      *testing.T
	lab    *lab.Lab
	server *lab.Cmd
}

// newCluster makes a lab that goes with the test. config "" writes none.
func newCluster(t *testing.T, hosts int, config string) *cluster {
	t.Helper()
	c := newLab(t, hosts)
	c.startEtcd()
	if config != "" {
		c.put("config", config)
	}
	return c
}

// newLab is newCluster without an etcd.
func newLab(t *testing.T, hosts int) *cluster {
	t.Helper()
	l, err := lab.Up(t.Context(), lab.Options{
		Name: labName(), Hosts: hosts, Programs: programs.Dir(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, lab: l}
	t.Cleanup(func() {
		for _, h := range l.Hosts() {
			b, err := os.ReadFile(h.LogFile())
			for _, bug := range []string{"panic:", "DATA RACE", "fatal error:"} {
				if strings.Contains(string(b), bug) {
					t.Errorf("%s in the log of %s:\n%s", bug, h.Name, b)
				}
			}
			if err == nil && t.Failed() {
				t.Logf("log of %s:\n%s", h.Name, tail(string(b), 40))
			}
		}
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

const etcdDir = "/var/lib/etcd-test"

func endpoint() string { return "http://" + lab.SwitchAddrs()[0].Addr().String() + ":2379" }

// startEtcd starts the server with the data it had, or with none.
func (c *cluster) startEtcd(more ...string) {
	c.t.Helper()
	args := append([]string{
		"--data-dir", etcdDir, "--log-level", "error",
		"--listen-client-urls", endpoint(), "--advertise-client-urls", endpoint(),
		"--listen-peer-urls", "http://127.0.0.1:2380",
		"--heartbeat-interval", "20", "--election-timeout", "200",
	}, more...)
	c.server = c.lab.Switch().Command(context.Background(), "etcd", args...)
	if err := c.server.Start(); err != nil {
		c.t.Fatal(err)
	}
	within(c.t, 15*time.Second, "etcd is up", func() error {
		out, err := c.lab.Switch().Command(c.t.Context(), "etcdctl", "--endpoints", endpoint(), "--dial-timeout", "1s", "--command-timeout", "1s", "get", "x").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// stopEtcd kills the server.
func (c *cluster) stopEtcd() {
	c.t.Helper()
	if err := c.server.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.server.Wait() // killed
}

// etcdctl runs the client on the switch.
func (c *cluster) etcdctl(args ...string) string {
	c.t.Helper()
	return c.run(c.lab.Switch(), append([]string{"etcdctl", "--endpoints", endpoint()}, args...)...)
}

// put writes a key below the prefix.
func (c *cluster) put(key, value string) {
	c.t.Helper()
	cmd := c.lab.Switch().Command(c.t.Context(), "etcdctl", "--endpoints", endpoint(), "put", prefix+"/"+key)
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("put %s: %v\n%s", key, err, out)
	}
}

// leases returns keys (without the prefix) and values.
func (c *cluster) leases() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	lines := strings.Split(c.etcdctl("get", "--prefix", prefix+"/subnets/"), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		out[strings.TrimPrefix(lines[i], prefix+"/subnets/")] = lines[i+1]
	}
	return out
}

// leaseOf returns the key and value of the lease of a public address.
func (c *cluster) leaseOf(public netip.Addr) (key, value string) {
	c.t.Helper()
	for k, v := range c.leases() {
		var l struct{ PublicIP, PublicIPv6 string }
		if json.Unmarshal([]byte(v), &l) == nil && (l.PublicIP == public.String() || l.PublicIPv6 == public.String()) {
			if key != "" {
				c.t.Errorf("%s holds two leases: %s and %s", public, key, k)
			}
			key, value = k, v
		}
	}
	return key, value
}

func (c *cluster) host(n int) *lab.Host {
	c.t.Helper()
	h, err := c.lab.Host(fmt.Sprintf("host%d", n))
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// run runs a command in a host and fails the test if it fails.
func (c *cluster) run(h *lab.Host, argv ...string) string {
	c.t.Helper()
	out, err := h.Command(c.t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %s: %v\n%s", h.Name, strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// sh runs a shell command in a host.
func (c *cluster) sh(h *lab.Host, script string) string {
	c.t.Helper()
	return c.run(h, "sh", "-c", script)
}

// start starts the daemon of a host on the cluster's etcd.
func (c *cluster) start(h *lab.Host, flags ...string) *lab.Daemon {
	c.t.Helper()
	args := append([]string{"--etcd-endpoints", endpoint(), "--iface", lab.Interface}, flags...)
	d, err := h.StartDaemon(c.t.Context(), args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

// exit waits up to 15 s for a daemon's end and returns its exit code.
func (c *cluster) exit(d *lab.Daemon) (int, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
	defer cancel()
	return d.Wait(ctx)
}

// startAll starts every daemon and waits until all know each other.
func (c *cluster) startAll(flags ...string) {
	c.t.Helper()
	for _, h := range c.lab.Hosts() {
		c.start(h, flags...)
	}
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, len(c.lab.HostNames)-1)
	}
}

// status asks the host's daemon.
func (c *cluster) status(h *lab.Host) (api.Status, error) {
	out, err := h.Command(c.t.Context(), "flanneld", "status", "-o", "json").Output()
	var s api.Status
	if jsonErr := json.Unmarshal(out, &s); jsonErr != nil {
		return s, fmt.Errorf("status of %s: %w: %q", h.Name, errors.Join(err, jsonErr), out)
	}
	return s, nil
}

// waitOK waits until the host is well and knows so many peers.
func (c *cluster) waitOK(h *lab.Host, peers int) {
	c.t.Helper()
	within(c.t, 15*time.Second, h.Name+" is ok", func() error {
		s, err := c.status(h)
		if err != nil {
			return err
		}
		if s.Verdict != api.OK || len(s.Peers) != peers {
			return fmt.Errorf("verdict %s, reasons %q, %d peers, want %d", s.Verdict, s.Reasons, len(s.Peers), peers)
		}
		return nil
	})
}

// attach plugs a container into the pod network.
func (c *cluster) attach(h *lab.Host, name string) *lab.Container {
	c.t.Helper()
	cont, err := h.Attach(c.t.Context(), name, "")
	if err != nil {
		c.t.Fatal(err)
	}
	return cont
}

// reach fails the test unless an answer to a ping comes within 5 s.
func (c *cluster) reach(from interface{ Do(func() error) error }, to netip.Addr) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	if _, err := lab.PingUntil(ctx, from, to); err != nil {
		c.t.Error(err)
	}
}

// within repeats a check until it holds, and fails the test if it does not
// in time. It returns how long it took.
func within(t *testing.T, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// contains makes a check for within: the output of a command on a host must
// (or, with not, must not) contain text.
func contains(h *lab.Host, not bool, text string, argv ...string) func() error {
	return func() error {
		cmd := h.Command(context.Background(), argv[0], argv[1:]...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			return err
		}
		if strings.Contains(string(out), text) == not {
			return fmt.Errorf("%s: %v (exit code %d): looked for %q, absence wanted: %v, in\n%s", h.Name, argv, cmd.ProcessState.ExitCode(), text, not, out)
		}
		return nil
	}
}

// need skips the test if a program is missing; in CI that is a failure.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err == nil {
			continue
		}
		if slices.Contains([]string{"true", "1"}, os.Getenv("CI")) {
			t.Fatalf("the program %s is missing", n)
		}
		t.Skipf("the program %s is missing", n)
	}
}
