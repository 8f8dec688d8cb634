package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/programs"
)

func demo(t *testing.T, ctx context.Context, flags ...string) (cmd *exec.Cmd, out *bytes.Buffer, name string) {
	t.Helper()
	name = labName()
	t.Cleanup(func() {
		if err := lab.Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	out = &bytes.Buffer{}
	cmd = exec.CommandContext(ctx, filepath.Join(programs.Dir(t), "flanneld"), append([]string{"lab", "demo", "--name", name}, flags...)...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out, name
}

func gone(t *testing.T, name string) {
	t.Helper()
	names, err := lab.List()
	if err != nil {
		t.Error(err)
	}
	for _, n := range names {
		if n == name {
			t.Errorf("lab %s is left", name)
		}
	}
}

func TestDemoOnce(t *testing.T) {
	start := time.Now()
	cmd, out, name := demo(t, t.Context(), "--once")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("took %s\n%s", time.Since(start).Round(10*time.Millisecond), out)
	if time.Since(start) > 30*time.Second {
		t.Error("took longer than 30 s")
	}
	for _, want := range []string{"host1", "host2", "host3", "192.168.77.11", "10.1.", "to c3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	gone(t, name)
}

// Interrupted or killed at any time, and started again.
func TestInterruptedDemoLeavesNothing(t *testing.T) {
	for _, after := range []time.Duration{5, 50, 200, 500, 1000, 2000} {
		cmd, out, name := demo(t, t.Context())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		// Within the first moments the signal may come before the program.
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 1 && after > 100 {
			t.Errorf("after %d ms: %v\n%s", after, err, out)
		}
		gone(t, name)
	}
	cmd, _, _ := demo(t, t.Context())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond)
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	cmd, out, name := demo(t, t.Context(), "--once")
	if err := cmd.Run(); err != nil {
		t.Errorf("after a killed demo: %v\n%s", err, out)
	}
	gone(t, name)
}
