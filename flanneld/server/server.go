// Package server answers the local API and the health checks of one daemon.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld/flanneld/flanneld/api"
)

// Daemon is what the server asks. Its method may be called concurrently.
type Daemon interface {
	// Status returns the present status; an error if the daemon does not
	// come round to answering before ctx ends.
	Status(ctx context.Context) (api.Status, error)
}

// Options says where to listen, and for what.
type Options struct {
	Socket  string         // unix socket of the local API
	Healthz netip.AddrPort // health server; port 0: none
	// Each is asked what its name says; nil: requests about it are unknown here.
	Names        Names
	Publications Publications
	Endpoints    Endpoints
	// Domain of the cluster's names, lower case, without the dot at the end.
	Domain string
	// Metrics answers GET /metrics, here as on the health server; nil: 404.
	Metrics http.Handler
}

// patience is how long the daemon may take to answer before it counts as stuck.
const patience = 3 * time.Second

// Run serves until ctx ends. Listening problems are returned at once.
func Run(ctx context.Context, d Daemon, o Options) error {
	local, err := listenUnix(o.Socket)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveLocal(ctx, local, o.Socket, apiHandler(d, o)) })
	if o.Healthz.Port() != 0 {
		health, err := net.Listen("tcp", o.Healthz.String())
		if err != nil {
			return errors.Join(local.Close(), fmt.Errorf("listen for health checks on %s: %w: choose others with --healthz-ip and --healthz-port", o.Healthz, err))
		}
		g.Go(func() error { return serve(ctx, health, healthHandler(d, o.Metrics)) })
	}
	return g.Wait()
}

// listenUnix makes a socket that only root can open. The caller holds the
// host's lock, so what is there is left over from a daemon that died.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the local API: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the former socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the local API: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(l.Close(), fmt.Errorf("restrict the local API to root: %w", err))
	}
	return l, nil
}

// serveLocal listens again when somebody deleted the socket.
func serveLocal(ctx context.Context, l net.Listener, path string, h http.Handler) error {
	tick := time.NewTicker(socketCheck)
	defer tick.Stop()
	for {
		serving, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- serve(serving, l, h) }()
		for there := true; there; {
			select {
			case err := <-ended:
				stop()
				return err
			case <-tick.C:
				_, err := os.Stat(path)
				there = !errors.Is(err, os.ErrNotExist)
			}
		}
		stop()
		if err := <-ended; err != nil {
			return err
		}
		var err error
		if l, err = listenUnix(path); err != nil {
			return err
		}
	}
}

// socketCheck is how often the socket is looked for.
const socketCheck = 5 * time.Second

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

func apiHandler(d Daemon, o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(func(r *http.Request) (any, error) { return ask(r.Context(), d) }))
	if o.Names != nil {
		(&namesAPI{o.Names, o.Domain}).routes().register(mux)
	}
	if o.Publications != nil {
		(&publishAPI{o.Publications}).routes().register(mux)
	}
	if o.Endpoints != nil {
		(&endpointsAPI{o.Endpoints}).routes().register(mux)
	}
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	return mux
}

// routes are requests and what answers them.
type routes map[string]func(*http.Request) (any, error)

// register has them answered within the time that the store may take.
func (all routes) register(mux *http.ServeMux) {
	for pattern, f := range all {
		mux.HandleFunc(pattern, answer(func(r *http.Request) (any, error) {
			ctx, cancel := context.WithTimeout(r.Context(), editPatience)
			defer cancel()
			return f(r.WithContext(ctx))
		}))
	}
}

// healthHandler: /healthz says that the daemon lives, /readyz that this host
// is in the network: lease registered, kernel equal to the leases.
func healthHandler(d Daemon, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, code int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		fmt.Fprintln(w, text)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		s, err := ask(r.Context(), d)
		if err != nil {
			say(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		if _, verbose := r.URL.Query()["verbose"]; verbose {
			say(w, http.StatusOK, strings.Join(append([]string{Line(s)}, ways(s)...), "\n"))
			return
		}
		say(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		s, err := ask(r.Context(), d)
		switch {
		case err != nil:
			say(w, http.StatusServiceUnavailable, err.Error())
		case s.Verdict == api.Down:
			say(w, http.StatusServiceUnavailable, Line(s))
		default:
			say(w, http.StatusOK, Line(s))
		}
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return mux
}

func ask(ctx context.Context, d Daemon) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := d.Status(ctx)
	if err != nil {
		return s, api.Unavailable("the daemon does not answer within %v: it hangs in a system call or is overloaded; see its log", patience)
	}
	return s, nil
}

// ways says for each peer what its probes found, one line for each family.
func ways(s api.Status) []string {
	var out []string
	for _, p := range s.Peers {
		for _, w := range p.Probes {
			line := fmt.Sprintf("%s %s: %s", cmp.Or(p.Node, "-"), w.Addr, w.Verdict)
			if w.RTT > 0 {
				line += ", rtt " + w.RTT.Round(time.Microsecond).String()
			}
			if w.MTU > 0 {
				line += fmt.Sprintf(", %d bytes pass", w.MTU)
			}
			if w.TCP != "" {
				line += ", TCP " + w.TCP
			}
			if w.Plain != "" {
				line += ", plain " + w.Plain
			}
			if w.Message != "" {
				line += "; " + w.Message
			}
			out = append(out, line)
		}
	}
	return out
}

// Line is the verdict and the reasons for it in one line.
func Line(s api.Status) string {
	line := string(s.Verdict)
	for i, r := range s.Reasons {
		if i == 0 {
			line += ": " + r
		} else {
			line += "; " + r
		}
	}
	return line
}
