package ipam

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestLabelsOfAnAttachmentChangeAndAllElseStays(t *testing.T) {
	n, err := Open(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	k := Key{"c1", "eth0"}
	relabel := func(to map[string]string) (bool, error) {
		return n.Relabel(k, func(_ Record, labels map[string]string) error {
			clear(labels)
			maps.Copy(labels, to)
			return nil
		})
	}
	if found, err := relabel(nil); found || err != nil {
		t.Errorf("nobody: %v, %v", found, err)
	}
	held, err := n.Reserve(Record{ContainerID: "c1", IfName: "eth0", HostLink: "fl0", Names: []string{"web"}, Guarded: true}, Request{})
	if err != nil {
		t.Fatal(err)
	}
	n.Wait = 1
	if _, err := relabel(map[string]string{"a": "b"}); !errors.Is(err, ErrBusy) {
		t.Errorf("while somebody works on it: %v", err)
	}
	held.Close()
	n.Wait = 0
	if found, err := relabel(map[string]string{"a": "b"}); found || err != nil {
		t.Errorf("not finished: %v, %v", found, err)
	}
	if held, err = n.Find(k); err != nil {
		t.Fatal(err)
	}
	if err := held.Attached(); err != nil {
		t.Fatal(err)
	}
	want := held.Record
	held.Close()
	for _, labels := range []map[string]string{{"app": "sample"}, {"app": strings.Repeat("x", 10_000)}, {"b": "c"}, {}} {
		if found, err := relabel(labels); !found || err != nil {
			t.Fatal(found, err)
		}
		got, ok, err := n.Peek(k)
		want.Labels = labels
		if len(labels) == 0 {
			want.Labels = nil
		}
		if a, b := string(must(got.encode())), string(must(want.encode())); err != nil || !ok || a != b {
			t.Errorf("%s, %v, want %s", a, err, b)
		}
	}
	// Nothing else is left in the directory, and what is not changed is not written.
	path := filepath.Join(n.Dir(), "-,c1,eth0")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("no")
	if found, err := n.Relabel(k, func(_ Record, labels map[string]string) error { labels["x"] = "y"; return why }); !found || !errors.Is(err, why) {
		t.Errorf("refused: %v, %v", found, err)
	}
	if found, err := relabel(nil); !found || err != nil {
		t.Error(found, err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again without a change (%v)", err)
	}
	files, err := os.ReadDir(n.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(files, func(f os.DirEntry) bool { return f.Name() != hintFile && f.Name() != filepath.Base(path) }); i >= 0 {
		t.Errorf("left %s", files[i].Name())
	}
}

// TestRelabellingIsSeenWholeByReaders: those who change it wait for each other,
// and those who read without a lock find one state or another.
func TestRelabellingIsSeenWholeByReaders(t *testing.T) {
	n, err := Open(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	k := Key{"c1", "eth0"}
	held, err := n.Reserve(Record{ContainerID: "c1", IfName: "eth0", Labels: map[string]string{"n": "0"}}, Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Attached(); err != nil {
		t.Fatal(err)
	}
	held.Close()
	const writers, each = 4, 25
	var g sync.WaitGroup
	done := make(chan struct{})
	for range writers {
		g.Go(func() {
			for range each {
				found, err := n.Relabel(k, func(_ Record, labels map[string]string) error {
					var n int
					if _, err := fmt.Sscan(labels["n"], &n); err != nil {
						return err
					}
					labels["n"], labels["long"] = fmt.Sprint(n+1), strings.Repeat("x", 100*(n%100))
					return nil
				})
				if !found || err != nil {
					t.Error(found, err)
				}
			}
		})
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if all, err := n.Records(); err != nil || len(all) > 1 || len(all) == 1 && (!all[0].Attached || all[0].Labels["n"] == "") {
				t.Errorf("%+v, %v", all, err)
				return
			}
		}
	})
	g.Wait()
	close(done)
	reader.Wait()
	if r, _, err := n.Peek(k); err != nil || r.Labels["n"] != fmt.Sprint(writers*each) {
		t.Errorf("%s changes of %d, %v", r.Labels["n"], writers*each, err)
	}
}
