package engines

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// containersConf makes podman use the CNI plugins where "flanneld cni install"
// puts them. Limits are what a container on any machine may have; runc works
// with every kind of control groups.
const containersConf = `
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "flannel"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
`

// podman is podman on one host, with all its files in the host's memory.
type podman struct{ host *lab.Host }

func (p podman) argv(args ...string) []string {
	return append([]string{"env", "CONTAINERS_CONF=/etc/containers.conf", "podman", "--storage-driver", "vfs",
		"--root", "/run/podman/root", "--runroot", "/run/podman/runroot", "--tmpdir", "/run/podman/tmp"}, args...)
}

func (p podman) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, p.host, p.argv(args...)...)
}

// start runs the web server in a container and returns its address.
func (p podman) start(t *testing.T, name string) netip.Addr {
	t.Helper()
	p.run(t, append([]string{"run", "-d", "--name", name, reference}, webServer...)...)
	return parseAddr(t, p.run(t, "inspect", "--format", "{{.NetworkSettings.Networks.flannel.IPAddress}}", name))
}

func setUpPodman(t *testing.T, h *lab.Host) podman {
	t.Helper()
	removeCgroups(t, "libpod_parent")
	p := podman{h}
	if err := h.WriteFile("/etc/containers.conf", []byte(containersConf)); err != nil {
		t.Fatal(err)
	}
	run(t, h, filepath.Join(programs.Dir(t), "flanneld"), "cni", "install")
	input(t, h, image(t), p.argv("import", "-", reference)...)
	if backend := p.run(t, "info", "--format", "{{.Host.NetworkBackend}}"); backend != "cni" {
		t.Skipf("needs a podman that calls CNI plugins (version 4); its network backend is %q", backend)
	}
	return p
}

func TestPodmanContainersReachAndAreReachedFromOtherHosts(t *testing.T) {
	need(t, "podman", "runc", "busybox", "nft", "ip")
	l := cluster(t, 2)
	p := setUpPodman(t, host(t, l, "host1"))
	far, err := host(t, l, "host2").Attach(t.Context(), "web", "")
	if err != nil {
		t.Fatal(err)
	}
	server := far.Command(t.Context(), "busybox", "httpd", "-f", "-p", "80", "-h", "/etc")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}

	near := p.start(t, "c1")
	if out := run(t, far, "sh", "-c", get(near)); !strings.Contains(out, greeting) {
		t.Errorf("from the other host: %q", out)
	}
	if seen := run(t, p.host, merged(p.argv("logs", "c1"))...); !strings.Contains(seen, far.Addrs[0].Addr().String()) {
		t.Errorf("the container does not see its client's own address %s:\n%s", far.Addrs[0], seen)
	}
	p.run(t, "exec", "c1", "ping", "-c", "1", "-W", "5", far.Addrs[0].Addr().String())
	second := p.start(t, "c2")
	if out := p.run(t, "exec", "c1", "sh", "-c", get(second)); !strings.Contains(out, greeting) {
		t.Errorf("from the same host: %q", out)
	}
	p.run(t, "rm", "-f", "-t", "0", "c1", "c2")
}

func TestPodmanContainersLeaveNothing(t *testing.T) {
	need(t, "podman", "runc", "busybox", "nft", "ip")
	h := host(t, cluster(t, 1), "host1")
	p := setUpPodman(t, h)
	p.start(t, "first") // the bridge comes with the first container and stays
	p.run(t, "rm", "-f", "-t", "0", "first")
	before := traces(t, h)
	if i := slices.IndexFunc(before, func(s string) bool { return strings.HasPrefix(s, "link: veth") }); i >= 0 {
		t.Errorf("%q is left of the first container", before[i])
	}
	for i := range 3 {
		name := fmt.Sprint("c", i)
		p.start(t, name)
		p.run(t, "stop", "-t", "0", name)
		p.run(t, "start", name)
		p.run(t, "stop", "-t", "0", name)
		p.run(t, "rm", name)
	}
	p.run(t, "run", "--rm", reference, "/bin/ip", "address")
	same(t, before, traces(t, h))
}

func TestPodmanContainersAreFoundByNameAndAlias(t *testing.T) {
	need(t, "podman", "runc", "busybox", "nft", "dig")
	l := cluster(t, 2)
	p := setUpPodman(t, host(t, l, "host1"))
	far, err := host(t, l, "host2").Attach(t.Context(), "far", "")
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, append([]string{"run", "-d", "--name", "shop", "--network", "flannel", "--network-alias", "www", reference}, webServer...)...)
	addr := p.run(t, "inspect", "--format", "{{.NetworkSettings.Networks.flannel.IPAddress}}", "shop")
	id := p.run(t, "inspect", "--format", "{{.Id}}", "shop")
	server := far.Addrs[0].Masked().Addr().Next() // its gateway
	for _, name := range []string{"shop", "www", id[:12]} {
		eventually(t, func() error {
			out, err := try(t.Context(), far, "dig", "+short", "@"+server.String(), name+".default.cluster.local")
			if err == nil && out != addr {
				err = fmt.Errorf("%s is %q, want %s", name, out, addr)
			}
			return err
		})
	}
	// With the resolv.conf that podman made of the CNI result.
	eventually(t, func() error {
		out, err := try(t.Context(), p.host, p.argv("exec", "shop", "nslookup", "far.default.cluster.local")...)
		if err == nil && !strings.Contains(out, far.Addrs[0].Addr().String()) {
			err = fmt.Errorf("no %s in %q", far.Addrs[0], out)
		}
		return err
	})
	p.run(t, "rm", "-f", "-t", "0", "shop")
}
