package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"

	"golang.org/x/sys/unix"
)

// What is read of an HTTP answer at most.
const (
	mostHeader = 16 << 10
	mostBody   = 8 << 10 // so that a server can finish what is short
)

// looker connects to endpoints. It may be used concurrently.
type looker struct {
	dialer net.Dialer
	http   http.Transport
}

func newLooker() *looker {
	l := &looker{dialer: net.Dialer{KeepAlive: -1}}
	l.http = http.Transport{ // Proxy is nil: an endpoint is here
		DialContext:            func(ctx context.Context, network, at string) (net.Conn, error) { return l.dial(ctx, at) },
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: mostHeader,
	}
	return l
}

// look is Checker.look: each port must answer at one of the addresses. It takes
// as long as every answer does, and twice Timeout for a port that gives none.
func (l *looker) look(ctx context.Context, c *Check) (why string, ok bool) {
	for _, port := range c.Ports {
		why := ""
		for i, a := range c.Addrs {
			err := l.ask(ctx, netip.AddrPortFrom(a, port), c)
			if ctx.Err() != nil || short(err) {
				return "", false
			}
			if err == nil {
				why = ""
				break
			}
			if i == 0 {
				why = reason(err, c)
			}
		}
		if why != "" {
			if len(c.Ports) > 1 {
				why = fmt.Sprintf("port %d: %s", port, why)
			}
			return why, true
		}
	}
	return "", true
}

// short tells whether err is this host's own trouble.
func short(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// statusError is an answer of HTTP that says no.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("HTTP %d", int(s)) }

// errAnswer wraps what went wrong after the connection was made.
var errAnswer = errors.New("answer")

// reason puts err into few words, the same for the same trouble. Nothing of
// what an endpoint sent is in them but the number of a status.
func reason(err error, c *Check) string {
	var timeout interface{ Timeout() bool }
	status, said := errors.AsType[statusError](err)
	switch {
	case said:
		return fmt.Sprintf("%s from %.100s", status, c.Path)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %v", c.Timeout)
	case errors.Is(err, unix.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "address unreachable"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "connection forbidden by the packet filter of this host"
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case errors.Is(err, errAnswer):
		return "the answer is not HTTP"
	}
	return "no connection"
}

// ask looks at one port of one address.
func (l *looker) ask(ctx context.Context, at netip.AddrPort, c *Check) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if c.Path != "" {
		return l.get(ctx, at, c.Path)
	}
	conn, err := l.dial(ctx, at.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects. The connection ends with a reset: closed in the usual way,
// this host would remember each for a minute, and track it for two.
func (l *looker) dial(ctx context.Context, at string) (net.Conn, error) {
	conn, err := l.dialer.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return conn, nil
}

// get asks for path. Redirections are an answer and are not followed.
func (l *looker) get(ctx context.Context, at netip.AddrPort, path string) error {
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return err
	}
	u.Scheme, u.Host = "http", at.String()
	request := (&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{"User-Agent": {"flanneld"}}}).WithContext(ctx)
	answer, err := l.http.RoundTrip(request)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return err
		}
		return errors.Join(errAnswer, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 399 {
		return statusError(answer.StatusCode)
	}
	_, _ = io.CopyN(io.Discard, answer.Body, mostBody)
	return nil
}
