package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/dnswire"
)

// place is a host or a container.
type place interface {
	Command(ctx context.Context, name string, args ...string) *lab.Cmd
	Do(f func() error) error
}

// aliased is the CNI configuration of containers that their engine gives
// aliases.
func aliased(aliases ...string) string {
	list := `"` + strings.Join(aliases, `","`) + `"`
	return strings.Replace(lab.Conflist, `"type": "flanneld-bridge",`, `"type": "flanneld-bridge", "runtimeConfig": {"aliases": {"flannel": [`+list+`]}},`, 1)
}

// dial opens a UDP socket in a place to a server's port 53.
func dial(at place, server netip.Addr) (conn *net.UDPConn, err error) {
	err = at.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, 53)))
		return err
	})
	return conn, err
}

// ask asks once, from a new socket.
func ask(at place, server netip.Addr, name string, qtype uint16, patience time.Duration) (dnswire.Reply, error) {
	conn, err := dial(at, server)
	if err != nil {
		return dnswire.Reply{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return dnswire.Reply{}, err
	}
	if _, err := conn.Write(dnswire.Query(77, name, qtype)); err != nil {
		return dnswire.Reply{}, err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		return dnswire.Reply{}, fmt.Errorf("%s at %s: %w", name, server, err)
	}
	return dnswire.ParseReply(buf[:n])
}

// has is a check for within: a name has exactly these addresses; none means
// that it does not exist.
func has(at place, server netip.Addr, name string, want ...netip.Addr) func() error {
	return func() error {
		var got []netip.Addr
		for _, qtype := range []uint16{dnswire.A, dnswire.AAAA} {
			r, err := ask(at, server, name, qtype, time.Second)
			if err != nil {
				return err
			}
			if len(want) == 0 && r.RCode != dnswire.NameError || len(want) > 0 && r.RCode != dnswire.NoError {
				return fmt.Errorf("%s: code %d, addresses %v, want %v", name, r.RCode, r.Addrs, want)
			}
			got = append(got, r.Addrs...)
		}
		slices.SortFunc(got, netip.Addr.Compare)
		want := slices.SortedFunc(slices.Values(want), netip.Addr.Compare)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s has %v, want %v", name, got, want)
		}
		return nil
	}
}

// empty is a check for within: a name has no addresses (any more). It may
// exist.
func empty(at place, server netip.Addr, name string) error {
	r, err := ask(at, server, name, dnswire.A, time.Second)
	if err == nil && len(r.Addrs) > 0 {
		err = fmt.Errorf("%s has %v", name, r.Addrs)
	}
	return err
}

// addrs are a container's.
func addrs(cs ...*lab.Container) (all []netip.Addr) {
	for _, c := range cs {
		for _, p := range c.Addrs {
			all = append(all, p.Addr())
		}
	}
	return all
}

// upstream is a name server on the switch that is scripted: every name under
// example.org has one address of each family.
type upstream struct {
	conn *net.UDPConn
	wg   sync.WaitGroup

	mu    sync.Mutex // guards asked
	asked map[string]int
}

func startUpstream(t *testing.T, sw *lab.Host, at netip.Addr, answers ...netip.Addr) *upstream {
	t.Helper()
	u := &upstream{asked: map[string]int{}}
	err := sw.Do(func() (err error) {
		u.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 53)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	u.wg.Go(func() { u.serve(answers) })
	t.Cleanup(func() {
		u.conn.Close()
		u.wg.Wait()
	})
	return u
}

func (u *upstream) serve(answers []netip.Addr) {
	in := make([]byte, 4096)
	for {
		n, from, err := u.conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		name, qtype, end, err := dnswire.Question(in[:n])
		if err != nil {
			continue
		}
		name = strings.ToLower(name)
		u.mu.Lock()
		u.asked[name]++
		u.mu.Unlock()
		rcode := dnswire.NameError
		var have []netip.Addr
		if strings.HasSuffix(name, "example.org") {
			rcode = dnswire.NoError
			for _, a := range answers {
				if a.Is4() && qtype == dnswire.A || a.Is6() && qtype == dnswire.AAAA {
					have = append(have, a)
				}
			}
		}
		_, _ = u.conn.WriteToUDPAddrPort(dnswire.AppendAnswer(nil, in[:n], end, rcode, 60, have...), from) // lost is lost
	}
}

// resolve runs a program in a container, which has the resolv.conf of its CNI
// result, and returns what it wrote.
func resolve(c *lab.Container, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := c.Command(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	return string(out), nil
}

// found are the addresses in what a program wrote, each once.
func found(out string) (all []netip.Addr) {
	for _, word := range strings.FieldsFunc(out, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef.:", r) }) {
		a, err := netip.ParseAddr(strings.TrimRight(word, ":"))
		if err == nil && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// muslResolver builds a program that asks musl's getaddrinfo.
func muslResolver(t *testing.T) string {
	t.Helper()
	need(t, "musl-gcc")
	file := filepath.Join(t.TempDir(), "resolve")
	if out, err := exec.Command("musl-gcc", "-static", "-O", "-o", file, "testdata/resolve.c").CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	return file
}

// pairs asks for A and AAAA of a name at once from one socket, as glibc does,
// so many times, each time from a new socket, and repeats nothing. It keeps
// below the 2,000 questions a second that a container may ask, and returns the
// slowest pair and how many of them lost an answer.
func pairs(at place, server netip.Addr, name string, times int) (slowest time.Duration, lost int, err error) {
	err = at.Do(func() error {
		buf := make([]byte, 4096)
		tick := time.NewTicker(time.Second / 800)
		defer tick.Stop()
		for i := range times {
			<-tick.C
			took, err := pair(server, name, uint16(2*i), buf)
			if errors.Is(err, unix.EAGAIN) {
				lost++
			} else if err != nil {
				return err
			}
			slowest = max(slowest, took)
		}
		return nil
	})
	return slowest, lost, err
}

func pair(server netip.Addr, name string, id uint16, buf []byte) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 53, Addr: server.As4()}); err != nil {
		return 0, err
	}
	start := time.Now()
	for i, qtype := range []uint16{dnswire.A, dnswire.AAAA} {
		if _, err := unix.Write(fd, dnswire.Query(id+uint16(i), name, qtype)); err != nil {
			return 0, err
		}
	}
	want := map[uint16]bool{id: true, id + 1: true}
	for len(want) > 0 {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return time.Since(start), err
		}
		r, err := dnswire.ParseReply(buf[:n])
		if err != nil {
			return 0, err
		}
		if !want[r.ID] || r.RCode != dnswire.NoError || len(r.Addrs) == 0 {
			return 0, fmt.Errorf("%s: a wrong answer: %+v", name, r)
		}
		delete(want, r.ID)
	}
	return time.Since(start), nil
}
