// Package programs finds the executables that tests run.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Variable names the folder of flanneld, flanneld-bridge and flanneld-ipam.
// Without it they are built into bin/.
const Variable = "FLANNELD_TEST_PROGRAMS"

var build = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(Variable)
	if dir == "" {
		out, err := exec.Command("go", "env", "GOMOD").Output()
		if err != nil {
			return "", fmt.Errorf("go env GOMOD: %w", err)
		}
		root := filepath.Dir(string(out))
		dir = filepath.Join(root, "bin")
		// Root would spoil the caches of the user whose go command runs this.
		if os.Getenv("SUDO_USER") == "" {
			if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
				return "", fmt.Errorf("make build: %w\n%s", err, out)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "flanneld")); err != nil {
		return "", fmt.Errorf("%w: make build makes it", err)
	}
	return dir, nil
})

// Dir is the folder with the executables, an absolute path; they are built
// once if nobody said where they are.
func Dir(tb testing.TB) string {
	tb.Helper()
	dir, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}
