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
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary play the program that makes a lab and is
// killed.
func TestMain(m *testing.M) {
	if name := os.Getenv("LAB_TEST_CREATOR"); name != "" {
		os.Exit(creator(name))
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

// testPlugin is a CNI plugin that gives every container 10.9.9.9/24 on one
// end of a veth pair.
const testPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD)
	[ -e /run/fail-add ] && { echo '{"cniVersion":"1.0.0","code":100,"msg":"told to fail"}'; exit 1; }
	ip link add "h$CNI_CONTAINERID" type veth peer name c0 &&
	ip link set "h$CNI_CONTAINERID" up && ip addr add 10.9.9.1/24 dev "h$CNI_CONTAINERID" &&
	ip link set c0 netns "${CNI_NETNS##*/}" && ip netns exec "${CNI_NETNS##*/}" sh -ec '
		ip link set c0 name eth0; ip addr add 10.9.9.9/24 dev eth0; ip link set eth0 up' &&
	echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}' ;;
DEL) ip link del "h$CNI_CONTAINERID" 2>/dev/null; echo "$CNI_CONTAINERID" >> /run/deleted ;;
esac
`

const testConflist = `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"testplugin"}]}`

func testPrograms(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "testplugin"), []byte(testPlugin), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
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

func TestContainerIsPluggedInAndOut(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := host(t, l, "host1")
	c, err := h.Attach(t.Context(), "web", testConflist)
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24")}; !slices.Equal(c.Addrs, want) {
		t.Errorf("addresses %v, want %v", c.Addrs, want)
	}
	if _, err := h.Attach(t.Context(), "web", testConflist); err == nil || !strings.Contains(err.Error(), "lab stop") {
		t.Errorf("second container of that name: %v", err)
	}
	if _, err := PingUntil(t.Context(), c, netip.MustParseAddr("10.9.9.1")); err != nil {
		t.Error(err)
	}
	if _, err := PingUntil(t.Context(), h, c.Addrs[0].Addr()); err != nil {
		t.Error(err)
	}
	if got := output(t, c.Command(t.Context(), "sh", "-c", "hostname; ls /sys/class/net")); got != "web\neth0\nlo" {
		t.Errorf("inside the container: %q", got)
	}
	sleep := c.Command(t.Context(), "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	again, err := h.Container("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil {
		t.Error("the container's process was not killed")
	}
	if b, err := h.ReadFile("/run/deleted"); err != nil || string(b) != "web\n" {
		t.Errorf("plugin's DEL: %q, %v", b, err)
	}
	if left, err := h.Containers(); err != nil || len(left) > 0 {
		t.Errorf("containers %v, %v", left, err)
	}
	if got := output(t, h.Command(t.Context(), "ls", "/run/netns")); got != "" {
		t.Errorf("namespace %q is left", got)
	}
}

func TestContainerThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := host(t, l, "host1")
	if err := h.WriteFile("/run/fail-add", nil); err != nil {
		t.Fatal(err)
	}
	_, err := h.Attach(t.Context(), "web", testConflist)
	if err == nil || !strings.Contains(err.Error(), "told to fail") {
		t.Errorf("error %v", err)
	}
	if got := output(t, h.Command(t.Context(), "sh", "-c", "ls /run/netns; cat /run/deleted")); got != "web" {
		t.Errorf("left behind and deleted: %q", got)
	}
	if left, err := h.Containers(); err != nil || len(left) > 0 {
		t.Errorf("containers %v, %v", left, err)
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

func TestDaemonStateIsKnownToOtherPrograms(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	// Any program that runs on will do for a daemon here.
	if err := os.WriteFile(filepath.Join(l.Programs, "flanneld"), []byte("#!/bin/sh\necho started \"$@\"\nexec sleep \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := host(t, l, "host1")
	if _, err := h.Daemon(); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("before the start: %v", err)
	}
	d, err := h.StartDaemon(t.Context(), "1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.StartDaemon(t.Context(), "1000"); err == nil {
		t.Error("a second daemon was started")
	}
	other, err := host(t, l, "host1").Daemon()
	if err != nil || other.PID != d.PID {
		t.Fatalf("found %v, %v", other, err)
	}
	if err := other.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, err := d.Wait(t.Context()); code != -1 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Errorf("kill again: %v", err)
	}
	d, err = h.StartDaemon(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "started 0") {
		t.Errorf("a daemon that ends before it is ready: %v", err)
	}
}
