// Command services measures connections to services: the rules alone, beside
// iptables and beside a chain for each endpoint, and whole daemons, from etcd
// to the kernel and under load while endpoints come and go.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags.
type options struct {
	bin    string
	parts  string
	small  bool
	rounds int
	drain  time.Duration
	dir    string // of files
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && slices.Contains([]string{"rules", "spread", "write", "web", "ask"}, args[0]) {
		if err := helper(ctx, args, stdout); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	}
	var o options
	fs := flag.NewFlagSet("services", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.bin, "bin", "bin", "`folder` of our programs")
	fs.StringVar(&o.parts, "parts", "rules,balance,daemon,drain", "`what` is measured")
	fs.BoolVar(&o.small, "small", false, "a tenth as many services, to try the benchmark itself")
	fs.IntVar(&o.rounds, "rounds", 9, "`times` each figure is taken")
	fs.DurationVar(&o.drain, "drain", 10*time.Second, "of load while endpoints are replaced")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if err := measure(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "services:", err)
		return 1
	}
	return 0
}

// helper is what the benchmark runs of itself.
func helper(ctx context.Context, args []string, out io.Writer) error {
	switch args[0] {
	case "write":
		return write(ctx, os.Stdin, out)
	case "web":
		return serveWeb(out)
	case "ask":
		return ask(ctx, args[1:], out)
	}
	return rulesHelper(ctx, args, out)
}

// measure runs every part.
func measure(ctx context.Context, o options, w io.Writer) (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "bench-services-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	b := &bench{o, w}
	parts := map[string]func(context.Context) error{"rules": b.rules, "balance": b.balance, "daemon": b.daemon, "drain": b.drained}
	for _, name := range strings.Split(o.parts, ",") {
		part := parts[name]
		if part == nil {
			return fmt.Errorf("no part is called %q: give some of rules, balance, daemon, drain", name)
		}
		if err := part(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// bench prints what it measures.
type bench struct {
	options
	out io.Writer
}

func (b *bench) row(format string, a ...any) { fmt.Fprintf(b.out, format+"\n", a...) }

// size is n, or a tenth of it if this is to be quick.
func (b *bench) size(n int) int {
	if b.small {
		return n / 10
	}
	return n
}
