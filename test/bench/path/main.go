// Command path compares the ways from pod to pod with the way from host to
// host under them: request and connection rates, throughput, packets and CPU,
// as ratios within one interleaved run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/kernel/wireguard/userspace"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	os.Exit(mainIn(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags.
type options struct {
	rounds   int
	duration time.Duration
	only     *regexp.Regexp
}

func mainIn(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if code, ok := outlive.Main(args, map[string]outlive.Keeper{udp.Kind: udp.Keep, userspace.Kind: userspace.Keep}); ok {
		return code
	}
	if len(args) > 0 && args[0] == "load" {
		if err := load(args[1:], stdout); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	}
	var o options
	fs := flag.NewFlagSet("path", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.IntVar(&o.rounds, "rounds", 9, "`times` each figure is taken; the interval needs 9")
	fs.DurationVar(&o.duration, "time", 200*time.Millisecond, "of each measurement, four of which are a round")
	only := fs.String("only", "", "paths whose name matches this `expression`")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	var err error
	if o.only, err = regexp.Compile(*only); err == nil {
		err = errors.Join(peers(ctx, o, stdout), bench(ctx, o, stdout))
	}
	if err != nil {
		fmt.Fprintln(stderr, "path:", err)
		return 1
	}
	return 0
}

// measures are what a client can do, by its name.
func measures() []struct{ name, title string } {
	return []struct{ name, title string }{
		{"rr", "request/response"}, {"crr", "connect/request/close"}, {"1", "1 stream"}, {"4", "4 streams"}, {"udp", "64-byte UDP"},
	}
}

// lane is a path that is up.
type lane struct {
	path
	pair *pair
}

// bench measures every path against the hosts under it: in each round of a
// measure host, pods, pods, host.
func bench(ctx context.Context, o options, w io.Writer) (err error) {
	var lanes []lane
	defer func() {
		for _, l := range lanes {
			err = errors.Join(err, l.pair.close())
		}
	}()
	for _, p := range paths() {
		if !o.only.MatchString(p.name) {
			continue
		}
		pr, err := newPair(ctx, 1500)
		if err != nil {
			return err
		}
		lanes = append(lanes, lane{p, pr})
		switch err := p.up(ctx, pr); {
		case errors.Is(err, unix.EOPNOTSUPP):
			fmt.Fprintf(w, "%s: this kernel has it not (%v)\n", p.name, err)
			lanes = lanes[:len(lanes)-1]
			if err := pr.close(); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, cpus := range []struct {
		title          string
		client, server int
	}{{"both ends on one CPU", 0, 0}, {"each end on a CPU of its own", 0, 1}} {
		fmt.Fprintf(w, "\n### %s\n\nRatio to host-to-host: median (least–greatest; 95 %% interval of the median)\n", cpus.title)
		for _, m := range measures() {
			if err := compare(ctx, o, w, lanes, m.name, m.title, cpus.client, cpus.server); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare prints one measure of all lanes.
func compare(ctx context.Context, o options, w io.Writer, lanes []lane, what, title string, client, server int) error {
	series := make([]series, len(lanes))
	for range o.rounds {
		for i, l := range lanes {
			if err := l.round(ctx, o, what, client, server, &series[i]); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
	}
	fmt.Fprintf(w, "\n| %s | ratio | host to host | pod to pod | 99th host, pod | CPU per unit |\n|---|---|---|---|---|---|\n", title)
	for i, l := range lanes {
		fmt.Fprintf(w, "| %s | %s |\n", l.name, series[i].row(what))
	}
	return nil
}

// round measures host, pods, pods, host.
func (l lane) round(ctx context.Context, o options, what string, client, server int, s *series) error {
	var r [2][2]sample // host, pods
	for at, pods := range []int{0, 1, 1, 0} {
		ends, addr := l.pair.hosts, hostAddr(1)
		if pods == 1 {
			ends, addr = l.pair.pods, podAddr(1)
		}
		stop, err := l.pair.server(ctx, ends[1], addr, server)
		if err != nil {
			return err
		}
		before := busy()
		res, err := measure(ctx, ends[0], what, addr, client, o.duration)
		used := busy() - before
		stop()
		if err != nil {
			return err
		}
		r[pods][at/2] = sample{res, used}
	}
	s.add(r)
	return nil
}
