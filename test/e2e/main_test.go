package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/flanneld/flanneld/lab"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			fmt.Println("test/e2e needs root")
			return 1
		}
		fmt.Println("skipped: test/e2e needs root: it makes hosts out of namespaces")
		return 0
	}
	if err := removeStale(); err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

// removeStale takes down the labs of test processes that were killed or ran
// into their time limit.
func removeStale() error {
	names, err := lab.List()
	errs := []error{err}
	for _, name := range names {
		var pid int
		if _, err := fmt.Sscanf(name, labPrefix+"%d", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			errs = append(errs, lab.Remove(context.Background(), name))
		}
	}
	return errors.Join(errs...)
}

// labPrefix begins the name of every lab of this package; the process id
// follows.
const labPrefix = "e2e-"

// labName is a name for one lab of this process.
func labName() string { return fmt.Sprintf("%s%d-%x", labPrefix, os.Getpid(), rand.Uint32()) }

// asUser runs a command in the module's folder that writes to dir and uses Go's
// caches: they must stay those of the user who called sudo.
func asUser(dir string, argv ...string) error {
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && uid != 0 {
		if err := os.Chown(dir, uid, -1); err != nil {
			return err
		}
		argv = append([]string{"sudo", "-u", "#" + strconv.Itoa(uid), "-H", "env", "PATH=" + os.Getenv("PATH")}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
