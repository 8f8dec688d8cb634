package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Stop stops a process, as one that hangs, and returns once none of its
// threads runs: until then it may answer.
func Stop(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for running := true; running; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("process %d: %d threads, %v", pid, len(threads), err)
		}
		running = false
		for _, file := range threads {
			line, err := os.ReadFile(file)
			running = running || err == nil && !strings.Contains(string(line), ") T ")
		}
	}
}
