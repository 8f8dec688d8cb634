// Command run runs all tests of this module, quick ones first, as "make test"
// does: it prints failures in full and each package in a line, then what was
// skipped and what tests left behind on the machine, and ends with a line
// "N passed, N failed, N skipped".
//
// With CI set, a skipped test is a failure, unless it passed under another
// kernel (test/vm runs some again under Debian's) or test/skips.txt excuses it.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/test/programs"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

// stage is one call of "go test", or of test/vm, which talks like it.
type stage struct {
	name string
	args []string
	vm   bool
	// asUser: runs the go command itself, which root must not do in the
	// user's caches.
	asUser bool
}

// stages are in the order of how soon they tell that something is wrong.
// Those after the first need root and share two cores with programs that
// measure time, so packages run one after the other.
func stages(pkgs []string) []stage {
	var unit, late []string
	for _, p := range pkgs {
		switch name := p[strings.Index(p, "flanneld/flanneld")+len("flanneld/flanneld"):]; {
		case name == "/test/arch":
		case strings.HasPrefix(name, "/test/bench"), strings.HasPrefix(name, "/test/tools"):
		case strings.HasPrefix(name, "/test/e2e"), strings.HasPrefix(name, "/test/engines"), strings.HasPrefix(name, "/test/docs"), name == "/lab":
			late = append(late, p)
		default:
			unit = append(unit, p)
		}
	}
	all := []stage{
		{name: "architecture", args: []string{"./test/arch"}, asUser: true},
		{name: "unit, contract and kernel", args: append([]string{"-race", "-timeout=15m"}, unit...)},
		{name: "kernel of Debian, in a VM", args: pkgs, vm: true, asUser: true},
	}
	if len(late) > 0 {
		all = append(all, stage{name: "lab, engines and documentation", args: append([]string{"-count=1", "-p=1", "-timeout=20m"}, late...)})
	}
	return all
}

func run(args []string, out io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	res := &results{out: out, ci: os.Getenv("CI") != "", excused: map[string]string{}}
	// What make found wrong before (lint in CI) is in the count.
	for name := range strings.FieldsSeq(os.Getenv("FAILED_BEFORE")) {
		res.fail(name, "failed before the tests")
	}
	if len(args) == 0 {
		args = []string{"./..."}
	}
	err := res.readExcuses("test/skips.txt")
	if err == nil {
		err = res.runAll(ctx, args)
	}
	if err != nil {
		fmt.Fprintln(out, err)
		return 2
	}
	if ctx.Err() != nil {
		res.fail("interrupted", "the run did not end")
	}
	fmt.Fprintf(out, "\nin %s\n", time.Since(start).Round(time.Second))
	summary := res.finish()
	// For .ci/run, whose last line it is, whatever make says after us.
	if err := os.WriteFile(filepath.Join("bin", "test-summary.txt"), []byte(summary+"\n"), 0o644); err != nil {
		fmt.Fprintln(out, err)
		return 2
	}
	fmt.Fprintln(out, summary)
	if res.failed > 0 {
		return 1
	}
	return 0
}

// runAll runs the tests of these packages, between two looks at the machine.
func (r *results) runAll(ctx context.Context, patterns []string) error {
	pkgs, err := exec.CommandContext(ctx, "go", append([]string{"list"}, patterns...)...).Output()
	if err != nil {
		return fmt.Errorf("go list: %s", describe(err))
	}
	if os.Geteuid() != 0 { // ask for the password now, while this has the terminal
		sudo := exec.CommandContext(ctx, "sudo", "-v")
		sudo.Stdin, sudo.Stdout, sudo.Stderr = os.Stdin, r.out, r.out
		if err := sudo.Run(); err != nil {
			return fmt.Errorf("sudo -v: %w: most tests need root", err)
		}
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "ft-") // short: sockets are made in it
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	marker := "FLANNELD_TEST_RUN=" + rand.Text()
	env := []string{marker, "TMPDIR=" + tmp, programs.Variable + "=" + filepath.Join(here, "bin")}
	before := look(marker, tmp)
	for _, s := range stages(strings.Fields(string(pkgs))) {
		if ctx.Err() != nil {
			break
		}
		began := time.Now()
		fmt.Fprintf(r.out, "=== %s\n", s.name)
		r.runStage(ctx, s, env)
		fmt.Fprintf(r.out, "=== %s: %s\n", s.name, time.Since(began).Round(100*time.Millisecond))
	}
	r.reportLeftovers(settle(before, marker, tmp))
	orphans, err := removeOrphans(filepath.Join("bin", "flanneld"))
	for _, name := range orphans {
		r.fail("leftover lab "+name, "the process that made it is gone, removed now")
	}
	return err
}

// runStage runs go and feeds what it says to the results.
func (r *results) runStage(ctx context.Context, s stage, env []string) {
	args := []string{"test", "-json"}
	if s.vm {
		args = []string{"run", "./test/vm", "-json", "-suite"}
	}
	if os.Geteuid() != 0 && !s.asUser {
		// Compile as this user, run as root: the caches stay this user's.
		args = append(args, fmt.Sprintf("-exec=sudo -E env PATH=%s %s", os.Getenv("PATH"), strings.Join(env, " ")))
	}
	cmd := exec.CommandContext(ctx, "go", append(args, s.args...)...)
	cmd.Env = append(os.Environ(), env...)
	// The whole group hears of an interruption, test programs included.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 15 * time.Second
	events, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = r.out
		err = cmd.Start()
	}
	if err != nil {
		r.fail(s.name, describe(err))
		return
	}
	failed := r.failed
	r.read(events)
	if err := cmd.Wait(); err != nil && r.failed == failed {
		r.fail(s.name, describe(err))
	}
}

// reportLeftovers removes what is certainly the tests'. What somebody else on
// this machine may have made meanwhile is only told, except in CI, where there
// is nobody else.
func (r *results) reportLeftovers(all []leftover) {
	for _, left := range all {
		switch {
		case left.remove != nil:
			r.fail("leftover "+left.what, "still there after the tests, removed now")
			if err := left.remove(); err != nil {
				fmt.Fprintf(r.out, "remove %s: %v\n", left.what, err)
			}
		case r.ci:
			r.fail("leftover "+left.what, "still there after the tests")
		default:
			fmt.Fprintf(r.out, "note: %s was not there before the tests\n", left.what)
		}
	}
}

// describe adds what a program said to its exit code.
func describe(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return strings.TrimSpace(cmp.Or(string(exit.Stderr), err.Error()))
	}
	return err.Error()
}
