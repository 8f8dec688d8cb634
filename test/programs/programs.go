// Package programs finds the executables that tests run.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// reference is the release of the reference plugins that tests run.
const reference = "v1.9.1"

// Variable names the folder of flanneld, flanneld-bridge and flanneld-ipam.
// Without it they are built into bin/.
const Variable = "FLANNELD_TEST_PROGRAMS"

var build = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(Variable)
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
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

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(string(out)), nil
}

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

// Reference builds a plugin of github.com/containernetworking/plugins, such as
// "ipam/dhcp", and returns its path. It is built once, into bin/reference.
func Reference(tb testing.TB, name string) string {
	tb.Helper()
	root, err := moduleRoot()
	if err != nil {
		tb.Fatal(err)
	}
	dir := filepath.Join(root, "bin", "reference-"+reference)
	file := filepath.Join(dir, filepath.Base(name))
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := AsUser(dir, "env", "CGO_ENABLED=0", "GOBIN="+dir, "go", "install", "github.com/containernetworking/plugins/plugins/"+name+"@"+reference); err != nil {
		tb.Fatal(err)
	}
	return file
}

// AsUser runs a command in the module's folder that writes to dir and uses
// Go's caches: they must stay those of the user who called sudo.
func AsUser(dir string, argv ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && uid != 0 {
		if err := os.Chown(dir, uid, -1); err != nil {
			return err
		}
		argv = append([]string{"sudo", "-u", "#" + strconv.Itoa(uid), "-H", "env", "PATH=" + os.Getenv("PATH")}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
