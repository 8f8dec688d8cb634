// Command dns measures the embedded DNS against CoreDNS with its etcd plugin
// and cache: the same names out of one etcd, each server on a host of its own
// in one lab, asked in turn by dnsperf (A B B A). A server has one core and its
// client the other; the servers' processor time is counted. It prints tables
// for docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	bin, coredns string
	runs         int
	time         time.Duration
	names        int
	sizes        []int
	only, part   string
	load         string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && (args[0] == "write" || args[0] == "upstream") {
		return helper(ctx, args[0], stderr)
	}
	var o options
	fs := flag.NewFlagSet("dns", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.bin, "bin", "bin", "`folder` of the programs that are measured")
	fs.StringVar(&o.coredns, "coredns", "bin/coredns-test-peer", "CoreDNS's `program` (test/coredns.sh builds it)")
	fs.IntVar(&o.runs, "runs", 2, "`times` A B B A of each case")
	fs.DurationVar(&o.time, "time", 3*time.Second, "`length` of each run")
	fs.IntVar(&o.names, "names", 10_000, "`count` of names that are asked for, of three addresses each")
	fs.StringVar(&o.only, "only", "", "one of the `servers` flanneld, coredns; \"\": both")
	fs.StringVar(&o.part, "part", "", "one of the `parts` rates, memory; \"\": both")
	fs.StringVar(&o.load, "load", "", "measure the rates of loads only whose `name` contains this")
	large := fs.Bool("large", true, "also the memory for 100,000 names")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	o.sizes = []int{0, 1_000, 10_000}
	if *large {
		o.sizes = append(o.sizes, 100_000)
	}
	for _, p := range []string{"dnsperf", "taskset", "etcd", "etcdctl"} {
		if _, err := exec.LookPath(p); err != nil {
			fmt.Fprintf(stderr, "dns: needs %s: test/packages.sh test installs it\n", p)
			return 1
		}
	}
	if err := measure(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "dns:", err)
		return 1
	}
	return 0
}

// measure runs every part in one lab: flanneld on host1, CoreDNS on host2,
// etcd and the upstream of both in the switch.
func measure(ctx context.Context, o options, w io.Writer) (err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	coredns, err := filepath.Abs(o.coredns)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.Up(ctx, lab.Options{Name: "bench-dns", Hosts: 2, Programs: bin, Replace: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	b := &bench{options: o, lab: l, dir: dir, out: w}
	b.servers = b.both(filepath.Join(bin, "flanneld"), coredns)
	stop, err := b.upstream(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if o.part != "memory" {
		if err := b.rates(ctx); err != nil {
			return err
		}
	}
	if o.part != "rates" {
		return b.memory(ctx)
	}
	return nil
}
