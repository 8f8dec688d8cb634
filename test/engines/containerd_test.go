package engines

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// containerdConf keeps containerd off the machine's own, and leaves out what
// is not used here.
const containerdConf = `
version = 2
root = "/run/containerd-data"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
`

// containerd is containerd on one host. Its ctr calls CNI through the library
// that its CRI service and nerdctl use, and like nerdctl it calls DEL without
// a namespace, which is gone by then.
type containerd struct{ host *lab.Host }

func (c containerd) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, c.host, append([]string{"ctr", "-n", "test"}, args...)...)
}

// web runs a command in a container on the pod network and waits for its end.
func (c containerd) web(t *testing.T, name string, command ...string) string {
	t.Helper()
	return c.run(t, append([]string{"run", "--cni", "--rm", "--snapshotter", "native", reference, name}, command...)...)
}

const reference = "localhost/web:1"

// archive is the image as docker save has it.
func archive(t *testing.T) []byte {
	t.Helper()
	layer := image(t)
	id := fmt.Sprintf("%x", sha256.Sum256(layer))
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	type object = map[string]any
	config := encode(object{
		"architecture": "amd64", "os": "linux",
		"config": object{"Env": []string{"PATH=/bin"}, "Cmd": webServer},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + id}},
	})
	manifest := encode([]object{{"Config": "config.json", "RepoTags": []string{reference}, "Layers": []string{id + "/layer.tar"}}})
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {id + "/layer.tar", layer}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func startContainerd(t *testing.T, h *lab.Host) containerd {
	t.Helper()
	removeCgroups(t, "test")
	run(t, h, filepath.Join(programs.Dir(t), "flanneld"), "cni", "install")
	if err := h.WriteFile("/etc/containerd/config.toml", []byte(containerdConf)); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.WithoutCancel(t.Context()), "containerd", "--log-level", "warn")
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
			t.Error("containerd did not end when asked to")
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("containerd of %s:\n%s", h.Name, text)
		}
		log.Close()
	})
	c := containerd{h}
	eventually(t, func() error {
		_, err := try(t.Context(), h, "ctr", "version")
		return err
	})
	input(t, h, archive(t), "ctr", "-n", "test", "images", "import", "--snapshotter", "native", "-")
	return c
}

func TestContainerdContainersReachOtherHostsAndLeaveNothing(t *testing.T) {
	need(t, "containerd", "ctr", "runc", "busybox", "nft", "ip")
	l := cluster(t, 2)
	c := startContainerd(t, host(t, l, "host1"))
	far, err := host(t, l, "host2").Attach(t.Context(), "web", "")
	if err != nil {
		t.Fatal(err)
	}
	addr := far.Addrs[0].Addr().String()
	c.web(t, "first", "/bin/ping", "-c", "1", "-W", "5", addr) // the bridge comes with it and stays
	before := traces(t, c.host)
	for i := range 3 {
		out := c.web(t, fmt.Sprint("c", i), "/bin/sh", "-c", "ip -o -4 address show eth0 && ping -c 1 -W 5 "+addr)
		if !strings.Contains(out, " 0% packet loss") {
			t.Errorf("container %d: %s", i, out)
		}
	}
	same(t, before, traces(t, c.host))
}
