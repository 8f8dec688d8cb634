package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/lab"
)

// leftover is something on the machine that was not there before the tests.
type leftover struct {
	what string
	// remove is nil where somebody else may have made it meanwhile.
	remove func() error
}

// folders whose entries are watched: tests work in mount namespaces that hide
// them, so that nothing appears in the machine's own.
var folders = []string{
	"/run/netns", "/run/flannel", "/run/flannel-lab", "/var/lib/cni", "/var/lib/cni/networks", "/opt/cni/bin", "/etc/cni/net.d",
	"/var/lib/flanneld", "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/run/docker", "/run/containerd", "/run/containers",
}

// settings of the machine's own network namespace that tests must not change.
var settings = []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"}

// look returns what tests could leave, by a name that says what it is. tmp is
// the tests' own folder for temporary files.
func look(marker, tmp string) map[string]leftover {
	seen := map[string]leftover{}
	ours := func(what string, remove func() error) { seen[what] = leftover{what, remove} }
	add := func(what string) { seen[what] = leftover{what: what} }

	for pid, command := range marked(marker) {
		ours(fmt.Sprintf("process %d (%s)", pid, command), func() error { return syscall.Kill(pid, syscall.SIGKILL) })
	}
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		ours("file "+path, func() error { return os.RemoveAll(path) })
	}
	for _, at := range mounts() {
		// A lab shows as one file. The first named namespace since the machine
		// started mounts their folder, for good, also that of "ip netns".
		if !strings.HasPrefix(at, lab.Root+"/") && at != netns.Dir {
			add("mount " + at)
		}
	}
	links, _ := net.Interfaces() // nil where it cannot be read
	for _, l := range links {
		add("link " + l.Name)
	}
	for _, folder := range folders {
		entries, _ := os.ReadDir(folder) // a missing folder has none
		for _, e := range entries {
			add("file " + filepath.Join(folder, e.Name()))
		}
	}
	for _, path := range settings {
		if value, err := os.ReadFile(path); err == nil {
			add("setting " + path + "=" + string(bytes.TrimSpace(value)))
		}
	}
	for _, view := range [][]string{
		{"nft", "list", "tables"},
		{"ip", "-4", "-o", "route", "show", "table", "main"},
		{"ip", "-4", "-o", "rule"},
		{"ip", "-6", "-o", "rule"},
	} {
		text, _ := exec.Command(view[0], view[1:]...).Output() // not root, or not installed: nothing to see
		for line := range strings.Lines(string(text)) {
			add(strings.Join(view[:3], " ") + ": " + strings.TrimSpace(line))
		}
	}
	return seen
}

// testLab matches the names of labs that tests make: whose, by which process.
var testLab = regexp.MustCompile(`^(t|[a-z0-9]+-)([0-9]+)-[0-9a-f]+$`)

// removeOrphans takes down labs of tests that were killed: their process is
// gone. It returns their names.
func removeOrphans(flanneld string) ([]string, error) {
	var names []string
	var errs []error
	entries, _ := os.ReadDir(lab.Root) // a missing folder has none
	for _, e := range entries {
		m := testLab.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if _, err := os.Stat("/proc/" + m[2]); err == nil {
			continue
		}
		names = append(names, e.Name())
		errs = append(errs, asRoot(flanneld, "lab", "down", "--name", e.Name()).Run())
	}
	return names, errors.Join(errs...)
}

// asRoot is a command that sudo runs if this is not root.
func asRoot(argv ...string) *exec.Cmd {
	if os.Geteuid() != 0 {
		argv = append([]string{"sudo"}, argv...)
	}
	return exec.Command(argv[0], argv[1:]...)
}

// settle returns what is there and was not before, after giving the kernel
// and dying processes a moment.
func settle(before map[string]leftover, marker, tmp string) []leftover {
	const patience = 5 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		now := look(marker, tmp)
		maps.DeleteFunc(now, func(what string, _ leftover) bool { _, old := before[what]; return old })
		if len(now) == 0 || time.Now().After(deadline) {
			return slices.SortedFunc(maps.Values(now), func(a, b leftover) int { return cmp.Compare(rank(a), rank(b)) })
		}
	}
}

// rank puts processes first: what they hold goes with them.
func rank(l leftover) string {
	if strings.HasPrefix(l.what, "process") {
		return " " + l.what
	}
	return l.what
}

// marked returns the processes that inherited the marker from go test, and
// live.
func marked(marker string) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(dir + "/environ") // empty for a zombie
		if err == nil && bytes.Contains(env, []byte(marker)) {
			command, _ := os.ReadFile(dir + "/comm")
			found[pid] = strings.TrimSpace(string(command))
		}
	}
	return found
}

// mounts returns where something is mounted in this mount namespace.
func mounts() []string {
	text, _ := os.ReadFile("/proc/self/mountinfo") // always there on Linux
	var at []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			at = append(at, fields[4])
		}
	}
	return at
}
