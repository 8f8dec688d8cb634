package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/test/vm/plan"
)

const (
	memory = "3072" // MiB, taken as the guest touches it
	// Two CPUs of one emulated machine wait for each other more than they
	// help: programs take twice as long. Two machines use two cores.
	cpus = "1"
)

// errSilent: the VM's kernel did not come up. On a busy machine the emulated
// one can lose the timer's first interrupts and wait for ever.
var errSilent = errors.New("it did not come up")

// boot runs a VM until it powers off and passes on what it answers. The VM
// has no network device and no disk; the machine's root is read-only to it.
// console gets what its kernel says. A VM that has not answered within patience
// is killed, and the error is errSilent.
func boot(ctx context.Context, k kernel, initramfs string, patience time.Duration, console io.Writer, answer func(plan.Answer)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer silence.Stop()
	answers, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answers.Close()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		// Hardware acceleration is not everywhere, and hangs where it is
		// itself emulated.
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", cpus, "-m", memory,
		"-kernel", k.image(), "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off edd=off no_timer_check tsc=unstable "+
			// Programs that are always at the same addresses are translated
			// once: this halves the time to start one.
			"norandmaps",
		"-virtfs", "local,path=/,mount_tag="+plan.Root+",security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=answers,path=/dev/fd/3", "-device", "virtserialport,chardev=answers,name="+plan.Port,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	)
	cmd.Env = append(os.Environ(), "PATH="+path())
	cmd.ExtraFiles = []*os.File{theirs}
	tail := &tail{to: console}
	cmd.Stdout, cmd.Stderr = tail, tail
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		theirs.Close()
		return fmt.Errorf("%w: the Debian package is qemu-system-x86", err)
	}
	theirs.Close()
	done := false
	for dec := json.NewDecoder(answers); ; {
		var a plan.Answer
		if err := dec.Decode(&a); err != nil {
			break // the VM is gone: Wait and done tell whether it should be
		}
		silence.Stop()
		done = done || a.Done
		answer(a)
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the VM was killed: %w; its console said last:\n%s", context.Cause(ctx), tail)
	case err != nil:
		return fmt.Errorf("qemu: %w; it said last:\n%s", err, tail)
	case !done:
		return fmt.Errorf("the VM went down before it was done; its console said last:\n%s", tail)
	}
	return nil
}

// tail passes on what it gets and remembers the end of it.
type tail struct {
	to   io.Writer
	mu   sync.Mutex // guards last
	last []byte
}

func (t *tail) Write(text []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const enough = 8 << 10
	t.last = append(t.last, text...)
	if len(t.last) > 2*enough {
		t.last = bytes.Clone(t.last[len(t.last)-enough:])
	}
	return t.to.Write(text)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}

// workspace returns a folder for one run, on the machine's root so that the
// guest sees it, and removes those of runs that were killed.
func workspace(cache string) (string, error) {
	const prefix = "run-"
	old, err := filepath.Glob(filepath.Join(cache, prefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		pid, err := strconv.Atoi(filepath.Base(dir)[len(prefix):])
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			if err := os.RemoveAll(dir); err != nil {
				return "", err
			}
		}
	}
	dir := filepath.Join(cache, prefix+strconv.Itoa(os.Getpid()))
	return dir, os.MkdirAll(dir, 0o755)
}
