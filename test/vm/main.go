// Command vm runs tests of this module in a VM under a stock Debian kernel,
// which has what the machine's own may lack:
//
//	go run ./test/vm ./backend/gre ./kernel/... -- -test.run Sync -test.v
//
// Tests are compiled here and run there as root, one package after the other,
// on the machine's own files; what they write is gone with the VM. CI is set
// for them. The exit code is 0 if all passed.
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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the command line.
type options struct {
	json    bool
	suite   bool
	console bool
	command string
	without string
	timeout time.Duration
	pkgs    []string
	args    []string // for the test programs
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintln(stderr, "usage: go run ./test/vm [flags] PACKAGE… [-- -test.run X …]")
		f.PrintDefaults()
	}
	f.BoolVar(&o.json, "json", false, "print what go test -json would, with the kernel in the packages' names")
	f.BoolVar(&o.suite, "suite", false, "of these packages run what the suite (test/vm/suite.go) lists, as make test does")
	f.BoolVar(&o.console, "console", false, "show what the VM's kernel says")
	f.StringVar(&o.command, "sh", "", "run this shell `command` in the VM instead of tests")
	f.StringVar(&o.without, "without", "", "kernel `modules` that shall be missing, with commas: nf_tables")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "of a VM as a whole; a package has half of it")
	if i := slices.Index(args, "--"); i >= 0 {
		args, o.args = args[:i], args[i+1:]
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.pkgs = f.Args()
	if len(o.pkgs) == 0 && o.command == "" {
		if !o.suite {
			f.Usage()
			return o, errors.New("no packages")
		}
		o.pkgs = []string{"./..."}
	}
	return o, nil
}

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(stderr, "vm:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := o.all(ctx, stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "vm:", err)
		return 2
	case !ok:
		return 1
	}
	return 0
}

// all runs a VM for each way of booting that is needed, and tells whether all
// is well.
func (o options) all(ctx context.Context, stdout, stderr io.Writer) (bool, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return false, err
	}
	cache := filepath.Join(root, "bin", "vm")
	dir, err := workspace(cache)
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	m := &machine{root: root, dir: dir, stdout: stdout, stderr: stderr, options: o}
	all, err := m.bootings(ctx)
	if err != nil {
		return false, err
	}
	if len(all) > 0 {
		if m.kernel, err = findKernel(ctx, cache, stderr); err == nil {
			err = m.buildGuest(ctx)
		}
		if err != nil {
			return false, err
		}
	}
	return m.lanes(ctx, all)
}

// lanes runs the VMs of each lane one after the other, the lanes at the same
// time.
func (m *machine) lanes(ctx context.Context, all []booting) (bool, error) {
	lanes := map[int][]booting{}
	for _, b := range all {
		lanes[b.lane] = append(lanes[b.lane], b)
	}
	var good atomic.Bool
	good.Store(!m.broken)
	g, ctx := errgroup.WithContext(ctx)
	for _, lane := range lanes {
		g.Go(func() error {
			for _, b := range lane {
				ok, err := m.run(ctx, b)
				if err != nil {
					return err
				}
				if !ok {
					good.Store(false)
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return good.Load(), err
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	mod := strings.TrimSpace(string(out))
	if err != nil || mod == "" || mod == os.DevNull {
		return "", fmt.Errorf("run this in a folder of the module: %w", err)
	}
	return filepath.Dir(mod), nil
}

// path is the search path with the folders that Debian's users do not have.
func path() string { return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin" }
