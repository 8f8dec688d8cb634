// Command hosts measures whole daemons in a lab: how fast a host joins, how
// fast others follow, what thousands of leases and idleness cost. With
// --flannel it measures flannel beside ours in the same run, in turn.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags of the benchmark.
type options struct {
	bin, flannel string
	runs         int
	sizes        []int
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && (slices.Contains([]string{"fill", "put", "proxy"}, args[0])) {
		return helper(ctx, args, stderr)
	}
	var o options
	fs := flag.NewFlagSet("hosts", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.bin, "bin", "bin", "`folder` of the programs that are measured")
	fs.StringVar(&o.flannel, "flannel", "", "flannel's `program`, to measure beside ours")
	fs.IntVar(&o.runs, "runs", 20, "`times` each start is measured")
	large := fs.Bool("large", true, "also 50,000 leases")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	o.sizes = []int{5_000}
	if *large {
		o.sizes = append(o.sizes, 50_000)
	}
	if err := measure(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "hosts:", err)
		return 1
	}
	return 0
}

// measure runs every part in a lab of its own.
func measure(ctx context.Context, o options, w io.Writer) (err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{Name: "bench", Hosts: 3, Programs: bin, Replace: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	b := &bench{lab: l, options: o, out: w}
	for _, part := range []func(context.Context) error{b.binary, b.starts, b.follows, b.idle, b.many} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stats are the figures of one measure, sorted.
type stats []time.Duration

func (s stats) sorted() stats          { slices.Sort(s); return s }
func (s stats) median() time.Duration  { return s.sorted()[len(s)/2] }
func (s stats) min() time.Duration     { return s.sorted()[0] }
func (s stats) max() time.Duration     { return s.sorted()[len(s)-1] }
func ms(d time.Duration) string        { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
