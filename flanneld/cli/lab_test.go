package cli

import (
	"flag"
	"io"
	"slices"
	"strings"
	"testing"
)

func runLab(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = Lab(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestEveryLabCommandHasHelpWithAnExample(t *testing.T) {
	code, out, _ := runLab(t, "--help")
	if code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	listed := 0
	for line := range strings.Lines(out) {
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "  "), " ")
		if !ok || !strings.HasPrefix(line, "  ") || name == "flanneld" {
			continue
		}
		listed++
		code, help, errs := runLab(t, name, "--help")
		if code != exitOK || !strings.Contains(help, "\n  flanneld lab "+name) {
			t.Errorf("%s: exit code %d, help without an example:\n%s%s", name, code, help, errs)
		}
	}
	if listed != 11 {
		t.Errorf("%d commands are listed", listed)
	}
}

func TestLabUsageErrors(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":             nil,
		"unknown command":     {"start"},
		"no host":             {"exec"},
		"no container":        {"run", "host1"},
		"two before dashes":   {"exec", "host1", "ls", "--", "x"},
		"unknown flag":        {"up", "--host", "3"},
		"stray argument":      {"down", "lab"},
		"stop with a command": {"stop", "host1", "web", "--", "ls"},
		"unknown action":      {"daemon", "restart", "host1"},
		"two hosts":           {"plug", "host1", "host2"},
		"label without value": {"run", "host1", "web", "--label", "app"},
	} {
		if code, _, errs := runLab(t, args...); code != exitUsage || errs == "" {
			t.Errorf("%s: exit code %d, said %q", name, code, errs)
		}
	}
}

func TestMissingLabIsNamedWithTheRemedy(t *testing.T) {
	for _, args := range [][]string{{"show"}, {"exec", "host1"}, {"run", "host1", "web"}, {"stop", "host1", "web"}, {"unplug", "host1"}, {"daemon", "log", "host1"}} {
		code, _, errs := runLab(t, append(args, "--name", "no-such-lab")...)
		if code != exitFailure || !strings.Contains(errs, "flanneld lab up --name no-such-lab") {
			t.Errorf("%v: exit code %d, said %q", args, code, errs)
		}
	}
}

func TestOperandsAndCommand(t *testing.T) {
	for name, tt := range map[string]struct {
		args              []string
		operands, command []string
		labName           string
	}{
		"dashes":             {[]string{"h", "c", "--", "ls", "-l"}, []string{"h", "c"}, []string{"ls", "-l"}, "lab"},
		"no dashes":          {[]string{"h", "c", "ls", "-l", "--name"}, []string{"h", "c"}, []string{"ls", "-l", "--name"}, "lab"},
		"flags first":        {[]string{"-name", "x", "h", "c", "ls"}, []string{"h", "c"}, []string{"ls"}, "x"},
		"flags between":      {[]string{"h", "--name=x", "c", "ls"}, []string{"h", "c"}, []string{"ls"}, "x"},
		"flags last":         {[]string{"h", "c", "--name", "x"}, []string{"h", "c"}, nil, "x"},
		"dashes in command":  {[]string{"h", "c", "--", "a", "--", "b"}, []string{"h", "c"}, []string{"a", "--", "b"}, "lab"},
		"nothing after them": {[]string{"h", "c", "--"}, []string{"h", "c"}, nil, "lab"},
	} {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		labName := fs.String("name", "lab", "")
		operands, command, code, done := parseOperands(fs, tt.args, 2, io.Discard, io.Discard)
		if done || !slices.Equal(operands, tt.operands) || !slices.Equal(command, tt.command) || *labName != tt.labName {
			t.Errorf("%s: operands %q, command %q, lab %s, exit code %d", name, operands, command, *labName, code)
		}
	}
}
