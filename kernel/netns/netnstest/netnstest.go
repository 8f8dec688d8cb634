// Package netnstest gives tests network namespaces that vanish with them.
package netnstest

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
)

// Prefix begins the name of every named namespace that a test makes, so that
// what a killed test left can be found.
const Prefix = "fltest-"

var serial atomic.Uint32

// NeedRoot skips the test, naming what is missing, unless it may make network
// namespaces; with CI=true it fails instead.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const msg = "needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make network namespaces"
	if os.Getenv("CI") == "true" {
		t.Fatal(msg)
	}
	t.Skip(msg)
}

// New returns a fresh namespace with lo up, without a name: it vanishes at
// the end of the test, and also if the test is killed.
func New(t testing.TB) *netns.NS {
	t.Helper()
	NeedRoot(t)
	n, err := netns.NewAnonymous()
	return ready(t, n, err)
}

// NewNamed is New with a mounted name of its own, for programs that want one
// in netns.Dir.
func NewNamed(t testing.TB) *netns.NS {
	t.Helper()
	NeedRoot(t)
	n, err := netns.New(fmt.Sprintf("%s%d-%d", Prefix, os.Getpid(), serial.Add(1)))
	return ready(t, n, err)
}

func ready(t testing.TB, n *netns.NS, err error) *netns.NS {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Delete(); err != nil {
			t.Error(err)
		}
	})
	if err := n.LoopbackUp(); err != nil {
		t.Fatal(err)
	}
	return n
}

// Run runs a program inside n, fails the test if it fails, and returns its
// standard output.
func Run(t testing.TB, n *netns.NS, name string, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
