package storetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is an etcd of the distribution's, run by a test on loopback with
// its data in a temporary directory. It is for one goroutine.
type Server struct {
	t        testing.TB
	program  string
	dir      string
	client   string // host:port
	peer     string
	args     []string
	cmd      *exec.Cmd
	exited   chan struct{}
	log      logBuffer
	Endpoint string // URL
}

// Etcd starts the etcd program with optional further arguments and returns
// its URL. It ends with the test. Without the program the test is skipped,
// or fails if CI=true.
func Etcd(t testing.TB, args ...string) (endpoint string, ctl *Server) {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing capability: the program etcd (package etcd-server)")
		}
		t.Skip("missing capability: the program etcd (package etcd-server)")
	}
	s := &Server{t: t, program: program, dir: t.TempDir(), client: freePort(t), peer: freePort(t), args: args}
	if help, _ := exec.Command(program, "--help").CombinedOutput(); bytes.Contains(help, []byte("--unsafe-no-fsync")) {
		s.args = append(s.args, "--unsafe-no-fsync")
	}
	s.Endpoint = "http://" + s.client
	for _, a := range args {
		if a == "--cert-file" {
			s.Endpoint = "https://" + s.client
		}
	}
	t.Cleanup(s.Stop)
	s.Start()
	return s.Endpoint, s
}

// freePort is a loopback port that nobody uses and nobody gets by asking for
// any: it stays free while the server is stopped.
func freePort(t testing.TB) string {
	t.Helper()
	const first, last = 10000, 32767 // below those that kernels hand out
	for range 100 {
		at := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first+1))
		if l, err := net.Listen("tcp", at); err == nil {
			l.Close()
			return at
		}
	}
	t.Fatal("100 ports of 127.0.0.1 are all taken")
	return ""
}

// Start runs etcd on the data there is and waits until it listens.
func (s *Server) Start() {
	s.t.Helper()
	scheme := s.Endpoint[:len(s.Endpoint)-len(s.client)]
	args := append([]string{
		"--name", "test", "--data-dir", s.data(),
		"--heartbeat-interval", "20", "--election-timeout", "200",
		"--listen-client-urls", scheme + s.client, "--advertise-client-urls", scheme + s.client,
		"--listen-peer-urls", "http://" + s.peer, "--initial-advertise-peer-urls", "http://" + s.peer,
		"--initial-cluster", "test=http://" + s.peer,
	}, s.args...)
	s.cmd = exec.Command(s.program, args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(c *exec.Cmd) {
		_ = c.Wait() // killed
		close(exited)
	}(s.cmd)
	s.await()
}

// await returns when etcd accepts connections: it listens before it is ready
// and answers when it is.
func (s *Server) await() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case <-s.exited:
			s.t.Fatalf("etcd ended:\n%s", s.log.String())
		default:
		}
		if c, err := net.Dial("tcp", s.client); err == nil {
			c.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("etcd does not listen on %s:\n%s", s.client, s.log.String())
}

// Stop kills etcd. It may be called twice.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // may have ended
	<-s.exited
	s.cmd = nil
}

// Wipe replaces the data by none, through a restart.
func (s *Server) Wipe() {
	s.t.Helper()
	s.Stop()
	if err := os.RemoveAll(s.data()); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
}

// Snapshot makes a copy of the data, through a restart, and returns it for
// Restore.
func (s *Server) Snapshot() string {
	s.t.Helper()
	s.Stop()
	dir := filepath.Join(s.t.TempDir(), "saved")
	if err := os.CopyFS(dir, os.DirFS(s.data())); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
	return dir
}

// Restore replaces the data by a Snapshot, through a restart.
func (s *Server) Restore(dir string) {
	s.t.Helper()
	s.Stop()
	if err := os.RemoveAll(s.data()); err != nil {
		s.t.Fatal(err)
	}
	if err := os.CopyFS(s.data(), os.DirFS(dir)); err != nil {
		s.t.Fatal(err)
	}
	_ = filepath.Walk(s.data(), func(path string, i os.FileInfo, err error) error {
		if err == nil && i.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return err
	})
	s.Start()
}

// Ctl runs etcdctl with arguments and returns what it says; the test fails if
// it does.
func (s *Server) Ctl(args ...string) string {
	s.t.Helper()
	c := exec.Command("etcdctl", append([]string{"--endpoints", s.Endpoint}, args...)...)
	c.Env = append(os.Environ(), "ETCDCTL_API=3")
	out, err := c.CombinedOutput()
	if err != nil {
		s.t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Compact drops the history up to a revision.
func (s *Server) Compact(revision int64) {
	s.t.Helper()
	s.Ctl("compact", "--physical", fmt.Sprint(revision))
}

// logBuffer is what a program writes, readable meanwhile.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }
