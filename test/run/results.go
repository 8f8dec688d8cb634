package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is a line of "go test -json".
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
	Elapsed    float64
}

// results counts tests and shows what people need to see of them.
type results struct {
	out     io.Writer
	ci      bool
	excused map[string]string // package/Test → why it may be skipped

	passed, failed, skipped int
	failures, skips         []string

	pkgs map[string]*progress

	ran      map[string]bool // tests that passed somewhere, without where
	skipping []skip          // whose excuse may still come
}

// skip is a test that was skipped.
type skip struct{ name, where, why string }

// progress is a package whose tests are running.
type progress struct {
	output  map[string]*strings.Builder // by top-level test that did not pass; "" is the package's own
	why     map[string]string           // the last line of a test's own output: a skip's reason
	failed  int
	skipped int
	passed  int
}

const module = "github.com/flanneld/flanneld/"

// readExcuses reads lines "package/Test reason"; a missing file has none.
func (r *results) readExcuses(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, " ")
		if !ok {
			return fmt.Errorf("%s: %q has no reason", path, line)
		}
		r.excused[name] = strings.TrimSpace(reason)
	}
	return nil
}

// fail counts something that is no test of a package.
func (r *results) fail(name, why string) {
	r.failed++
	r.failures = append(r.failures, name+": "+why)
	fmt.Fprintf(r.out, "FAIL  %s: %s\n", name, why)
}

// read consumes the output of "go test -json" until it ends.
func (r *results) read(events io.Reader) {
	r.pkgs = map[string]*progress{}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil {
				r.take(e)
			} else {
				fmt.Fprint(r.out, line)
			}
		}
		if err != nil {
			break
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		r.fail(short(name), "did not end")
	}
}

func short(pkg string) string { return strings.TrimPrefix(pkg, module) }

// place cuts a package into what it is and where it ran: "kernel/link" and
// " (Linux 6.1.0)", which test/vm adds; "" is this machine.
func place(pkg string) (name, where string) {
	name, kernel, ok := strings.Cut(short(pkg), " ")
	if ok {
		where = " " + kernel
	}
	return name, where
}

func (r *results) take(e event) {
	if strings.HasPrefix(e.Action, "build-") {
		fmt.Fprint(r.out, e.Output)
		return
	}
	p := r.pkgs[e.Package]
	if p == nil {
		p = &progress{output: map[string]*strings.Builder{}, why: map[string]string{}}
		r.pkgs[e.Package] = p
	}
	top, _, _ := strings.Cut(e.Test, "/")
	pkg, where := place(e.Package)
	name := pkg + "/" + e.Test
	switch {
	case e.Action == "output":
		p.print(top, e)
	case e.Test == "":
		r.endPackage(e, p)
	case e.Action == "pass":
		r.passed++
		p.passed++
		if r.ran == nil {
			r.ran = map[string]bool{}
		}
		r.ran[name] = true
		p.forget(e.Test)
	case e.Action == "fail":
		r.failed++
		p.failed++
		r.failures = append(r.failures, name+where)
	case e.Action == "skip":
		r.skipping = append(r.skipping, skip{name, where, p.why[e.Test]})
		p.skipped++
		p.forget(e.Test)
	}
}

// settleSkips counts the skipped tests. One that passed under another kernel
// has run, so nobody needs to know. Where nothing may be skipped in silence
// the others are failures as well.
func (r *results) settleSkips() {
	for _, s := range r.skipping {
		if r.ran[s.name] {
			continue
		}
		r.skipped++
		reason, excused := r.excused[s.name]
		switch {
		case excused:
			r.skips = append(r.skips, fmt.Sprintf("%s%s: %s (excused: %s)", s.name, s.where, s.why, reason))
		case r.ci:
			r.fail(s.name+s.where, "skipped, passed nowhere, and test/skips.txt does not excuse it: "+s.why)
		default:
			r.skips = append(r.skips, s.name+s.where+": "+s.why)
		}
	}
	r.skipping = nil
}

// forget drops what a top-level test that did not fail has said.
func (p *progress) forget(test string) {
	delete(p.output, test)
}

func (p *progress) print(top string, e event) {
	if strings.HasPrefix(e.Output, "=== ") { // RUN, PAUSE, CONT: of no interest once it ended
		return
	}
	b := p.output[top]
	if b == nil {
		b = &strings.Builder{}
		p.output[top] = b
	}
	b.WriteString(e.Output)
	if text := strings.TrimSpace(e.Output); text != "" && !strings.HasPrefix(text, "---") && !strings.HasPrefix(text, "===") {
		p.why[e.Test] = text
	}
}

// endPackage shows a package in a line, with all that its failed tests said.
func (r *results) endPackage(e event, p *progress) {
	switch e.Action {
	case "start":
		return
	case "fail":
		if p.failed > 0 {
			delete(p.output, "")
		} // else it did not compile, or ended outside of a test or within one
		for _, top := range slices.Sorted(maps.Keys(p.output)) {
			fmt.Fprint(r.out, p.output[top])
		}
		if p.failed == 0 {
			r.fail(short(e.Package), "the package failed as a whole")
		}
		fmt.Fprintf(r.out, "FAIL  %s %.1f s (%s)\n", short(e.Package), e.Elapsed, counts(p.passed, p.failed, p.skipped))
	case "pass":
		fmt.Fprintf(r.out, "ok    %s %.1f s (%s)\n", short(e.Package), e.Elapsed, counts(p.passed, p.failed, p.skipped))
	case "skip": // no test files
	default:
		return
	}
	delete(r.pkgs, e.Package)
}

func counts(passed, failed, skipped int) string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", passed, failed, skipped)
}

// finish lists what did not pass and returns the closing line.
func (r *results) finish() string {
	r.settleSkips()
	list := func(title string, names []string) {
		if len(names) == 0 {
			return
		}
		fmt.Fprintf(r.out, "%s:\n", title)
		for _, n := range names {
			fmt.Fprintf(r.out, "  %s\n", n)
		}
	}
	list("skipped", r.skips)
	list("failed", r.failures)
	return counts(r.passed, r.failed, r.skipped)
}
