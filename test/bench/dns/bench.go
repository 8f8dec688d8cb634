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

	"github.com/flanneld/flanneld/lab"
)

// bench measures in one lab.
type bench struct {
	options
	lab     *lab.Lab
	dir     string // of files
	out     io.Writer
	servers []*server
}

const (
	etcdURL    = "http://192.168.77.1:2379"
	etcdPrefix = "/coreos.com/network"
	network    = `{"Network":"10.0.0.0/8","SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","SubnetLen":24,"ServiceNetwork":"172.20.0.0/16","Backend":{"Type":"vxlan"}}`
	domain     = ".default.cluster.local"
	serverCore = "0"
	clientCore = "1"
)

func switchAddr() netip.Addr { return lab.SwitchAddrs()[0].Addr() }

// server is one of the two programs that are compared.
type server struct {
	name string
	host *lab.Host
	addr netip.Addr
	argv []string
	// form is how its names are written to etcd.
	form string

	cmd *lab.Cmd // nil: not running
}

// corefile has caches that hold every name, and metrics, as a cluster's has.
const corefile = `cluster.local:53 {
	errors
	prometheus :9153
	cache {
		success 262144
		denial 262144
	}
	etcd {
		path /skydns
		endpoint ` + etcdURL + `
	}
}
.:53 {
	errors
	prometheus :9153
	cache {
		success 262144
		denial 262144
	}
	forward . 192.168.77.1
}
`

// both returns the servers that are measured.
func (b *bench) both(flanneld, coredns string) []*server {
	h := b.lab.Hosts()
	all := []*server{
		{name: "flanneld", host: h[0], addr: netip.MustParseAddr("172.20.0.10"), form: "flanneld", argv: []string{
			flanneld, "--etcd-endpoints", etcdURL, "--iface", lab.Interface, "--ip-masq", "--healthz-port", "9153",
		}},
		{name: "CoreDNS", host: h[1], addr: h[1].Addr(), form: "coredns", argv: []string{coredns, "-conf", "/etc/Corefile"}},
	}
	switch b.only {
	case "flanneld":
		return all[:1]
	case "coredns":
		return all[1:]
	}
	return all
}

func (b *bench) row(format string, a ...any) { fmt.Fprintf(b.out, format+"\n", a...) }

// start runs the server on one core.
func (b *bench) start(ctx context.Context, s *server) error {
	for path, text := range map[string]string{
		"/etc/Corefile":    corefile,
		"/etc/resolv.conf": "nameserver " + switchAddr().String() + "\n",
	} {
		if err := s.host.WriteFile(path, []byte(text)); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(filepath.Join(os.TempDir(), "bench-dns-"+s.form+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.host.Command(ctx, "taskset", append([]string{"-c", serverCore}, s.argv...)...)
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd = cmd
	return nil
}

// stop ends it as a crash would.
func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended
	_ = s.cmd.Wait()
	s.cmd = nil
}

// started runs all servers; the returned function ends them.
func (b *bench) started(ctx context.Context) (stop func(), err error) {
	stop = func() {
		for _, s := range b.servers {
			s.stop()
		}
	}
	for _, s := range b.servers {
		if err := b.start(ctx, s); err != nil {
			stop()
			return nil, err
		}
	}
	return stop, nil
}

// cpu is the processor time that the server used so far.
func (s *server) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	var ticks int
	for _, field := range f[11:13] { // utime, stime; proc(5)
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// rss is the server's resident memory in MB.
func (s *server) rss() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			return float64(kb) / 1000, err
		}
	}
	return 0, errors.New("no VmRSS in " + string(text))
}

// etcd starts an empty etcd in the switch with the configuration; the
// returned function ends it.
func (b *bench) etcd(ctx context.Context) (server *lab.Cmd, stop func(), err error) {
	dir, err := os.MkdirTemp(b.dir, "etcd-")
	if err != nil {
		return nil, nil, err
	}
	cmd := b.lab.Switch().Command(ctx, "taskset", "-c", clientCore, "etcd", "--data-dir", dir, "--listen-client-urls", etcdURL,
		"--advertise-client-urls", etcdURL, "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error", "--unsafe-no-fsync")
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	for {
		put := b.lab.Switch().Command(ctx, "etcdctl", "--endpoints", etcdURL, "--dial-timeout", "1s", "put", etcdPrefix+"/config", network)
		put.Env = append(put.Env, "ETCDCTL_API=3")
		out, err := put.CombinedOutput()
		if err == nil {
			return cmd, stop, nil
		}
		if wait(ctx, 50*time.Millisecond) != nil {
			stop()
			return nil, nil, fmt.Errorf("etcd does not start: %w: %s", ctx.Err(), out)
		}
	}
}

// helper is this program again, in the switch and on the client's core.
func (b *bench) helper(ctx context.Context, what string) *lab.Cmd {
	cmd := b.lab.Switch().Command(ctx, "taskset", "-c", clientCore, fmt.Sprintf("/proc/%d/exe", os.Getpid()), what)
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	return cmd
}

// upstream starts the name server of outside names.
func (b *bench) upstream(ctx context.Context) (stop func(), err error) {
	cmd := b.helper(ctx, "upstream")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}, nil
}

// writer is the process that writes names.
type writer struct {
	cmd *lab.Cmd
	in  io.WriteCloser
	out io.Reader
}

func (b *bench) writer(ctx context.Context) (*writer, error) {
	w := &writer{cmd: b.helper(ctx, "write")}
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if w.out, err = w.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return w, w.cmd.Start()
}

// put writes names and returns when that began.
func (w *writer) put(form string, from, to, copies int) (time.Time, error) {
	if _, err := fmt.Fprintln(w.in, form, from, to, copies); err != nil {
		return time.Time{}, err
	}
	var at int64
	if _, err := fmt.Fscanln(w.out, &at); err != nil {
		return time.Time{}, fmt.Errorf("write names: %w", err)
	}
	return time.Unix(0, at), nil
}

func (w *writer) stop() {
	_ = w.in.Close()
	_ = w.cmd.Process.Kill() // the session need not end politely
	_ = w.cmd.Wait()
}

// wait returns early, with the error, if ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
