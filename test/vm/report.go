package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/flanneld/flanneld/test/vm/plan"
)

// report tells what a VM's steps say, for people or as "go test -json".
type report struct {
	*machine
	booting
	began  time.Time
	where  string // the kernel, as it stands behind the packages' names
	said   [][]byte
	ended  []bool
	failed bool
	told   bool // what is wrong with the VM, as a package's output
}

func newReport(m *machine, b booting) *report {
	return &report{
		machine: m, booting: b, began: time.Now(), where: "(VM)",
		said: make([][]byte, len(b.steps)), ended: make([]bool, len(b.steps)),
	}
}

func (r *report) take(a plan.Answer) {
	switch {
	case a.Kernel != "":
		r.where = "(Linux " + a.Kernel
		if r.without != "" {
			r.where += " without " + r.without
		}
		r.where += ")"
		fmt.Fprintf(r.stderr, "a VM runs %s after %s\n", r.where, time.Since(r.began).Round(100*time.Millisecond))
	case a.Trouble != "":
		fmt.Fprintln(r.stderr, "VM:", a.Trouble)
		r.failed = true
	case a.Output != nil:
		if !r.json && !r.suite {
			_, _ = r.stdout.Write(a.Output) // as a program's own output: there is nobody to tell
			return
		}
		r.said[a.Step] = append(r.said[a.Step], a.Output...)
	case a.Ended:
		r.end(a.Step, a.Code, a.Took)
	}
}

// end reports a step as a whole.
func (r *report) end(number, code int, took time.Duration) {
	r.ended[number] = true
	r.failed = r.failed || code != 0
	s := r.steps[number]
	verdict := "ok  "
	if code != 0 {
		verdict = "FAIL"
	}
	switch {
	case s.pkg == "":
	case r.json:
		if err := events(r.stdout, s.pkg+" "+r.where, r.said[number], code, took); err != nil {
			fmt.Fprintln(r.stderr, "vm:", err)
			r.failed = true
		}
	default:
		fmt.Fprintf(r.stdout, "%s%s  %s %s %.1f s\n", r.said[number], verdict, s.pkg, r.where, took.Seconds())
	}
	r.said[number] = nil
}

// finish reports packages that the VM did not end, with why, and tells whether
// all is well. The error is what nobody was told yet.
func (r *report) finish(trouble error) (bool, error) {
	if trouble == nil {
		return !r.failed, nil
	}
	for i, ended := range r.ended {
		if ended || r.steps[i].pkg == "" {
			continue
		}
		r.take(plan.Answer{Step: i, Output: fmt.Appendf(nil, "\n%v\n", trouble)})
		r.end(i, -1, 0)
		trouble = errors.New("not run: the VM ended before")
		r.told = true
	}
	if r.told {
		return false, nil
	}
	return false, trouble
}

// events writes a package's output as "go test -json" would, at once: another
// VM may be writing too.
func events(to io.Writer, pkg string, said []byte, code int, took time.Duration) error {
	cmd := exec.Command("go", "tool", "test2json", "-t", "-p", pkg)
	cmd.Stdin = bytes.NewReader(said)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go tool test2json: %w\n%s", err, complaint.Bytes())
	}
	var all bytes.Buffer
	for line := range bytes.Lines(text) {
		var e struct{ Action, Test string }
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("go tool test2json said %q: %w", line, err)
		}
		// How the package ended is known better here.
		if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			continue
		}
		all.Write(line)
	}
	action := "pass"
	if code != 0 {
		action = "fail"
	}
	last := json.NewEncoder(&all).Encode(struct {
		Action, Package string
		Elapsed         float64
	}{action, pkg, took.Seconds()})
	_, err = to.Write(all.Bytes())
	return errors.Join(last, err)
}
