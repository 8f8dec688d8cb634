// Package docs executes the commands of the documentation.
//
// A fenced block says where its commands run: "sh host2" on that host of a
// lab made for the file (hosts without daemons), "sh machine" on the machine
// itself. "background" lets it run until the file is through. "if PROGRAM"
// leaves it out where the program is not installed. Blocks that run on a
// host, and those that say "retry", are repeated for a while until they work,
// as a person would.
package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

const root = "../.."

// elsewhere are commands that other tests execute.
var elsewhere = map[string]string{
	"make demo": "test/e2e runs the demo",
	"make test": "this is it",
	"make lint": "CI runs it",
}

// block is a fenced block of a document.
type block struct {
	line   int
	info   []string // the words after the fence
	script string
}

// blocks returns the fenced blocks of a document.
func blocks(t *testing.T, text string) []block {
	t.Helper()
	var all []block
	var open *block
	n := 0
	for line := range strings.Lines(text) {
		n++
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			open = &block{line: n, info: strings.Fields(fence)}
		case isFence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.script += line
		}
	}
	if open != nil {
		t.Errorf("line %d: a fenced block does not end", open.line)
	}
	return all
}

// documents returns the files that people read, by path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = string(text)
		}
	}
	return all
}

func TestEveryCommandSaysWhereItRuns(t *testing.T) {
	for name, text := range documents(t) {
		for _, b := range blocks(t, text) {
			if len(b.info) == 0 {
				t.Errorf("%s:%d: say what the block is: sh, text, json, …", name, b.line)
				continue
			}
			if b.info[0] != "sh" || len(b.info) > 1 {
				continue
			}
			for command := range strings.Lines(b.script) {
				if command = strings.TrimSpace(command); elsewhere[command] == "" {
					t.Errorf("%s:%d: nobody executes %q: say on which host it runs", name, b.line, command)
				}
			}
		}
	}
}

func TestCommandsOfTheDocumentationWork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces")
	}
	for name, text := range documents(t) {
		bs := slices.DeleteFunc(blocks(t, text), func(b block) bool { return len(b.info) < 2 || b.info[0] != "sh" })
		if len(bs) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			p := newPages(t, bs)
			for _, b := range bs {
				p.execute(t, b)
			}
			p.stillRunning(t)
		})
	}
}

// pages is a document being executed.
type pages struct {
	bin        string
	lab        *lab.Lab // nil if all commands run on the machine
	background map[string]<-chan error
	output     map[string]*bytes.Buffer
}

func newPages(t *testing.T, bs []block) *pages {
	t.Helper()
	p := &pages{bin: programs.Dir(t), background: map[string]<-chan error{}, output: map[string]*bytes.Buffer{}}
	t.Cleanup(func() { // the lab of commands that did not get to its end
		if err := lab.Remove(context.Background(), "docs"); err != nil {
			t.Error(err)
		}
	})
	if !slices.ContainsFunc(bs, func(b block) bool { return strings.HasPrefix(b.info[1], "host") }) {
		return p
	}
	var err error
	p.lab, err = lab.Up(t.Context(), lab.Options{Name: fmt.Sprintf("docs-%d-%x", os.Getpid(), rand.Uint32()), Programs: p.bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.lab.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// script is the block as a shell runs it: our programs are found, and sudo is
// nothing to root.
func (p *pages) script(b block) string {
	return fmt.Sprintf("PATH=%s:$PATH; sudo() { \"$@\"; }; set -e\n%s", p.bin, b.script)
}

func (p *pages) execute(t *testing.T, b block) {
	t.Helper()
	if i := slices.Index(b.info, "if"); i >= 0 {
		if _, err := exec.LookPath(b.info[i+1]); err != nil {
			t.Logf("line %d is left out: %v", b.line, err)
			return
		}
	}
	if slices.Contains(b.info, "background") {
		p.start(t, b)
		return
	}
	const patience = 30 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		out, err := p.run(t, b)
		if err == nil {
			return
		}
		if b.info[1] == "machine" && !slices.Contains(b.info, "retry") || time.Now().After(deadline) {
			p.stillRunning(t)
			t.Fatalf("line %d: %v\n%s%s", b.line, err, b.script, out)
		}
	}
}

func (p *pages) run(t *testing.T, b block) (string, error) {
	t.Helper()
	const patience = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if b.info[1] == "machine" {
		out, err := exec.CommandContext(ctx, "sh", "-c", p.script(b)).CombinedOutput()
		return string(out), err
	}
	h, err := p.lab.Host(b.info[1])
	if err != nil {
		return "", err
	}
	out, err := h.Command(ctx, "sh", "-c", p.script(b)).CombinedOutput()
	return string(out), err
}

// start runs a block in the background, when what it reads is there.
func (p *pages) start(t *testing.T, b block) {
	t.Helper()
	h, err := p.lab.Host(b.info[1])
	if err != nil {
		t.Fatalf("line %d: %v", b.line, err)
	}
	for _, file := range []string{"/run/flannel/subnet.env", "/run/flannel/dns.env"} {
		if !strings.Contains(b.script, file) {
			continue
		}
		wait := b
		wait.info = b.info[:2]
		wait.script = "cat " + file + "\n"
		p.execute(t, wait)
	}
	name := fmt.Sprintf("line %d on %s", b.line, b.info[1])
	cmd := h.Command(context.WithoutCancel(t.Context()), "sh", "-c", p.script(b))
	p.output[name] = &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = p.output[name], p.output[name]
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.background[name] = ended
}

// stillRunning fails the test if something in the background ended.
func (p *pages) stillRunning(t *testing.T) {
	t.Helper()
	if len(p.background) > 0 {
		time.Sleep(500 * time.Millisecond) // what cannot run ends at once
	}
	for name, ended := range p.background {
		select {
		case err := <-ended:
			t.Errorf("%s ended: %v\n%s", name, errors.Join(err), p.output[name])
		default:
		}
	}
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
