package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/lab"
)

// daemon prints what thousands of services cost a whole daemon.
func (b *bench) daemon(ctx context.Context) (err error) {
	b.row("\n### A daemon, etcd beside it\n\n| services | endpoints | start to all rules | CPU | from etcd to the kernel, one endpoint | CPU of one | right after a container was attached here | programs run | RSS, of it anonymous |\n|---|---|---|---|---|---|---|---|---|")
	for _, n := range []int{b.size(10_000), b.size(50_000)} {
		if err := b.daemonWith(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// cluster is a lab with etcd in the switch.
type cluster struct {
	*lab.Lab
	undo []func() error
}

const config = `{"Network":"10.0.0.0/8","SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","SubnetLen":24,"ServiceNetwork":"172.20.0.0/16","Backend":{"Type":"vxlan"}}`

// cluster makes a lab; close it even if that fails.
func (b *bench) cluster(ctx context.Context, hosts int) (*cluster, error) {
	c := &cluster{}
	l, err := lab.Up(ctx, lab.Options{Name: "bench-services", Hosts: hosts, Programs: b.bin, Replace: true})
	if err != nil {
		return c, err
	}
	c.Lab = l
	c.undo = append(c.undo, func() error { return l.Down(context.WithoutCancel(ctx)) })
	dir, err := os.MkdirTemp(b.dir, "etcd-")
	if err != nil {
		return c, err
	}
	etcd := l.Switch().Command(ctx, "etcd", "--data-dir", dir, "--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error", "--unsafe-no-fsync", "--quota-backend-bytes", "4000000000")
	if err := c.run(etcd); err != nil {
		return c, err
	}
	for {
		put := l.Switch().Command(ctx, "etcdctl", "--endpoints", etcdURL, "--dial-timeout", "1s", "put", etcdPrefix+"/config", config)
		put.Env = append(put.Env, "ETCDCTL_API=3")
		out, err := put.CombinedOutput()
		if err == nil {
			return c, nil
		}
		if wait(ctx, 50*time.Millisecond) != nil {
			return c, fmt.Errorf("etcd does not start: %w: %s", ctx.Err(), out)
		}
	}
}

// run starts a program that ends with the cluster.
func (c *cluster) run(cmd *lab.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	c.undo = append(c.undo, func() error {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		return nil
	})
	return nil
}

func (c *cluster) close() error {
	var errs []error
	for len(c.undo) > 0 {
		last := len(c.undo) - 1
		errs = append(errs, c.undo[last]())
		c.undo = c.undo[:last]
	}
	return errors.Join(errs...)
}

// start runs a daemon.
func (c *cluster) start(ctx context.Context, h *lab.Host) (*lab.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(os.TempDir(), "bench-services-"+h.Name+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := h.Command(ctx, "flanneld", "--etcd-endpoints", etcdURL, "--iface", lab.Interface, "--ip-masq")
	d.Stdout, d.Stderr = log, log
	return d, c.run(d)
}

// writer is this program again, in the switch.
type writer struct {
	in  io.Writer
	out io.Reader
}

func (c *cluster) writer(ctx context.Context) (w writer, err error) {
	cmd := c.Switch().Command(ctx, self(), "write")
	cmd.Stderr = os.Stderr
	if w.in, err = cmd.StdinPipe(); err != nil {
		return w, err
	}
	if w.out, err = cmd.StdoutPipe(); err != nil {
		return w, err
	}
	return w, c.run(cmd)
}

// tell returns when the writer began to do it.
func (w writer) tell(what string, numbers ...int) (time.Time, error) {
	if _, err := fmt.Fprintln(w.in, what, strings.Trim(fmt.Sprint(append(numbers, 0, 0)), "[]")); err != nil {
		return time.Time{}, err
	}
	var at int64
	if _, err := fmt.Fscanln(w.out, &at); err != nil {
		return time.Time{}, fmt.Errorf("write records: %w", err)
	}
	return time.Unix(0, at), nil
}

func (b *bench) daemonWith(ctx context.Context, n int) (err error) {
	c, err := b.cluster(ctx, 1)
	defer func() { err = errors.Join(err, c.close()) }()
	if err != nil {
		return err
	}
	w, err := c.writer(ctx)
	if err != nil {
		return err
	}
	if _, err := w.tell("fill", n); err != nil {
		return err
	}
	h := c.Hosts()[0]
	began := time.Now()
	d, err := c.start(ctx, h)
	if err != nil {
		return err
	}
	stood, cpu, err := loaded(ctx, h, d.Process.Pid, n)
	if err != nil {
		return err
	}
	if _, err := h.Attach(ctx, "own", ""); err != nil { // as hosts have
		return err
	}
	if err := wait(ctx, 12*time.Second); err != nil { // it settles
		return err
	}
	moves, each, err := moveEach(ctx, w, h, d.Process.Pid, n, 0, 30)
	if err != nil {
		return err
	}
	if err := wait(ctx, 8*time.Second); err != nil { // more often it does not read its rules again
		return err
	}
	if _, err := h.Attach(ctx, "another", ""); err != nil {
		return err
	}
	first, _, err := moveEach(ctx, w, h, d.Process.Pid, n, 30, 1)
	if err != nil {
		return err
	}
	p, err := look(d.Process.Pid)
	if err != nil {
		return err
	}
	ran := "none"
	if p.children > 0 {
		ran = "some"
	}
	b.row("| %d | %d | %s | %s | %s | %s | %s | %s | %d MiB, %d |", n, n*copies, round(stood.Sub(began)), round(cpu), moves, round(each), first, ran, p.rss, p.anon)
	return nil
}

// loaded waits until all rules stand, and tells how long the daemon has worked
// then.
func loaded(ctx context.Context, h *lab.Host, pid, n int) (at time.Time, cpu time.Duration, err error) {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t, err := openTable(h.Do)
	if err != nil {
		return at, 0, err
	}
	defer t.conn.Close()
	for {
		all, err := t.serves(virtualIP(n - 1))
		if at = time.Now(); err != nil {
			return at, 0, err
		}
		if all {
			if cpu, err = worked(pid); err != nil {
				return at, 0, err
			}
			have, err := t.endpoints()
			if err != nil || have == n*copies {
				return at, cpu, err
			}
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return at, 0, fmt.Errorf("rules of %d services: %w", n, err)
		}
	}
}

// moveEach gives endpoints new addresses, one after the other, and measures how
// long each takes to the kernel, and how long the daemon works for it.
func moveEach(ctx context.Context, w writer, h *lab.Host, pid, n, from, times int) (s stats, each time.Duration, err error) {
	m, err := watchElements(h.Do)
	if err != nil {
		return nil, 0, err
	}
	defer m.close()
	before, err := worked(pid)
	if err != nil {
		return nil, 0, err
	}
	for i := from; i < from+times; i++ {
		patient, cancel := context.WithTimeout(ctx, 20*time.Second)
		began, err := w.tell("move", n, i*7919%n, i)
		var at time.Time
		if err == nil {
			at, err = m.wait(patient, netip.AddrPortFrom(moved(i), target))
		}
		cancel()
		if err != nil {
			return nil, 0, err
		}
		s = append(s, at.Sub(began))
		if err := wait(ctx, 100*time.Millisecond); err != nil { // one change at a time
			return nil, 0, err
		}
	}
	after, err := worked(pid)
	return s, (after - before) / time.Duration(times), err
}

// worked is the processor time that a process used so far.
func worked(pid int) (time.Duration, error) {
	// The clock of another process: ~pid << 3 | CPUCLOCK_SCHED (clock_getcpuclockid(3)).
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// process is what the kernel tells of one.
type process struct {
	rss, anon int // MiB
	children  int // page faults of those it waited for: without any it ran no program
}

func look(pid int) (p process, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			p.rss = kb >> 10
		case "RssAnon:":
			p.anon = kb >> 10
		}
	}
	if text, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil {
		return p, err
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	p.children, err = strconv.Atoi(f[8]) // cminflt, field 11 of proc_pid_stat(5)
	return p, err
}
