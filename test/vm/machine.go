package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/test/programs"
	"github.com/flanneld/flanneld/test/vm/plan"
)

// machine is what all VMs of a run share.
type machine struct {
	options
	root, dir      string // of the module; of this run
	kernel         kernel
	guest          string
	stdout, stderr io.Writer
	broken         bool // something does not compile
}

// load are the modules that nothing asks for by itself when it is needed.
var load = []string{"br_netfilter", "tun", "loop", "fuse"}

// booting is a VM to be.
type booting struct {
	lane    int
	without string
	steps   []step
}

// step is what the guest runs, and what it is called here.
type step struct {
	plan.Step
	pkg string // "" for a command
}

// buildGuest compiles the VM's first process.
func (m *machine) buildGuest(ctx context.Context) error {
	m.guest = filepath.Join(m.dir, "guest")
	return m.compile(ctx, "build", "-o", m.guest, "./test/vm/guest")
}

// compile runs go without cgo: the result runs anywhere, and make build has
// compiled most of it already.
func (m *machine) compile(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = m.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// goPackage is what go list tells.
type goPackage struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func (m *machine) list(ctx context.Context) ([]goPackage, error) {
	// Patterns are relative to where the caller is.
	text, err := output(ctx, ".", append([]string{"go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, m.pkgs...)...)
	if err != nil {
		return nil, err
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
			all = append(all, p)
		}
	}
}

// bootings compiles what is to be run and says in which VM.
func (m *machine) bootings(ctx context.Context) ([]booting, error) {
	if m.command != "" {
		s := step{Step: plan.Step{Dir: m.root, Argv: []string{"/bin/sh", "-c", m.command}, Timeout: m.timeout}}
		return []booting{{without: m.without, steps: []step{s}}}, nil
	}
	pkgs, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	entries := []entry{{pkg: "...", without: m.without}}
	if m.suite {
		entries = suite()
	}
	var all []booting
	for _, e := range entries {
		for _, p := range pkgs {
			if !e.has(p.ImportPath) {
				continue
			}
			s, err := m.prepare(ctx, p, e)
			if err != nil {
				if err := m.uncompiled(p, err); err != nil {
					return nil, err
				}
				continue
			}
			i := slices.IndexFunc(all, func(b booting) bool { return b.lane == e.lane && b.without == e.without })
			if i < 0 {
				i = len(all)
				all = append(all, booting{lane: e.lane, without: e.without})
			}
			all[i].steps = append(all[i].steps, s)
		}
	}
	return all, nil
}

const module = "github.com/flanneld/flanneld/"

// has tells whether a package is the entry's.
func (e entry) has(importPath string) bool {
	if e.pkg == "..." {
		return true
	}
	name := strings.TrimPrefix(importPath, module)
	above, deep := strings.CutSuffix(e.pkg, "/...")
	return name == above || deep && strings.HasPrefix(name, above+"/")
}

// uncompiled reports a package whose tests do not compile; the others run.
func (m *machine) uncompiled(p goPackage, why error) error {
	m.broken = true
	if m.json {
		return events(m.stdout, p.ImportPath+" (VM)", []byte(why.Error()+"\n"), 1, 0)
	}
	_, err := fmt.Fprintf(m.stdout, "%v\nFAIL  %s\n", why, p.ImportPath)
	return err
}

// prepare compiles a package's tests, once.
func (m *machine) prepare(ctx context.Context, p goPackage, e entry) (step, error) {
	program := filepath.Join(m.dir, strings.ReplaceAll(strings.TrimPrefix(p.ImportPath, module), "/", "_")+".test")
	if _, err := os.Stat(program); err != nil {
		if err := m.compile(ctx, "test", "-c", "-o", program, p.ImportPath); err != nil {
			return step{}, err
		}
	}
	limit := m.timeout / 2
	argv := []string{program, "-test.paniconexit0", "-test.timeout=" + limit.String()}
	if m.json {
		argv = append(argv, "-test.v=test2json")
	}
	if e.tests != "" {
		argv = append(argv, "-test.run="+e.tests)
	}
	if e.skip != "" {
		argv = append(argv, "-test.skip="+e.skip)
	}
	// The program's own limit tells more, so it goes first.
	return step{plan.Step{Dir: p.Dir, Argv: append(argv, m.args...), Timeout: limit + 20*time.Second}, p.ImportPath}, nil
}

// env is of the steps: this process's own, where the guest has the same.
func (m *machine) env() []string {
	return []string{
		"PATH=" + path(), "HOME=/root", "USER=root", "TMPDIR=/tmp", "LANG=C", "CI=true",
		programs.Variable + "=" + cmp.Or(os.Getenv(programs.Variable), filepath.Join(m.root, "bin")),
	}
}

// run runs a VM and reports what its steps say.
func (m *machine) run(ctx context.Context, b booting) (bool, error) {
	p := plan.Plan{Tree: m.kernel.tree(), Keep: m.root, Load: load, Env: m.env()}
	if b.without != "" {
		p.Without = strings.Split(b.without, ",")
	}
	for _, s := range b.steps {
		p.Steps = append(p.Steps, s.Step)
	}
	initramfs := filepath.Join(m.dir, fmt.Sprintf("initramfs-%d-%s", b.lane, b.without))
	if err := writeInitramfs(ctx, initramfs, m.kernel, m.guest, p); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout, fmt.Errorf("its %s are over", m.timeout))
	defer cancel()
	console := io.Discard
	if m.console {
		console = m.stderr
	}
	const tries, patience = 3, 90 * time.Second
	for i := 1; ; i++ {
		r := newReport(m, b)
		err := boot(ctx, m.kernel, initramfs, patience, console, r.take)
		if errors.Is(err, errSilent) && i < tries {
			fmt.Fprintln(m.stderr, err)
			continue
		}
		return r.finish(err)
	}
}
