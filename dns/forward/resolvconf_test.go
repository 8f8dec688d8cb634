package forward

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNameserversOfResolvConf(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"plain":            {"nameserver 192.0.2.1\nnameserver 192.0.2.2\n", "[192.0.2.1:53 192.0.2.2:53]"},
		"with all else":    {"# made by\nsearch example\n; nameserver 192.0.2.9\noptions edns0\nnameserver\t192.0.2.1  # office\n", "[192.0.2.1:53]"},
		"no newline":       {"nameserver 192.0.2.1", "[192.0.2.1:53]"},
		"carriage returns": {"nameserver 192.0.2.1\r\nnameserver 192.0.2.2\r\n", "[192.0.2.1:53 192.0.2.2:53]"},
		"IPv6, link-local": {"nameserver 2001:db8::1\nnameserver fe80::1%eth0\n", "[[2001:db8::1]:53 [fe80::1%eth0]:53]"},
		"mapped":           {"nameserver ::ffff:192.0.2.1\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		"twice":            {"nameserver 192.0.2.1\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		"this host":        {"nameserver 0.0.0.0\nnameserver ::\n", "[127.0.0.1:53 [::1]:53]"},
		"no addresses":     {"nameserver\nnameserver example\nnameserver 192.0.2\nnameserver 224.0.0.251\nnameservers 192.0.2.1\n", "[]"},
		"empty":            {"", "[]"},
		"many":             {strings.Join([]string{"", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, "\nnameserver 192.0.2."), "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53 192.0.2.4:53 192.0.2.5:53 192.0.2.6:53 192.0.2.7:53 192.0.2.8:53]"},
	} {
		if got := fmt.Sprint(nameservers(c.text, 53)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzNameservers(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nnameserver fe80::1%eth0")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range nameservers(text, 53) {
			if !s.IsValid() || s.Addr().IsUnspecified() || s.Port() != 53 {
				t.Errorf("%v of %q", s, text)
			}
		}
	})
}

func conf(servers ...netip.AddrPort) string {
	text := "search example\n"
	for _, s := range servers {
		text += "nameserver " + s.Addr().String() + "\n"
	}
	return text
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file as NetworkManager does.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// link makes path lead to target, atomically.
func link(t *testing.T, path, target string) {
	t.Helper()
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// becomes waits until f asks these upstreams.
func becomes(t *testing.T, f *Forwarder, want ...netip.AddrPort) {
	t.Helper()
	for end := time.Now().Add(8 * time.Second); !slices.Equal(f.Upstreams(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) { // before the slow look
			t.Fatalf("upstreams are %v, want %v", f.Upstreams(), want)
		}
	}
}

func TestUpstreamsFollowResolvConf(t *testing.T) {
	dir := t.TempDir()
	path, run := filepath.Join(dir, "etc/resolv.conf"), filepath.Join(dir, "run")
	for _, d := range []string{filepath.Dir(path), run} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, path, conf(serverNo(1)))
	f := running(t, Options{ResolvConf: path, port: testPort})
	becomes(t, f, serverNo(1))
	time.Sleep(50 * time.Millisecond) // the folder is watched by now
	for _, step := range []struct {
		name string
		do   func()
		want []netip.AddrPort
	}{
		{"written in place", func() { write(t, path, conf(serverNo(2), serverNo(1))) }, []netip.AddrPort{serverNo(2), serverNo(1)}},
		{"replaced", func() { replace(t, path, conf(serverNo(3))) }, []netip.AddrPort{serverNo(3)}},
		{"made a link", func() {
			write(t, filepath.Join(run, "stub.conf"), conf(serverNo(4)))
			link(t, path, "../run/stub.conf")
		}, []netip.AddrPort{serverNo(4)}},
		{"target replaced", func() { replace(t, filepath.Join(run, "stub.conf"), conf(serverNo(5))) }, []netip.AddrPort{serverNo(5)}},
		{"link to elsewhere", func() {
			write(t, filepath.Join(run, "other.conf"), conf(serverNo(6)))
			link(t, path, filepath.Join(run, "other.conf"))
		}, []netip.AddrPort{serverNo(6)}},
		{"made a file again", func() { replace(t, path, conf(serverNo(7))) }, []netip.AddrPort{serverNo(7)}},
	} {
		t.Log(step.name)
		step.do()
		becomes(t, f, step.want...)
	}
}

func TestAnUnusableResolvConfKeepsTheUpstreamsAndSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, conf(serverNo(1)))
	var log bytes.Buffer
	f := New(Options{ResolvConf: path, port: testPort, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if s := f.Trouble(); s != "" {
		t.Errorf("trouble: %q", s)
	}
	for name, spoil := range map[string]func(){
		"empty":     func() { write(t, path, "") },
		"no server": func() { write(t, path, "search example\n") },
		"gone":      func() { os.Remove(path) },
	} {
		spoil()
		log.Reset()
		f.reread()
		f.reread()
		if !slices.Equal(f.Upstreams(), []netip.AddrPort{serverNo(1)}) {
			t.Errorf("%s: upstreams %v", name, f.Upstreams())
		}
		if s := f.Trouble(); !strings.Contains(s, path) || !strings.Contains(s, serverNo(1).String()) {
			t.Errorf("%s: trouble: %q", name, s)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%s: logged %q", name, log.String())
		}
		write(t, path, conf(serverNo(1)))
		f.reread()
	}
	if s := f.Trouble(); s != "" {
		t.Errorf("trouble: %q", s)
	}
}

func TestThisDaemonIsNeverItsOwnUpstream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	own, other := serve(t, 1, replies(good)), serve(t, 2, replies(good))
	isOwn := func(a netip.AddrPort) bool { return a == own.addr }
	write(t, path, conf(own.addr, other.addr))
	var log bytes.Buffer
	f := New(Options{ResolvConf: path, port: testPort, Own: isOwn, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if r := a("x.example.").put(t, f); len(r.Answer) != 1 || f.Trouble() != "" {
		t.Errorf("trouble %q, got %v", f.Trouble(), r)
	}
	write(t, path, conf(own.addr))
	f.reread()
	log.Reset()
	for _, name := range []string{"y.example.", "z.example."} {
		began := time.Now()
		r := a(name).put(t, f)
		if took := time.Since(began); r.Rcode != dns.RcodeServerFailure || took > time.Second {
			t.Errorf("after %v: %v", took, r)
		}
	}
	if s := f.Trouble(); !strings.Contains(s, path) || !strings.Contains(s, "--dns-upstream") {
		t.Errorf("trouble: %q", s)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("logged %q", log.String())
	}
	if udp, tcp := own.counts(); udp+tcp != 0 {
		t.Errorf("asked itself %d times", udp+tcp)
	}
}

func TestNoQueryIsLostWhileResolvConfChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	servers := []*server{serve(t, 1, replies(good)), serve(t, 2, replies(good))}
	write(t, path, conf(servers[0].addr))
	f := running(t, Options{ResolvConf: path, port: testPort})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				r := a(fmt.Sprintf("n%d-%d.example.", i, n)).put(t, f)
				if len(r.Answer) != 1 {
					t.Errorf("got %v", r)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for n := range 6 {
		switch s := servers[(n+1)%2]; n % 3 {
		case 0:
			replace(t, path, conf(s.addr))
		case 1:
			write(t, path, conf(s.addr))
		case 2:
			write(t, path, "")
			time.Sleep(2 * settle)
			write(t, path, conf(s.addr))
		}
		becomes(t, f, servers[(n+1)%2].addr)
	}
	close(stop)
	wg.Wait()
	for _, s := range servers {
		if udp, _ := s.counts(); udp == 0 {
			t.Errorf("%v was never asked", s.addr)
		}
	}
}
