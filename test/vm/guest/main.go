// Command guest is the first process of a test VM: it takes the machine's own
// root, read-only with changes kept in memory, runs the steps of the plan in
// it and powers off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/flanneld/flanneld/test/vm/plan"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() == 1 {
		first()
	}
	if err := second(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// first is process 1: it starts itself again to do the work, reaps whatever
// becomes an orphan, as tests expect of an init, and powers off. It does not
// return.
func first() {
	worker, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest: boot:", err)
	}
	for err == nil {
		var gone int
		gone, err = unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		if gone == worker {
			break
		}
	}
	for unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) != nil {
		time.Sleep(time.Second) // nothing else is left to do: the host's time limit ends this
	}
}

// prepare makes the root and starts the worker in it.
func prepare() (int, error) {
	fmt.Println("guest: starts")
	p, err := read()
	if err != nil {
		return 0, err
	}
	for _, name := range p.Early {
		if err := load(filepath.Join(plan.Modules, name)); err != nil {
			return 0, err
		}
	}
	self, err := os.ReadFile("/init")
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(plan.File)
	if err != nil {
		return 0, err
	}
	if err := takeRoot(); err != nil {
		return 0, err
	}
	fmt.Println("guest: the machine's root is there")
	if err := settle(p); err != nil {
		return 0, err
	}
	const worker = "/run/vm-guest"
	if err := os.WriteFile(worker, self, 0o755); err != nil {
		return 0, err
	}
	if err := os.WriteFile(plan.File, text, 0o644); err != nil {
		return 0, err
	}
	cmd := exec.Command(worker)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	fmt.Println("guest: works")
	return cmd.Process.Pid, nil
}

func read() (*plan.Plan, error) {
	text, err := os.ReadFile(plan.File)
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{}
	return p, json.Unmarshal(text, p)
}

// second runs the plan's steps and answers.
func second() error {
	p, err := read()
	if err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	a := &answers{to: json.NewEncoder(port)}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	a.say(plan.Answer{Kernel: unix.ByteSliceToString(name.Release[:])})
	if err := loopbackUp(); err != nil {
		a.say(plan.Answer{Trouble: "lo up: " + err.Error()})
	}
	if out, err := exec.Command("/sbin/modprobe", append([]string{"-a"}, p.Load...)...).CombinedOutput(); err != nil {
		a.say(plan.Answer{Trouble: fmt.Sprintf("modprobe: %v\n%s", err, out)})
	}
	for i, s := range p.Steps {
		a.run(i, s, p.Env)
	}
	a.say(plan.Answer{Done: true})
	return a.err
}

// openPort opens the virtio port that the host reads. The node appears a
// moment after the driver was loaded.
func openPort() (*os.File, error) {
	for range 100 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			name, err := os.ReadFile(path)
			if err != nil || strings.TrimSpace(string(name)) != plan.Port {
				continue
			}
			// Not through the poller: the port is not a terminal, nor a pipe.
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(path)), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), plan.Port), nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio port has the name %s", plan.Port)
}

// load loads a module from a file, without its dependencies.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(path), err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
