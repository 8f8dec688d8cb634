package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// flannel returns flannel itself, built from its module.
func flannel(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "flannel-test-peer")
	if err := programs.AsUser(dir, "test/flannel.sh", file); err != nil {
		t.Fatalf("flannel cannot be built: %v", err)
	}
	return file
}

// peer is flannel on a host.
type peer struct {
	c    *cluster
	host *lab.Host
	file string
	cmd  *lab.Cmd
}

func (p *peer) start(flags ...string) {
	p.c.t.Helper()
	args := append([]string{"--etcd-endpoints", endpoint(), "--iface", lab.Interface}, flags...)
	p.cmd = p.host.Command(context.Background(), p.file, args...)
	if err := p.cmd.Start(); err != nil {
		p.c.t.Fatal(err)
	}
	within(p.c.t, 15*time.Second, "flannel has a lease", func() error {
		_, err := p.host.ReadFile("/run/flannel/subnet.env")
		return err
	})
}

func (p *peer) stop() {
	p.c.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		p.c.t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

func TestFlannelIsAPeer(t *testing.T) {
	t.Parallel()
	need(t, "iptables")
	file := flannel(t)
	for name, config := range map[string]string{"IPv4": ipv4, "dual stack": dual,
		"udp": configOf("udp", ""), "host-gw": configOf("host-gw", ""), "host-gw, dual stack": strings.Replace(dual, "vxlan", "host-gw", 1)} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, config)
			p := &peer{c: c, host: c.host(3), file: file}
			p.start("--ip-masq")
			for n := 1; n <= 2; n++ {
				c.start(c.host(n), "--ip-masq")
			}
			for n := 1; n <= 2; n++ {
				c.waitOK(c.host(n), 2)
			}
			a, b := c.attach(c.host(1), "a"), c.attach(c.host(3), "b")
			both := func() {
				t.Helper()
				for i := range a.Addrs {
					c.reach(a, b.Addrs[i].Addr())
					c.reach(b, a.Addrs[i].Addr())
				}
			}
			both()
			// Each restarts while the other runs, in both orders; nobody moves.
			before := c.leases()
			ours, err := c.host(1).Daemon()
			if err != nil {
				t.Fatal(err)
			}
			for _, oursFirst := range []bool{true, false} {
				if err := ours.Kill(t.Context()); err != nil {
					t.Fatal(err)
				}
				p.stop()
				if !oursFirst {
					p.start("--ip-masq")
				}
				ours = c.start(c.host(1), "--ip-masq")
				if oursFirst {
					c.waitOK(c.host(1), 2)
					p.start("--ip-masq")
				}
				c.waitOK(c.host(1), 2)
				both()
			}
			for key := range c.leases() {
				if before[key] == "" {
					t.Errorf("a new lease: %s, before %v", key, before)
				}
			}
			// A host changes from flannel to ours and keeps its containers.
			p.stop()
			c.start(c.host(3), "--ip-masq")
			c.waitOK(c.host(3), 2)
			both()
			if n := len(c.leases()); n != 3 {
				t.Errorf("%d leases, want 3: %v", n, c.leases())
			}
		})
	}
}
