package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// TestMain lets the test binary play the program that makes a lab and is
// killed.
func TestMain(m *testing.M) {
	if name := os.Getenv("LAB_TEST_CREATOR"); name != "" {
		os.Exit(creator(name))
	}
	if name := os.Getenv("LAB_TEST_BRIEFLY"); name != "" {
		os.Exit(briefly(name))
	}
	os.Exit(m.Run())
}

// creator makes a lab with processes in host and container, says so, and
// waits for its death.
func creator(name string) int {
	err := func() error {
		l, err := Up(context.Background(), Options{Name: name, Hosts: 2, Programs: os.Getenv("LAB_TEST_PROGRAMS")})
		if err != nil {
			return err
		}
		h, _ := l.Host("host1")
		c, err := h.Attach(context.Background(), "web", testConflist)
		if err != nil {
			return err
		}
		// One that is still a child, one that left.
		return errors.Join(c.Command(context.Background(), "sleep", "1000").Start(),
			h.Command(context.Background(), "setsid", "-f", "sleep", "1000").Run())
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("made")
	select {}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: makes namespaces")
}

// newLab makes a lab that goes with the test, together with all traces.
func newLab(t *testing.T, hosts int) *Lab {
	t.Helper()
	needRoot(t)
	l, err := Up(t.Context(), Options{Name: uniqueName(t), Hosts: hosts, Programs: testPrograms(t)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func uniqueName(t *testing.T) string {
	name := fmt.Sprintf("t%d-%x", os.Getpid(), rand.Uint32())
	t.Cleanup(func() {
		dir := filepath.Join(Root, name)
		spaces := map[nsID]bool{}
		if _, err := os.Stat(dir); err == nil {
			if spaces, err = namespacesOf(dir); err != nil {
				t.Error(err)
			}
		}
		if err := Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
		nothingLeft(t, name, spaces)
	})
	return name
}

func nothingLeft(t *testing.T, name string, spaces map[nsID]bool) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(Root, name)); err == nil {
		t.Errorf("%s/%s is left", Root, name)
	}
	points, err := mounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range points {
		if strings.Contains(m.point, name) {
			t.Errorf("mount %s is left", m.point)
		}
	}
	pids, err := processesIn(spaces)
	if err != nil || len(pids) > 0 {
		t.Errorf("processes %v are left, error %v", pids, err)
	}
}

func host(t *testing.T, l *Lab, name string) *Host {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func output(t *testing.T, c *Cmd) string {
	t.Helper()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestHostsReachEachOtherAndTheSwitch(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	places := append(l.Hosts(), l.Switch())
	for _, from := range places {
		for _, to := range places {
			for _, a := range to.Addrs {
				if _, err := PingUntil(t.Context(), from, a.Addr()); err != nil {
					t.Errorf("%s to %s: %v", from.Name, to.Name, err)
				}
			}
		}
	}
	if got := places[2].Addr(); got != netip.MustParseAddr("192.168.77.13") {
		t.Errorf("host3 has address %s", got)
	}
}

func TestHostHasFilesOfItsOwn(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	h1, h2 := host(t, l, "host1"), host(t, l, "host2")
	for _, path := range []string{"/run/mine", "/etc/cni/net.d/mine", "/opt/cni/bin/mine", "/var/lib/cni/mine"} {
		path += l.Name
		if err := h1.WriteFile(path, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if b, err := h1.ReadFile(path); err != nil || string(b) != "x" {
			t.Errorf("%s on host1: %q, %v", path, b, err)
		}
		if _, err := h2.ReadFile(path); err == nil {
			t.Errorf("%s is on host2 too", path)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is on the machine", path)
		}
	}
	if got := output(t, h2.Command(t.Context(), "hostname")); got != "host2" {
		t.Errorf("host2 is called %q", got)
	}
	if got := output(t, h2.Command(t.Context(), "ls", "/sys/class/net")); got != "eth0\nlo" {
		t.Errorf("/sys of host2 shows interfaces %q", got)
	}
	if isMountPoint("/sys/fs/cgroup") {
		if got := output(t, h2.Command(t.Context(), "sh", "-c", "ls /sys/fs/cgroup | wc -l")); got == "0" {
			t.Error("host2 has no control groups")
		}
	}
	wd, _ := os.Getwd()
	if got := output(t, h2.Command(t.Context(), "pwd")); got != wd {
		t.Errorf("a command runs in %q, want %q", got, wd)
	}
}

func TestMachineKeepsItsNamespaces(t *testing.T) {
	needRoot(t) // not parallel: looks at what others may change
	look := func() string {
		links, err := os.ReadFile("/proc/self/net/dev_mcast")
		if err != nil {
			t.Fatal(err)
		}
		routes, err := os.ReadFile("/proc/self/net/fib_trie")
		if err != nil {
			t.Fatal(err)
		}
		name, err := os.Hostname()
		return fmt.Sprint(string(links), string(routes), name, err)
	}
	before := look()
	l := newLab(t, 2)
	during := look()
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := look(); before != during || before != after {
		t.Errorf("before:\n%s\nduring:\n%s\nafter:\n%s", before, during, after)
	}
	for _, kind := range []string{"net", "mnt", "uts"} {
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/" + kind)
		own, _ := os.Readlink("/proc/self/ns/" + kind)
		for _, task := range tasks {
			if got, err := os.Readlink(task); err == nil && got != own {
				t.Errorf("thread %s is left in %s, the process is in %s", task, got, own)
			}
		}
	}
}

func TestUnpluggedHostIsCutOff(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	h1, h2 := host(t, l, "host1"), host(t, l, "host2")
	p, err := NewPinger(h1, h2.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := h2.Unplug(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Ping(64, 100*time.Millisecond); err == nil {
		t.Error("an unplugged host answers")
	}
	if err := h2.Plug(); err != nil {
		t.Fatal(err)
	}
	if _, err := PingUntil(t.Context(), h1, h2.Addr()); err != nil {
		t.Error(err)
	}
}

func TestLabOutlivesItsCreator(t *testing.T) {
	t.Parallel()
	needRoot(t)
	name := uniqueName(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LAB_TEST_CREATOR="+name, "LAB_TEST_PROGRAMS="+testPrograms(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 1000)
	n, _ := out.Read(line)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if string(line[:n]) != "made\n" {
		t.Fatalf("creator says %q", line[:n])
	}
	l, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PingUntil(t.Context(), host(t, l, "host1"), host(t, l, "host2").Addr()); err != nil {
		t.Error(err)
	}
	spaces, err := namespacesOf(l.dir())
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := processesIn(spaces); err != nil || len(pids) != 2 {
		t.Errorf("processes %v, error %v, want 2", pids, err)
	}
	for range 2 {
		if err := l.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, name, spaces)
	}
	if _, err := Open(name); !errors.Is(err, ErrNoLab) {
		t.Errorf("after Down: %v", err)
	}
}

func TestCreatorKilledAnywhereLeavesWhatDownRemoves(t *testing.T) {
	t.Parallel()
	needRoot(t)
	programs := testPrograms(t)
	for i := range 15 {
		name := uniqueName(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LAB_TEST_CREATOR="+name, "LAB_TEST_PROGRAMS="+programs)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 6 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := os.Stat(filepath.Join(Root, name)); err != nil {
			continue
		}
		if _, err := Up(t.Context(), Options{Name: name, Hosts: 1}); !errors.Is(err, ErrExists) {
			t.Errorf("Up over the remains: %v", err)
		}
		if _, err := Up(t.Context(), Options{Name: name, Hosts: 1, Replace: true}); err != nil {
			t.Errorf("Up with Replace over the remains: %v", err)
		}
	}
}

func TestTwoLabsDoNotShareAnything(t *testing.T) {
	t.Parallel()
	a, b := newLab(t, 1), newLab(t, 1)
	if a.Name == b.Name {
		t.Fatal("same name")
	}
	ha, hb := host(t, a, "host1"), host(t, b, "host1")
	if err := ha.Unplug(); err != nil {
		t.Fatal(err)
	}
	if _, err := PingUntil(t.Context(), hb, SwitchAddrs()[0].Addr()); err != nil {
		t.Error(err)
	}
	// The later lab must not keep the earlier one's namespaces alive.
	own, err := namespacesOf(b.dir())
	if err != nil {
		t.Fatal(err)
	}
	foreign := output(t, hb.Command(t.Context(), "sh", "-c", "grep -c nsfs /proc/self/mountinfo || true"))
	if foreign != "0" {
		t.Errorf("%s namespace files are mounted in a new host", foreign)
	}
	if err := a.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := namespacesOf(b.dir()); err != nil || len(left) != len(own) {
		t.Errorf("namespaces of the other lab: %d, before %d, error %v", len(left), len(own), err)
	}
	if names, err := List(); err != nil || slices.Contains(names, a.Name) || !slices.Contains(names, b.Name) {
		t.Errorf("labs %v, error %v", names, err)
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, o := range map[string]Options{
		"path":           {Name: "../x"},
		"flag":           {Name: "-x"},
		"upper case":     {Name: "Lab"},
		"too many hosts": {Name: "x", Hosts: 1000},
		"negative":       {Name: "x", Hosts: -1},
		"tiny MTU":       {Name: "x", MTU: 500},
	} {
		if l, err := Up(t.Context(), o); err == nil {
			t.Errorf("%s: made lab %s", name, l.Name)
			_ = l.Down(context.Background())
		}
	}
}

func TestCancelledUpLeavesNothing(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	name := uniqueName(t)
	if _, err := Up(ctx, Options{Name: name}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, name, nil)
}

func TestUnderlayHasItsMTU(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l, err := Up(t.Context(), Options{Name: uniqueName(t), Hosts: 2, MTU: 9000})
	if err != nil {
		t.Fatal(err)
	}
	h1, h2 := host(t, l, "host1"), host(t, l, "host2")
	if _, err := PingUntil(t.Context(), h1, h2.Addr()); err != nil {
		t.Fatal(err)
	}
	p, err := NewPinger(h1, h2.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Ping(8980, time.Second); err != nil {
		t.Error(err)
	}
	if got := output(t, h1.Command(t.Context(), "cat", "/sys/class/net/eth0/mtu")); got != "9000" {
		t.Errorf("MTU %s", got)
	}
}

// A lab may be made in a mount namespace that is not the machine's first (in a
// container, in a service with private mounts), whatever processor it is from.
func TestLabIsMadeInAnyMountNamespace(t *testing.T) {
	netnstest.NeedRoot(t)
	for outer := range runtime.NumCPU() {
		for inner := range runtime.NumCPU() {
			cmd := exec.Command("taskset", "-c", strconv.Itoa(outer), "unshare", "-m", "--propagation", "private",
				"taskset", "-c", strconv.Itoa(inner), os.Args[0])
			cmd.Env = append(os.Environ(), "LAB_TEST_BRIEFLY="+fmt.Sprintf("t%d", rand.IntN(1e9)))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("from processor %d on %d: %v: %s", outer, inner, err, out)
			}
		}
	}
}

// briefly makes a lab and takes it down.
func briefly(name string) int {
	l, err := Up(context.Background(), Options{Name: name, Hosts: 2})
	if err == nil {
		err = l.Down(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
