package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/lab"
)

// bench measures in one lab; the etcd that all hosts use runs in the switch.
type bench struct {
	options
	lab *lab.Lab
	out io.Writer
}

const (
	network  = `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`
	endpoint = "http://192.168.77.1:2379"
	delayed  = "http://192.168.77.1:2378" // through a proxy that delays
	delay    = 1150 * time.Microsecond    // each way: a round trip of 2.3 ms
)

// program is one daemon that can be measured: ours or flannel.
type program struct{ name, path string }

func (b *bench) programs() []program {
	ps := []program{{"flanneld", filepath.Join(b.lab.Programs, "flanneld")}}
	if b.flannel != "" {
		ps = append(ps, program{"flannel", b.flannel})
	}
	return ps
}

func (b *bench) row(format string, a ...any) { fmt.Fprintf(b.out, format+"\n", a...) }

// binary tells the daemon's size.
func (b *bench) binary(context.Context) error {
	for _, p := range b.programs() {
		fi, err := os.Stat(p.path)
		if err != nil {
			return err
		}
		b.row("%-8s binary %.1f MB", p.name, float64(fi.Size())/1e6)
	}
	return nil
}

// etcd starts an empty etcd in the switch with the configuration; the
// returned function ends it.
func (b *bench) etcd(ctx context.Context) (stop func(), err error) {
	dir, err := os.MkdirTemp("", "bench-etcd-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := b.lab.Switch().Command(ctx, "etcd", "--data-dir", dir, "--listen-client-urls", endpoint+",http://127.0.0.1:2379",
		"--advertise-client-urls", endpoint, "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error", "--unsafe-no-fsync")
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // it was killed
		_ = os.RemoveAll(dir)
	}
	for {
		out, err := b.etcdctl(ctx, "put", "/coreos.com/network/config", network)
		if err == nil {
			return stop, nil
		}
		select {
		case <-ctx.Done():
			stop()
			return nil, fmt.Errorf("etcd does not start: %w: %s", ctx.Err(), out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (b *bench) etcdctl(ctx context.Context, args ...string) (string, error) {
	cmd := b.lab.Switch().Command(ctx, "etcdctl", append([]string{"--endpoints", endpoint, "--dial-timeout", "1s"}, args...)...)
	cmd.Env = append(cmd.Env, "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// daemon is a running program on a host.
type daemon struct {
	cmd     *lab.Cmd
	host    *lab.Host
	started time.Time
	root    string // its files as seen from here
}

// start runs a program on a host with this endpoint.
func (b *bench) start(ctx context.Context, p program, h *lab.Host, at string) (*daemon, error) {
	log, err := os.OpenFile(filepath.Join(os.TempDir(), "bench-"+p.name+"-"+h.Name+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := h.Command(ctx, p.path, "-etcd-endpoints", at, "-iface", lab.Interface, "-ip-masq")
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &daemon{cmd, h, began, fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)}, nil
}

// kill ends the daemon as a crash would.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	_ = d.cmd.Wait()
}

// joined waits for subnet.env and says how long it took.
func (d *daemon) joined(ctx context.Context) (time.Duration, error) {
	file := d.root + "/run/flannel/subnet.env"
	for {
		if _, err := os.Stat(file); err == nil {
			return time.Since(d.started), nil
		}
		if err := d.sleep(ctx); err != nil {
			return 0, fmt.Errorf("subnet.env of %s: %w", d.host.Name, err)
		}
	}
}

func (d *daemon) sleep(ctx context.Context) error {
	if _, err := os.Stat(d.root + "/run"); err != nil {
		return errors.New("the daemon ended, see its log in " + os.TempDir())
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(200 * time.Microsecond):
		return nil
	}
}

// cpu is the processor time that the daemon used so far.
func (d *daemon) cpu() (time.Duration, error) {
	// The clock of another process: ~pid << 3 | CPUCLOCK_SCHED (clock_getcpuclockid(3)).
	// /proc/PID/stat counts in ticks of 10 ms.
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^d.cmd.Process.Pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", d.cmd.Process.Pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// rss is the daemon's resident memory, all of it and what is not of files.
func (d *daemon) rss() (all, anon int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "VmRSS:":
			all, err = strconv.Atoi(f[1])
		case "RssAnon:":
			anon, err = strconv.Atoi(f[1])
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return all / 1024, anon / 1024, nil
}

// fresh makes a host as it was before any daemon ran on it.
func (b *bench) fresh(ctx context.Context, h *lab.Host) error {
	return b.clear(ctx, h, "rm -rf /run/flannel")
}

// restarted makes a host as fresh, but for its identity: so it need not wait
// until the one before it counts as dead.
func (b *bench) restarted(ctx context.Context, h *lab.Host) error {
	return b.clear(ctx, h, "rm -f /run/flannel/subnet.env")
}

func (b *bench) clear(ctx context.Context, h *lab.Host, files string) error {
	script := files + `; for l in $(ip -o link show type vxlan | awk -F': ' '{print $2}'); do ip link del $l; done
nft flush ruleset; ip route flush proto 0x66; iptables -F; iptables -t nat -F; true`
	out, err := h.Command(ctx, "sh", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("clean %s: %w: %s", h.Name, err, out)
	}
	return nil
}
