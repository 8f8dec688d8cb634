package embedded

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/storetest"
)

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func serve(t *testing.T, o Options) *Server {
	t.Helper()
	if !o.Listen.IsValid() {
		o.Listen = anyPort
	}
	s, err := Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func open(t *testing.T, o etcd.Options) *etcd.Store {
	t.Helper()
	s, err := etcd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		dir := filepath.Join(t.TempDir(), "data")
		s := serve(t, Options{Dir: dir})
		proxy := storetest.NewProxy(t, s.Addr().String(), 0)
		start := func() { s = serve(t, Options{Dir: dir, Listen: s.Addr()}) }
		stop := func() { s.Close() }
		replace := func(from string) {
			stop()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if from != "" {
				if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
					t.Fatal(err)
				}
			}
			start()
		}
		other := open(t, s.Client())
		return storetest.Subject{
			Store: open(t, etcd.Options{Endpoints: []string{proxy.Addr}}),
			Other: other,
			Stop:  stop,
			Start: start,
			Wipe:  func() { replace("") },
			Save: func() func() {
				stop()
				saved := filepath.Join(t.TempDir(), "saved")
				if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				start()
				return func() { replace(saved) }
			},
			Compact: func(revision int64) {
				s.guard.compact(t.Context(), s.etcd.Server)
			},
			Cut: proxy.Cut,
		}
	})
}

func TestOneServerADirectory(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, Options{Dir: dir})
	_, err := Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
	expect(t, err, dir, "--embed-etcd")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	serve(t, Options{Dir: dir})
}

func TestSeveralServersAProcess(t *testing.T) {
	for range 3 {
		s := serve(t, Options{Dir: t.TempDir()})
		commit(t, open(t, s.Client()), "/a", "1")
	}
}

func TestWrongOptionsNameTheFlag(t *testing.T) {
	busy := serve(t, Options{Dir: t.TempDir()})
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"no directory":          {Options{}, []string{"--embed-etcd"}},
		"port in use":           {Options{Listen: busy.Addr()}, []string{busy.Addr().String(), "--embed-etcd-listen"}},
		"a stranger's address":  {Options{Listen: netip.MustParseAddrPort("192.0.2.1:0")}, []string{"192.0.2.1", "--embed-etcd-listen"}},
		"certificate, no key":   {Options{CertFile: "c"}, []string{"--etcd-keyfile"}},
		"authority alone":       {Options{CAFile: "c"}, []string{"--etcd-certfile"}},
		"certificate not there": {Options{CertFile: "/nowhere/c", KeyFile: "/nowhere/k"}, []string{"/nowhere/c"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "no directory" {
				c.o.Dir = t.TempDir()
			}
			if !c.o.Listen.IsValid() {
				c.o.Listen = anyPort
			}
			s, err := Serve(t.Context(), c.o)
			if err == nil {
				s.Close()
			}
			expect(t, err, c.want...)
		})
	}
}

func TestDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	serve(t, Options{Dir: dir})
	if i, err := os.Stat(dir); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", i.Mode(), err)
	}
}

func TestOnlyTheClientPortIsOpen(t *testing.T) {
	s := serve(t, Options{Dir: t.TempDir()})
	for _, p := range s.etcd.Peers {
		if c, err := net.Dial("tcp", p.Addr().String()); err == nil {
			c.Close()
			t.Errorf("the peer port %v is open", p.Addr())
		}
	}
}

func TestOpenToEverybodyIsSaid(t *testing.T) {
	for listen, want := range map[string]bool{"127.0.0.1:0": false, "[::1]:0": false, "192.0.2.1:2379": true, "0.0.0.0:2379": true, "[::]:2379": true} {
		if got := (Options{Listen: netip.MustParseAddrPort(listen)}).exposed(); got != want {
			t.Errorf("%s: %v, want %v", listen, got, want)
		}
	}
	if (Options{Listen: netip.MustParseAddrPort("0.0.0.0:2379"), CertFile: "c"}).exposed() {
		t.Error("not with a certificate")
	}
}

func TestTLSWithClientCertificates(t *testing.T) {
	ca, cert, key := storetest.Certs(t)
	s := serve(t, Options{Dir: t.TempDir(), CAFile: ca, CertFile: cert, KeyFile: key})
	commit(t, open(t, s.Client()), "/a", "1")
	o := s.Client()
	o.CertFile, o.KeyFile = "", ""
	_, err := open(t, o).Get(t.Context(), "/a")
	expect(t, err, "--etcd-certfile")
}

func TestCloseDoesNotWaitForWatches(t *testing.T) {
	s := serve(t, Options{Dir: t.TempDir()})
	c := open(t, s.Client())
	v := storetest.Watch(t, c, "/")
	v.Until("nothing", func(s store.Snapshot) bool { return len(s.KVs) == 0 })
	if _, err := c.Session(t.Context(), 8*time.Second, 0); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestAWipedServerIsAnotherCluster(t *testing.T) {
	id := func() uint64 { return uint64(serve(t, Options{Dir: t.TempDir()}).etcd.Server.Cluster().ID()) }
	if a, b := id(), id(); a == b {
		t.Errorf("both are %x", a)
	}
}

// killed is where the process under TestSurvivesKill keeps its data.
const killed = "EMBEDDED_TEST_DIR"

func TestSurvivesKill(t *testing.T) {
	if dir := os.Getenv(killed); dir != "" {
		writeForEver(t, dir)
	}
	dir := t.TempDir()
	var written int
	for round := range 3 {
		c := exec.Command(os.Args[0], "-test.run=^TestSurvivesKill$")
		c.Env = append(os.Environ(), killed+"="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for count := 0; count < 20+13*round && lines.Scan(); {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				written, count = n, count+1
			}
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				written = n
			}
		}
		_ = c.Wait() // killed
	}
	s := serve(t, Options{Dir: dir})
	kv, err := open(t, s.Client()).Get(t.Context(), "/count")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(string(kv.Value)); err != nil || n < written || written < 60 {
		t.Errorf("%q is there, %d was acknowledged", kv.Value, written)
	}
}

// writeForEver counts in the store and says each number once it is written.
func writeForEver(t *testing.T, dir string) {
	s, err := Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	c := open(t, s.Client())
	for {
		var n int
		if _, err := store.Update(t.Context(), c, "/count", func(kv store.KV) (store.Txn, error) {
			n, _ = strconv.Atoi(string(kv.Value)) // absent: 0
			n++
			return store.Txn{Put: []store.Put{{Key: kv.Key, Value: []byte(strconv.Itoa(n))}}}, nil
		}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

func commit(t *testing.T, c store.Store, key, value string) {
	t.Helper()
	if _, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, err error, wants ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", wants)
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	t.Log(err)
}
