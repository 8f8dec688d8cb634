package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
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
