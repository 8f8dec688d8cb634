package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

// What the help of flanneld lab tells people to type.
func TestLabCommandLine(t *testing.T) {
	name := labName()
	t.Cleanup(func() {
		if err := lab.Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	try := func(args ...string) (string, error) {
		args = append([]string{"lab", args[0], "--name", name}, args[1:]...)
		out, err := exec.CommandContext(t.Context(), filepath.Join(programs.Dir(t), "flanneld"), args...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	do := func(want string, args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("flanneld lab %v: %v, looked for %q in\n%s", args, err, want, out)
		}
		return out
	}
	do("host2", "up", "--hosts", "2")
	if out, err := try("up"); err == nil || !strings.Contains(out, "exists already") {
		t.Errorf("a second up: %v\n%s", err, out)
	}
	addr := strings.Fields(do("10.1.", "run", "-d", "host1", "web", "--", "sleep", "1000"))[0]
	do(addr, "show")
	do(" 0% packet loss", "run", "host2", "client", "--", "ping", "-c", "3", "-i", "0.1", addr)
	do("verdict", "exec", "host2", "--", "flanneld", "status", "-o", "json")
	do(addr, "exec", "host1/web", "--", "ip", "address")
	do("", "daemon", "kill", "host2")
	do("", "daemon", "start", "host2")
	do("network ready", "daemon", "log", "host2")
	do("", "unplug", "host2")
	do("", "plug", "host2")
	do("", "stop", "host1", "web")
	if out := do("host1", "show"); strings.Contains(out, "web") || strings.Contains(out, "client") {
		t.Errorf("a container is left:\n%s", out)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs.Dir(t), "flanneld"), "lab", "run", "--name", name, "host1", "x", "--", "sh", "-c", "exit 42")
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 42 {
		t.Errorf("exit code of a command: %v\n%s", err, out)
	}
	do("", "down")
	do("", "down")
	gone(t, name)
}
