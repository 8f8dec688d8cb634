// Package engines runs real container engines on lab hosts: podman, which
// calls the CNI plugins, and Docker, which reads subnet.env. Images are made
// from a static busybox; no registry is asked.
package engines

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// need skips a test that cannot run here, naming what is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: make test installs it", p)
		}
	}
}

// cluster makes a lab whose hosts run flanneld, and takes it down after the
// test.
func cluster(t *testing.T, hosts int, flags ...string) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), lab.Options{Name: fmt.Sprintf("engines-%d-%x", os.Getpid(), rand.Uint32()), Hosts: hosts, Programs: programs.Dir(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range l.Hosts() {
			if t.Failed() {
				t.Logf("log of %s ends with\n%s", h.Name, h.LogTail(20))
			}
		}
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.StartCluster(ctx, "10.1.0.0/16", flags...); err != nil {
		t.Fatal(err)
	}
	return l
}

func host(t *testing.T, l *lab.Lab, name string) *lab.Host {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// place is where a program can run: a lab host or container.
type place interface {
	Command(ctx context.Context, name string, args ...string) *lab.Cmd
}

// patience is how long one program may take.
const patience = time.Minute

// try runs a program and returns what it wrote to standard output.
func try(ctx context.Context, at place, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := at.Command(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(argv, " "), err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

func run(t *testing.T, at place, argv ...string) string {
	t.Helper()
	out, err := try(t.Context(), at, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// merged makes a program write everything to standard output.
func merged(argv []string) []string {
	return append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh"}, argv...)
}

// eventually repeats f until it works.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	const patience = 20 * time.Second
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %s: %v", patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// image is a root file system with busybox in it, as a tar archive.
func image(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skipf("needs a static busybox, %s is dynamic: install busybox-static", path)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "www"} {
		add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, applet := range []string{"sh", "ip", "ping", "nc", "httpd", "nslookup"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\n"))
	add(tar.Header{Name: "www/index.html", Typeflag: tar.TypeReg, Mode: 0o644}, []byte(greeting+"\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// greeting is what the web server of the image says.
const greeting = "hello from a container"

// webServer is the image's program; it logs its clients' addresses.
var webServer = []string{"/bin/httpd", "-f", "-vv", "-h", "/www"}

// get is a shell command that asks a web server in a container. (busybox wget
// resolves names even where there are none, and static ones crash on it.)
func get(addr netip.Addr) string {
	return fmt.Sprintf(`printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 5 %s 80`, addr)
}

// input runs a program with standard input.
func input(t *testing.T, at place, stdin []byte, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := at.Command(ctx, argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func parseAddr(t *testing.T, text string) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// removeCgroups takes away, after the test, the control groups that engines
// leave behind, unless they were there before: somebody else's then.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	find := func() (dirs []string) {
		roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name) // well formed
		for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
		}
		return dirs
	}
	before := find()
	t.Cleanup(func() {
		const patience = 10 * time.Second // dead processes keep a group until somebody reaps them
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			left := slices.DeleteFunc(find(), func(dir string) bool { return slices.Contains(before, dir) })
			if len(left) == 0 {
				return
			}
			for _, dir := range slices.Backward(left) {
				_ = os.Remove(dir) // tried again
			}
			if time.Now().After(deadline) {
				t.Errorf("control groups cannot be removed: %s", left)
				return
			}
		}
	})
}

// traces is what a container leaves on a host.
func traces(t *testing.T, h *lab.Host) []string {
	t.Helper()
	state := regexp.MustCompile(`linkdown| (UP|DOWN) |<.*>`)
	var all []string
	for name, argv := range map[string][]string{
		"link":  {"ip", "-o", "-br", "link"},
		"route": {"ip", "-o", "route", "show", "table", "all"},
		"rule":  {"nft", "-s", "list", "ruleset"},
		"file":  {"find", "/run/flannel", "/var/lib/cni", "/run/netns", "-not", "-name", "last*", "-not", "-name", "*.log"},
	} {
		for line := range strings.Lines(run(t, h, argv...)) {
			// Comes a while after its interface; the daemon's routes to other
			// hosts, whose way it may change at any time.
			if strings.Contains(line, "fe80:") || name == "route" && strings.Contains(line, " proto 102 ") {
				continue
			}
			// Not what says whether the bridge has containers at this moment.
			line = state.ReplaceAllString(line, "")
			all = append(all, name+": "+strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(all)
	return all
}

// same complains about what differs between two calls of traces.
func same(t *testing.T, before, after []string) {
	t.Helper()
	for _, s := range after {
		if !slices.Contains(before, s) {
			t.Errorf("left behind: %s", s)
		}
	}
	for _, s := range before {
		if !slices.Contains(after, s) {
			t.Errorf("gone with the containers: %s", s)
		}
	}
}
