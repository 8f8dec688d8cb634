package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service/manifest"
)

// applyCmd is "flanneld apply".
func applyCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return applyWith(ctx, api.NewClient(api.Socket), os.Stdin, args, stdout, stderr)
}

func applyWith(ctx context.Context, c *api.Client, stdin io.Reader, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("apply", "-f FILE [--dry-run]", `Make the services of a file, or make them as the file says. It is YAML or JSON, with a service in each document:

  kind: Service
  name: frontend
  port: [http=80:8888, metrics=9000]
  selector: {app: sample}

The fields are named as the flags of flanneld service create, and so are their values. Kubernetes' Service and List of v1 are
understood as far as they have something here; what is ignored is named. All is checked before the first service is written.`,
		"flanneld apply -f services.yaml",
		"flanneld apply -f services.yaml --dry-run",
		"flanneld apply -f - < kubernetes/frontend.json")
	path := fs.String("f", "", "`FILE` with services, - for standard input")
	dry := fs.Bool("dry-run", false, "only say what would change, and what would be refused")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	if *path == "" {
		return usageErr(stderr, fs, errors.New("say which file: -f FILE, or -f - for standard input"))
	}
	text, err := readFile(*path, stdin)
	if err != nil {
		fmt.Fprintln(stderr, "flanneld:", err)
		return exitFailure
	}
	a := applier{client: c, stdout: stdout, stderr: stderr, name: *path, noted: map[string]bool{}}
	if a.name == "-" {
		a.name = "standard input"
	}
	file, errs := manifest.Parse(text)
	for _, note := range file.Ignored {
		fmt.Fprintf(stderr, "%s: %v\n", a.name, note)
	}
	for _, e := range errs {
		fmt.Fprintf(stderr, "%s: %v\n", a.name, e)
	}
	if len(errs) > 0 {
		fmt.Fprintln(stderr, "flanneld: nothing was changed")
		return exitUsage
	}
	return a.apply(ctx, file, *dry)
}

func readFile(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		text, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return text, nil
	}
	text, err := os.ReadFile(path) // its errors name the file
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("%s is a directory: give a file, or - for standard input", path)
	}
	return text, err
}

// applier applies one file.
type applier struct {
	client         *api.Client
	stdout, stderr io.Writer
	name           string // of the file
	noted          map[string]bool
}

// apply asks first what would become of each service, and makes them if all of
// them can be made.
func (a applier) apply(ctx context.Context, file manifest.File, dry bool) int {
	report := func(api.Change) {}
	if dry {
		report = func(ch api.Change) { a.report(ch, "would be ") }
	}
	code := a.each(ctx, file, true, report)
	if code != exitOK {
		fmt.Fprintln(a.stderr, "flanneld: nothing was changed")
	}
	if code != exitOK || dry {
		return code
	}
	return a.each(ctx, file, false, func(ch api.Change) { a.report(ch, "") })
}

// each replaces every service; one that is refused does not keep the others
// from it, but an error that all of them would meet does.
func (a applier) each(ctx context.Context, file manifest.File, dry bool, report func(api.Change)) int {
	code := exitOK
	for _, p := range file.Services {
		w := server.Wire(p.Service)
		w.Version = "" // of whatever is there
		ch, err := a.client.ReplaceService(ctx, w, dry)
		if err == nil {
			note := fmt.Sprintf("%s: line %d: service %s: %s", a.name, p.Line, p.Service.Name, ch.Note)
			if report(ch); ch.Note != "" && !a.noted[note] {
				fmt.Fprintln(a.stderr, note)
				a.noted[note] = true
			}
			continue
		}
		e, ok := errors.AsType[*api.Error](err)
		if !ok || e.Status == http.StatusServiceUnavailable {
			return refused(a.stderr, err)
		}
		line, field := p.Place(e.Field)
		said := e.Message
		if rest, ok := strings.CutPrefix(said, e.Field); ok && field != "" {
			said = field + rest
		}
		fmt.Fprintf(a.stderr, "%s: line %d: service %s: %s\n", a.name, line, p.Service.Name, said)
		if code = max(code, exitFailure); e.Status == http.StatusBadRequest {
			code = exitUsage
		}
	}
	return code
}

func (a applier) report(ch api.Change, would string) {
	switch {
	case ch.Created:
		fmt.Fprintf(a.stdout, "%s %screated\n", standsFor(ch), would)
	case ch.Changed:
		fmt.Fprintf(a.stdout, "%s %schanged (%s)\n", standsFor(ch), would, cmp.Or(strings.Join(ch.Fields, ", "), "all"))
	default:
		fmt.Fprintf(a.stdout, "%s unchanged\n", standsFor(ch))
	}
}
