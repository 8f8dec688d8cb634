package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func id(t *testing.T, n *netns.NS) netns.ID {
	t.Helper()
	i, err := n.ID()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func inside(t *testing.T, n *netns.NS) netns.ID {
	t.Helper()
	var i netns.ID
	if err := n.Do(func() error {
		c, err := netns.Current()
		if err != nil {
			return err
		}
		defer c.Close()
		i, err = c.ID()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	n := netnstest.New(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if got, want := inside(t, n), id(t, n); got != want {
		t.Errorf("inside %v, want %v", got, want)
	}
	after, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if id(t, before) != id(t, after) {
		t.Error("the calling thread changed its namespace")
	}
	if id(t, before) == id(t, n) {
		t.Error("the new namespace is the old one")
	}
}

func TestDoFromManyGoroutinesNeverMixesNamespaces(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if inside(t, a) != id(t, a) || inside(t, b) != id(t, b) {
					t.Error("wrong namespace inside Do")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestDoReturnsTheErrorAndNests(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	want := errors.New("no")
	err := a.Do(func() error {
		if inside(t, b) != id(t, b) {
			t.Error("nested Do is not in the inner namespace")
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestDoEndsTheCallerWhenTheFunctionEndsItsGoroutine(t *testing.T) {
	n := netnstest.New(t)
	reached := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Do(func() error { runtime.Goexit(); return nil })
		reached = true
	}()
	<-done
	if reached {
		t.Error("the caller went on after Goexit inside Do")
	}
}

func TestNamedNamespaceIsSeenByIPAndGoesAway(t *testing.T) {
	n := netnstest.NewNamed(t)
	name := filepath.Base(n.Path())
	again, err := netns.OpenName(name)
	if err != nil {
		t.Fatal(err)
	}
	if id(t, again) != id(t, n) {
		t.Error("the name leads to another namespace")
	}
	again.Close()
	if _, err := netns.New(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second namespace of that name: %v", err)
	}
	if out := netnstest.Run(t, n, "ip", "netns", "list"); !strings.Contains(out, name) {
		t.Errorf("ip netns does not know %s: %s", name, out)
	}
	for range 2 {
		if err := n.Delete(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(n.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name stays: %v", err)
	}
}

func TestAnonymousPathWorksFromOtherProcesses(t *testing.T) {
	n := netnstest.New(t)
	out := netnstest.Run(t, n, "nsenter", "--net="+n.Path(), "ip", "-br", "link")
	if !strings.HasPrefix(out, "lo ") || strings.Count(out, "\n") != 1 {
		t.Errorf("want lo alone, got:\n%s", out)
	}
	if !strings.Contains(out, "LOWER_UP") {
		t.Errorf("lo is not up: %s", out)
	}
}

func TestRunNamesWhatWentWrong(t *testing.T) {
	n := netnstest.New(t)
	_, err := n.Run(t.Context(), "ip", "link", "show", "nosuch")
	if err == nil || !strings.Contains(err.Error(), "nosuch") || !strings.Contains(err.Error(), "ip link show") {
		t.Errorf("got %v", err)
	}
}

func TestOpenRefusesWhatIsNoNetworkNamespace(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		plain:                "not a network namespace",
		"/proc/self/ns/mnt":  "another kind",
		"/run/netns/no-such": "no such file",
	} {
		if n, err := netns.Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v %v, want an error with %q", path, n, err, want)
		}
	}
}

func TestNamesThatAreNoFileNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x"} {
		if _, err := netns.New(name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}
