package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// serve answers each connection on a port of 127.0.0.1, after the request's
// first line if there is one.
func serve(t *testing.T, answer func(c net.Conn, request string)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				answer(c, line)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func lookAt(t *testing.T, path string, at ...netip.AddrPort) (string, bool) {
	t.Helper()
	c := Check{Path: path, Timeout: 300 * time.Millisecond}
	for _, a := range at {
		c.Addrs, c.Ports = []netip.Addr{a.Addr()}, append(c.Ports, a.Port())
	}
	return newLooker().look(t.Context(), &c)
}

// closed is a port that nobody listens on.
func closed(t *testing.T) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestAnswersOfHTTP(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	var followed atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		if r.URL.Path == "/followed" {
			followed.Store(true)
		}
		var status int
		if n, _ := fmt.Sscanf(r.URL.Path, "/%d", &status); n == 1 {
			w.Header().Set("Location", "/followed")
			w.WriteHeader(status)
		}
	}))
	defer s.Close()
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	for path, want := range map[string]string{
		"/":                                "",
		"/204":                             "",
		"/302":                             "",
		"/399":                             "",
		"/400":                             "HTTP 400 from /400",
		"/503?a=b%20c":                     "HTTP 503 from /503?a=b%20c",
		"/500/" + strings.Repeat("x", 900): "HTTP 500 from /500/" + strings.Repeat("x", 95),
		"//other.example/200":              "",
		"no path":                          "no connection",
	} {
		if why, ok := lookAt(t, path, at); why != want || !ok {
			t.Errorf("%s: %q, %v; want %q", path, why, ok, want)
		}
	}
	if followed.Load() {
		t.Error("a redirection was followed")
	}
	if r := seen.Load(); r.Method != http.MethodGet || r.Host != at.String() || !r.Close {
		t.Errorf("%s, Host %s, closes %v", r.Method, r.Host, r.Close)
	}
}

func TestServersThatMeanHarm(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	endless := func(c net.Conn, text string) {
		for b := []byte(strings.Repeat(text, 100)); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	const late, odd, ended = "no answer within 300ms", "the answer is not HTTP", "connection closed without an answer"
	for name, c := range map[string]struct {
		answer func(c net.Conn, request string)
		want   string
	}{
		"endless body": {func(c net.Conn, _ string) { _, _ = io.WriteString(c, ok+"\r\n"); endless(c, "x") }, ""},
		"body that stops": {func(c net.Conn, _ string) {
			_, _ = io.WriteString(c, ok+"Content-Length: 100\r\n\r\nx")
			time.Sleep(time.Second)
		}, ""},
		"body that is short": {func(c net.Conn, _ string) { _, _ = io.WriteString(c, ok+"Content-Length: 100\r\n\r\nx") }, ""},
		"huge headers":       {func(c net.Conn, _ string) { _, _ = io.WriteString(c, ok); endless(c, "A: b\r\n") }, odd},
		"endless header":     {func(c net.Conn, _ string) { _, _ = io.WriteString(c, ok+"A: "); endless(c, "b") }, odd},
		"endless status":     {func(c net.Conn, _ string) { endless(c, "HTTP/1.1 200 OK") }, odd},
		"slow headers": {func(c net.Conn, _ string) {
			for _, err := io.WriteString(c, ok); err == nil; _, err = io.WriteString(c, "A: b\r\n") {
				time.Sleep(20 * time.Millisecond)
			}
		}, late},
		"early hints for ever": {func(c net.Conn, _ string) { endless(c, "HTTP/1.1 103 Early Hints\r\n\r\n") }, odd},
		"another protocol":     {func(c net.Conn, _ string) { _, _ = io.WriteString(c, "\x15\x03\x01\x1b[31mHello\r\n\r\n") }, odd},
		"status of words":      {func(c net.Conn, _ string) { _, _ = io.WriteString(c, "HTTP/1.1 abc \x1b[31m\r\n\r\n") }, odd},
		"status of its own":    {func(c net.Conn, _ string) { _, _ = io.WriteString(c, "HTTP/1.1 999 \x1b[31mEvil\r\n\r\n") }, "HTTP 999 from /"},
		"silence":              {func(c net.Conn, _ string) { time.Sleep(time.Second) }, late},
		"goes away":            {func(c net.Conn, _ string) {}, ended},
		"resets":               {func(c net.Conn, _ string) { _ = c.(*net.TCPConn).SetLinger(0) }, ended},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			why, ok := lookAt(t, "/", serve(t, c.answer))
			if why != c.want || !ok {
				t.Errorf("%q, %v; want %q", why, ok, c.want)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestEveryPortAnswersAtSomeAddress(t *testing.T) {
	open := serve(t, func(net.Conn, string) {})
	shut := closed(t)
	if why, ok := lookAt(t, "", open); why != "" || !ok {
		t.Errorf("a server: %q", why)
	}
	if why, _ := lookAt(t, "", shut); why != "connection refused" {
		t.Errorf("no server: %q", why)
	}
	if why, _ := lookAt(t, "/", shut); why != "connection refused" {
		t.Errorf("no server of HTTP: %q", why)
	}
	if why, _ := lookAt(t, "", open, shut); why != fmt.Sprintf("port %d: connection refused", shut.Port()) {
		t.Errorf("one of two: %q", why)
	}
	c := Check{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, Ports: []uint16{open.Port()}, Timeout: time.Second}
	if why, _ := newLooker().look(t.Context(), &c); why != "" {
		t.Errorf("at the second address: %q", why)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if why, ok := newLooker().look(ctx, &c); ok {
		t.Errorf("the end is taken for a result: %q", why)
	}
}

func TestReasonsAreFewWords(t *testing.T) {
	c := &Check{Path: "/" + strings.Repeat("x", 900), Timeout: 2 * time.Second}
	for want, err := range map[string]error{
		"connection refused":  &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		"address unreachable": &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH},
		"no answer within 2s": fmt.Errorf("get: %w", context.DeadlineExceeded),
		"connection forbidden by the packet filter of this host": syscall.EPERM,
		"no connection": errors.New("x\x1b[31m"),
		"HTTP 503 from /" + strings.Repeat("x", 99): statusError(503),
	} {
		if got := reason(err, c); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
		if got := fmt.Sprintf("port 65535: %s", reason(err, c)); len(got) > 200 {
			t.Errorf("%q has %d bytes", got, len(got))
		}
	}
	if !short(&net.OpError{Op: "dial", Err: syscall.EMFILE}) || short(syscall.ECONNREFUSED) {
		t.Error("whose fault it is")
	}
}

// TestChecksOfRealServers has all of it together.
func TestChecksOfRealServers(t *testing.T) {
	open, shut := serve(t, func(net.Conn, string) {}), closed(t)
	checks, told := make(chan []Check), make(chan Verdicts, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Checker{}.Run(ctx, checks, func(v Verdicts) { told <- v }) }()
	var list []Check
	for name, at := range map[string]netip.AddrPort{"open": open, "shut": shut} {
		c := check(Subject{name, "web"}, NotYet)
		c.Addrs, c.Ports, c.Interval = []netip.Addr{at.Addr()}, []uint16{at.Port()}, 200*time.Millisecond
		list = append(list, c)
	}
	checks <- list
	for v := range told {
		if v[Subject{"shut", "web"}] == "connection refused" && v[Subject{"open", "web"}] == "" {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
