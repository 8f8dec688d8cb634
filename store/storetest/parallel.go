package storetest

import (
	"flag"
	"testing"
)

// RunParallel runs a package's tests, more at once than there are CPUs: the
// contract's mostly wait. It returns the exit code.
func RunParallel(m *testing.M) int {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	return m.Run()
}
