package engines

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// docker is a Docker Engine on one host, with all its files in the host's
// memory.
type docker struct{ host *lab.Host }

func (d docker) argv(args ...string) []string {
	return append([]string{"docker", "-H", "unix:///run/docker.sock"}, args...)
}

func (d docker) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, d.host, d.argv(args...)...)
}

// start runs the web server in a container and returns its address.
func (d docker) start(t *testing.T, name string) netip.Addr {
	t.Helper()
	d.run(t, append([]string{"run", "-d", "--name", name, reference}, webServer...)...)
	return parseAddr(t, d.run(t, "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name))
}

// dockerd starts as dist/docker.service.d/flanneld.conf has it; what is added
// keeps it off the machine's own Docker.
const dockerd = `. /run/flannel/subnet.env
. /run/flannel/dns.env
exec dockerd --bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU --ip-masq=false --dns=${FLANNEL_DNS%%,*} \
	--data-root /run/docker-data --exec-root /run/docker --pidfile /run/docker.pid -H unix:///run/docker.sock --log-level warn \
	--storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs`

func startDocker(t *testing.T, h *lab.Host) docker {
	t.Helper()
	removeCgroups(t, "docker")
	eventually(t, func() error {
		_, err := h.ReadFile("/run/flannel/dns.env")
		return err
	})
	log, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.WithoutCancel(t.Context()), "sh", "-c", dockerd)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Error("dockerd did not end when asked to")
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("dockerd of %s:\n%s", h.Name, text)
		}
		log.Close()
	})
	d := docker{h}
	eventually(t, func() error {
		_, err := try(t.Context(), h, d.argv("info")...)
		return err
	})
	input(t, h, image(t), d.argv("import", "-", reference)...)
	return d
}

func TestDockerContainersOfTwoHostsReachEachOther(t *testing.T) {
	need(t, "dockerd", "docker", "runc", "busybox", "iptables")
	l := cluster(t, 2, "--ip-masq")
	one, two := startDocker(t, host(t, l, "host1")), startDocker(t, host(t, l, "host2"))
	a, b := one.start(t, "one"), two.start(t, "two")
	for _, h := range l.Hosts() {
		// As it is where Docker was the first to switch forwarding on.
		run(t, h, "iptables", "-P", "FORWARD", "DROP")
	}
	for _, c := range []struct {
		from     docker
		name     string
		own, far netip.Addr
		at       docker
		atName   string
	}{
		{one, "one", a, b, two, "two"},
		{two, "two", b, a, one, "one"},
	} {
		eventually(t, func() error {
			_, err := try(t.Context(), c.from.host, c.from.argv("exec", c.name, "ping", "-c", "1", "-W", "1", c.far.String())...)
			return err
		})
		if out := c.from.run(t, "exec", c.name, "sh", "-c", get(c.far)); !strings.Contains(out, greeting) {
			t.Errorf("%s to %s: %q", c.name, c.atName, out)
		}
		if seen := run(t, c.at.host, merged(c.at.argv("logs", c.atName))...); !strings.Contains(seen, c.own.String()) {
			t.Errorf("%s does not see the own address %s of its client:\n%s", c.atName, c.own, seen)
		}
	}
	if mtu := one.run(t, "exec", "one", "ip", "link", "show", "eth0"); !strings.Contains(mtu, "mtu 1450") {
		t.Errorf("the container's MTU is not subnet.env's: %s", mtu)
	}
	// Docker's containers ask, though they have no names but those that somebody adds.
	run(t, two.host, filepath.Join(programs.Dir(t), "flanneld"), "dns", "add", "two", b.String())
	eventually(t, func() error {
		out, err := try(t.Context(), one.host, one.argv("exec", "one", "nslookup", "two.default.cluster.local")...)
		if err == nil && !strings.Contains(out, b.String()) {
			err = fmt.Errorf("no %s in %q", b, out)
		}
		return err
	})
	one.run(t, "rm", "-f", "one")
	two.run(t, "rm", "-f", "two")
}
