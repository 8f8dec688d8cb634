package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

// askers ask at the same time; each request is a connection.
const (
	askers   = 4
	thinking = 5 * time.Millisecond   // of a server about an answer
	grace    = 300 * time.Millisecond // between the end of a label and of a server
)

// drained prints what a client notices of endpoints that are replaced: each by
// another one, which is labelled when its server listens; the old one loses its
// label and, a little later, its life.
func (b *bench) drained(ctx context.Context) (err error) {
	c, err := b.cluster(ctx, 2)
	defer func() { err = errors.Join(err, c.close()) }()
	if err != nil {
		return err
	}
	hosts := c.Hosts()
	for _, h := range hosts {
		if _, err := c.start(ctx, h); err != nil {
			return err
		}
	}
	shop, err := makeService(ctx, hosts[0])
	if err != nil {
		return err
	}
	var webs []*web
	for i := range copies {
		w, err := c.replica(ctx, i)
		if err != nil {
			return err
		}
		webs = append(webs, w)
	}
	client, err := hosts[1].Attach(ctx, "client", "")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(shop, 80))
	if err := answers(ctx, client, url); err != nil {
		return err
	}
	ask := client.Command(ctx, self(), "ask", url, b.drain.String())
	ask.Stderr = os.Stderr
	out, err := ask.StdoutPipe()
	if err == nil {
		err = c.run(ask)
	}
	if err != nil {
		return err
	}
	replaced := 0
	for ends := time.Now().Add(b.drain); time.Now().Before(ends); replaced++ {
		w, err := c.replica(ctx, copies+replaced)
		if err != nil {
			return err
		}
		webs = append(webs, w)
		if err := webs[0].drain(ctx); err != nil {
			return err
		}
		webs = webs[1:]
	}
	var r asked
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		return fmt.Errorf("what the clients say: %w", err)
	}
	b.row("\n### %d clients, a connection for each request, while %d endpoints were replaced by others, %d at a time there\n\n"+
		"| requests | failed | median | 99th | slowest |\n|---|---|---|---|---|\n| %d | %d | %s | %s | %s |", askers, replaced, copies, r.Requests, r.Failed,
		round(r.Median), round(r.P99), round(r.Slowest))
	if r.Error != "" {
		b.row("\nthe first failure: %s", r.Error)
	}
	return nil
}

func self() string { return fmt.Sprintf("/proc/%d/exe", os.Getpid()) }

// makeService makes the service and returns its virtual address, as soon as the
// daemon can.
func makeService(ctx context.Context, h *lab.Host) (netip.Addr, error) {
	for {
		out, err := h.Command(ctx, "flanneld", "service", "create", "shop", "--port", fmt.Sprintf("80:%d", target), "--selector", "app=shop").CombinedOutput()
		if err == nil {
			break
		}
		if wait(ctx, 100*time.Millisecond) != nil {
			return netip.Addr{}, fmt.Errorf("make a service: %w: %s", err, out)
		}
	}
	out, err := h.Command(ctx, "flanneld", "service", "describe", "shop", "-o", "json").Output()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("describe the service: %w", err)
	}
	var d api.ServiceDetail
	if err := json.Unmarshal(out, &d); err != nil || len(d.VirtualIPs) == 0 {
		return netip.Addr{}, fmt.Errorf("the service has no virtual address: %w", err)
	}
	return d.VirtualIPs[0], nil
}

// web is a container with a server.
type web struct {
	*lab.Container
	host *lab.Host
	cmd  *lab.Cmd
}

// replica makes the i-th one, and an endpoint of it when it serves.
func (c *cluster) replica(ctx context.Context, i int) (w *web, err error) {
	w = &web{host: c.Hosts()[i%2]}
	if w.Container, err = w.host.Attach(ctx, fmt.Sprintf("web-%d", i), ""); err != nil {
		return nil, err
	}
	w.cmd = w.Command(ctx, self(), "web")
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = c.run(w.cmd)
	}
	if err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("start %s: %w", w.Name, err)
	}
	return w, w.label(ctx, "app=shop")
}

func (w *web) label(ctx context.Context, label string) error {
	if out, err := w.host.Command(ctx, "flanneld", "endpoint", "label", w.Name, label).CombinedOutput(); err != nil {
		return fmt.Errorf("label %s %s: %w: %s", w.Name, label, err, out)
	}
	return nil
}

// drain takes the label away, and then the container.
func (w *web) drain(ctx context.Context) error {
	if err := w.label(ctx, "app-"); err != nil {
		return err
	}
	if err := wait(ctx, grace); err != nil {
		return err
	}
	return w.Detach(ctx)
}

// answers waits until the service does.
func answers(ctx context.Context, from *lab.Container, url string) error {
	for {
		var r asked
		out, err := from.Command(ctx, self(), "ask", url, "100ms").Output()
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		if err == nil && r.Failed == 0 {
			return nil
		}
		if wait(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("%s: %s: %w", url, r.Error, errors.Join(err, ctx.Err()))
		}
	}
}

// serveWeb is a server, until it is killed.
func serveWeb(out io.Writer) error {
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", target))
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-time.After(thinking)
		_, _ = io.WriteString(w, "shop\n") // who asked may be gone
	}))
}

// asked is what clients have seen.
type asked struct {
	Requests, Failed     int
	Median, P99, Slowest time.Duration
	Error                string // of the first that failed
}

// ask is "ask URL DURATION".
func ask(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("ask: URL DURATION")
	}
	d, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	var r asked
	var times stats
	var mu sync.Mutex // guards both
	var wg sync.WaitGroup
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ends := time.Now().Add(d)
	for range askers {
		wg.Go(func() {
			for time.Now().Before(ends) && ctx.Err() == nil {
				begin := time.Now()
				err := get(ctx, client, args[0])
				took := time.Since(begin)
				mu.Lock()
				if times = append(times, took); err != nil {
					if r.Failed++; r.Failed == 1 {
						r.Error = err.Error()
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(times)
	if n := len(times); n > 0 {
		r.Requests, r.Median, r.P99, r.Slowest = n, times[n/2], times[n*99/100], times[n-1]
	}
	return json.NewEncoder(out).Encode(r)
}

func get(ctx context.Context, c *http.Client, url string) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	a, err := c.Do(q)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, a.Body)
	return errors.Join(err, a.Body.Close())
}
