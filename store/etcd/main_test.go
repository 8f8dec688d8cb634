package etcd

import (
	"flag"
	"os"
	"testing"
)

// The contract's tests mostly wait: more run at once than there are CPUs.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
