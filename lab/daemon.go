package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is flanneld on one host. It outlives the program that started it.
type Daemon struct {
	// Args are the flags it was started with.
	Args []string
	PID  int
	// Started is the process's start time in the kernel's clock ticks: with
	// PID it names the process for ever.
	Started string

	host  *Host
	child *child // nil: started by another process
}

// child is a process of which this one is the parent.
type child struct {
	ended chan struct{}
	state *os.ProcessState // after ended
}

// ErrNoDaemon: the host runs none.
var ErrNoDaemon = errors.New("no daemon is running")

// StartDaemon starts flanneld with these flags; its output goes to LogFile.
// It does not wait for the network: see WaitReady. ctx only ends the start.
func (h *Host) StartDaemon(ctx context.Context, args ...string) (*Daemon, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d, err := h.Daemon(); err == nil {
		return nil, fmt.Errorf("%s runs a daemon already (process %d)", h.Name, d.PID)
	}
	path, err := h.program("flanneld")
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The daemon must not die with ctx, or with this program's terminal.
	cmd := h.Command(context.WithoutCancel(ctx), path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the daemon of %s: %w", h.Name, err)
	}
	d := &Daemon{Args: args, PID: cmd.Process.Pid, Started: startTime(cmd.Process.Pid), host: h, child: reap(cmd.Cmd)}
	b, err := json.Marshal(d)
	if err == nil {
		err = os.WriteFile(h.daemonFile(), b, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, d.Kill(context.WithoutCancel(ctx)))
	}
	return d, nil
}

// reap collects the process's end, whenever that is: nobody waits for the
// goroutine, because the process may outlive all who could.
func reap(cmd *exec.Cmd) *child {
	c := &child{ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the state tells how it ended
		c.state = cmd.ProcessState
		close(c.ended)
	}()
	return c
}

// LastDaemon is the daemon that was started last on the host, running or not.
// ErrNoDaemon: there was none.
func (h *Host) LastDaemon() (*Daemon, error) {
	b, err := os.ReadFile(h.daemonFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", h.Name, ErrNoDaemon)
	}
	if err != nil {
		return nil, err
	}
	d := &Daemon{host: h}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("%s: %w", h.daemonFile(), err)
	}
	return d, nil
}

// Daemon is the running daemon of the host, whoever started it. ErrNoDaemon:
// there is none.
func (h *Host) Daemon() (*Daemon, error) {
	d, err := h.LastDaemon()
	if err != nil {
		return nil, err
	}
	if !d.Alive() {
		return nil, fmt.Errorf("%s: %w", h.Name, ErrNoDaemon)
	}
	return d, nil
}

// LogFile is where the output of the host's daemons goes, in the caller's
// files.
func (h *Host) LogFile() string { return filepath.Join(h.dir(), "flanneld.log") }

func (h *Host) daemonFile() string { return filepath.Join(h.dir(), "daemon.json") }

// Alive reports whether the daemon still runs.
func (d *Daemon) Alive() bool {
	return d.Started != "" && startTime(d.PID) == d.Started && !isZombie(d.PID)
}

// Stop asks the daemon to end and waits until it did.
func (d *Daemon) Stop(ctx context.Context) error { return d.end(ctx, unix.SIGTERM) }

// Kill ends the daemon as a crash would, and waits until it is gone.
func (d *Daemon) Kill(ctx context.Context) error { return d.end(ctx, unix.SIGKILL) }

func (d *Daemon) end(ctx context.Context, sig unix.Signal) error {
	if !d.Alive() {
		return nil
	}
	if err := unix.Kill(d.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to the daemon of %s: %w", unix.SignalName(sig), d.host.Name, err)
	}
	return d.wait(ctx)
}

// Wait waits for the daemon's end and returns its exit code, -1 if a signal
// ended it. Only the program that started it may call this.
func (d *Daemon) Wait(ctx context.Context) (int, error) {
	if d.child == nil {
		return 0, errors.New("the daemon was started by another program: its exit code is not known")
	}
	if err := d.wait(ctx); err != nil {
		return 0, err
	}
	return d.child.state.ExitCode(), nil
}

func (d *Daemon) wait(ctx context.Context) error {
	var ended chan struct{}
	if d.child != nil {
		ended = d.child.ended
	}
	for d.child != nil || d.Alive() {
		select {
		case <-ended:
			return nil
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the daemon of %s (process %d) does not end: %w", d.host.Name, d.PID, ctx.Err())
		}
	}
	return nil
}

// WaitReady waits until subnet.env is there, so that containers can be plugged
// in. A daemon that ends before is an error with the end of its log.
func (d *Daemon) WaitReady(ctx context.Context) error {
	for {
		ready := false
		err := d.host.Do(func() error {
			_, err := os.Stat("/run/flannel/subnet.env")
			ready = err == nil
			return nil
		})
		if err != nil || ready {
			return err
		}
		if !d.Alive() {
			return fmt.Errorf("the daemon of %s ended: %s", d.host.Name, d.host.LogTail(3))
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the daemon of %s is not ready: %w; its log ends with: %s", d.host.Name, context.Cause(ctx), d.host.LogTail(3))
		}
	}
}

// LogTail is the end of the daemon's log, for an error message.
func (h *Host) LogTail(lines int) string {
	b, err := os.ReadFile(h.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// startTime is field 22 of /proc/<pid>/stat; "" if there is no such process.
func startTime(pid int) string {
	fields := statOf(pid)
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// StartCluster starts a daemon on every host, the first with the embedded
// etcd for all, and waits until containers can be plugged in everywhere.
func (l *Lab) StartCluster(ctx context.Context, networks string, args ...string) error {
	hosts := l.Hosts()
	server := hosts[0].Addr().String()
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for i, h := range hosts {
		flags := []string{"--etcd-endpoints", "http://" + server + ":2379"}
		if i == 0 {
			flags = []string{"--embed-etcd", "--embed-etcd-listen", server, "--network", networks}
		}
		wg.Go(func() {
			d, err := h.StartDaemon(ctx, append(append(flags, "--iface", Interface), args...)...)
			if err == nil {
				err = d.WaitReady(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
