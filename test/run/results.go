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
}

// progress is a package whose tests are running.
type progress struct {
	output  map[string]*strings.Builder // by top-level test; "" is the package's own
	bad     map[string]bool             // top-level tests that failed
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

func (r *results) take(e event) {
	if strings.HasPrefix(e.Action, "build-") {
		fmt.Fprint(r.out, e.Output)
		return
	}
	p := r.pkgs[e.Package]
	if p == nil {
		p = &progress{output: map[string]*strings.Builder{}, bad: map[string]bool{}, why: map[string]string{}}
		r.pkgs[e.Package] = p
	}
	top, _, _ := strings.Cut(e.Test, "/")
	name := short(e.Package) + "/" + e.Test
	switch {
	case e.Action == "output":
		p.print(top, e)
	case e.Test == "":
		r.endPackage(e, p)
	case e.Action == "pass":
		r.passed++
		p.passed++
	case e.Action == "fail":
		r.failed++
		p.failed++
		p.bad[top] = true
		r.failures = append(r.failures, name)
	case e.Action == "skip":
		r.skip(name, p.why[e.Test])
		p.skipped++
	}
}

// skip counts a skipped test; where nothing may be skipped in silence it is a
// failure as well.
func (r *results) skip(name, why string) {
	r.skipped++
	reason, excused := r.excused[name]
	switch {
	case excused:
		r.skips = append(r.skips, fmt.Sprintf("%s: %s (excused: %s)", name, why, reason))
	case r.ci:
		r.fail(name, "skipped, and test/skips.txt does not excuse it: "+why)
	default:
		r.skips = append(r.skips, name+": "+why)
	}
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
		for _, top := range slices.Sorted(maps.Keys(p.bad)) {
			fmt.Fprint(r.out, p.output[top])
		}
		if p.failed == 0 { // did not compile, or ended outside of a test
			if own := p.output[""]; own != nil {
				fmt.Fprint(r.out, own)
			}
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
