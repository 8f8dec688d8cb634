package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// watching is a consumer of Watch that remembers the latest.
type watching struct {
	t    *testing.T
	got  chan string // ids and names, whenever they were yielded
	last string
}

func startWatch(t *testing.T, dir string) *watching {
	t.Helper()
	w := &watching{t: t, got: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for records, err := range Watch(ctx, dir) {
			if err != nil {
				w.got <- err.Error()
				continue
			}
			var s []string
			for _, r := range records {
				s = append(s, strings.Join(append([]string{r.Network + "/" + r.ContainerID}, r.Names...), "+"))
			}
			w.got <- strings.Join(s, " ")
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// until waits for a state; the limit is far below that of the periodic look.
func (w *watching) until(want string) {
	w.t.Helper()
	limit := time.After(10 * time.Second)
	for w.last != want || want == "" {
		select {
		case w.last = <-w.got:
			if w.last == want {
				return
			}
		case <-limit:
			w.t.Fatalf("has %q, want %q", w.last, want)
		}
	}
}

func attach(t *testing.T, n *Network, id string, names ...string) *Held {
	t.Helper()
	h, err := n.Reserve(Record{ContainerID: id, IfName: "eth0", Names: names}, Request{Sets: []Set{{{
		Subnet: netip.MustParsePrefix("10.1.0.0/16"), Start: netip.MustParseAddr("10.1.0.2"), End: netip.MustParseAddr("10.1.255.254")}}}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func finish(t *testing.T, h *Held) {
	t.Helper()
	err := h.Attached()
	h.Close()
	if err != nil {
		t.Fatal(err)
	}
}

func detach(t *testing.T, n *Network, id string) {
	t.Helper()
	h, err := n.Find(Key{id, "eth0"})
	if err == nil {
		err = h.Release()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openIn(t *testing.T, dir, name string) *Network {
	t.Helper()
	n, err := Open(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWatchFollowsADDAndDEL(t *testing.T) {
	dir := t.TempDir()
	n := openIn(t, dir, "net")
	finish(t, attach(t, n, "a", "web"))
	w := startWatch(t, dir)
	w.until("net/a+web")
	h := attach(t, n, "b")
	other := openIn(t, dir, "aaa") // a new network
	finish(t, attach(t, other, "c"))
	w.until("aaa/c net/a+web")
	finish(t, h)
	w.until("aaa/c net/a+web net/b")
	detach(t, n, "a")
	w.until("aaa/c net/b")
	held, err := n.Find(Key{"b", "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	r := held.Record
	r.Names = []string{"x"}
	if err := held.Rewrite(r); err != nil {
		t.Fatal(err)
	}
	held.Close()
	w.until("aaa/c net/b+x")
	detach(t, other, "c")
	detach(t, n, "b")
	w.until("")
}

func TestWatchLeavesOutWhatIsNoAttachment(t *testing.T) {
	dir := t.TempDir()
	n := openIn(t, dir, "net")
	attach(t, n, "unfinished").Close()
	old := openIn(t, dir, "net")
	old.boot = "another"
	finish(t, attach(t, old, "old"))
	for name, text := range map[string]string{"10.1.9.9,broken,eth0": "{", "10.1.9.8,empty,eth0": "", "notes": "x"} {
		if err := os.WriteFile(filepath.Join(n.Dir(), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, dir)
	w.until("")
	finish(t, attach(t, n, "good"))
	w.until("net/good")
}

func TestWatchSurvivesTheLossOfItsDirectories(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "run", "flannel", "attachments")
	w := startWatch(t, dir)
	w.until("")
	for i := range 10 {
		n := openIn(t, dir, "net")
		id := fmt.Sprint("a", i)
		finish(t, attach(t, n, id))
		w.until("net/" + id)
		what := []string{n.Dir(), dir, filepath.Dir(dir), filepath.Join(top, "run")}[i%4]
		if i < 8 {
			if err := os.RemoveAll(what); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Rename(what, filepath.Join(top, fmt.Sprint("moved", i))); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			w.until("")
		}
	}
}

func TestWatchTellsTheTruthAfterAStorm(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir)
	n := openIn(t, dir, "net")
	var left []string
	for i := range 300 {
		id := fmt.Sprintf("%03d", i)
		finish(t, attach(t, n, id))
		if i%7 == 0 {
			detach(t, n, id)
			continue
		}
		left = append(left, "net/"+id)
	}
	limit := time.After(10 * time.Second)
	for {
		select {
		case w.last = <-w.got:
		case <-limit:
			t.Fatalf("has %s", w.last)
		}
		got := strings.Fields(w.last)
		slices.Sort(got)
		if slices.Equal(got, left) {
			return
		}
	}
}

func TestWatchReadsOnlyWhatChanged(t *testing.T) {
	dir := t.TempDir()
	n := openIn(t, dir, "net")
	for i := range 100 {
		finish(t, attach(t, n, fmt.Sprint("c", i)))
	}
	w := &watch{dir: dir, networks: map[string]map[string]*watched{}}
	defer w.close()
	if changed, err := w.look(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	before := maps.Clone(w.networks["net"])
	h := attach(t, n, "new")
	finish(t, h)
	w.wait(t.Context())
	changed, err := w.look()
	if !changed || err != nil || len(w.records()) != 101 {
		t.Fatal(changed, err, len(w.records()))
	}
	for file, f := range w.networks["net"] {
		if before[file] != f && file != filepath.Base(h.path) {
			t.Errorf("%s was read again", file)
		}
	}
	// The periodic look reads what was written without anybody telling.
	w.dirty = nil
	path := filepath.Join(n.Dir(), filepath.Base(h.path))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"ifName":"eth0"`, `"ifName":"eth0","names":["x"]`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	before = maps.Clone(w.networks["net"])
	if changed, err := w.look(); !changed || err != nil {
		t.Error(changed, err)
	}
	read := 0
	for file, f := range w.networks["net"] {
		if before[file] != f {
			read++
		}
	}
	if read != 1 {
		t.Errorf("%d files were read again", read)
	}
}

func TestWatchEndsWithItsContextOrItsConsumer(t *testing.T) {
	dir := t.TempDir()
	for range Watch(t.Context(), dir) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range Watch(ctx, dir) {
		cancel()
	}
}

func TestWatchWithoutItsDirectoryReadableTellsAndGoesOn(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "file") // not a directory
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for records, err := range Watch(t.Context(), dir) {
		if records != nil || err == nil {
			t.Errorf("%v, %v: nothing could be read", records, err)
		}
		break
	}
	w := startWatch(t, dir)
	select {
	case w.last = <-w.got:
	case <-time.After(10 * time.Second):
	}
	if !strings.Contains(w.last, dir) {
		t.Fatalf("said %q", w.last)
	}
	if err := errors.Join(os.Remove(dir)); err != nil {
		t.Fatal(err)
	}
	w.until("")
	finish(t, attach(t, openIn(t, dir, "net"), "a"))
	w.until("net/a")
}

func BenchmarkWatchOneChangeAmong300(b *testing.B) {
	dir := b.TempDir()
	n, err := Open(dir, "net")
	if err != nil {
		b.Fatal(err)
	}
	var path string
	for i := range 300 {
		h, err := n.Reserve(Record{ContainerID: fmt.Sprintf("%064d", i), IfName: "eth0", Names: []string{"web"}, Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16)}}, Request{})
		if err == nil {
			err = h.Attached()
		}
		if err != nil {
			b.Fatal(err)
		}
		path = h.path
		h.Close()
	}
	w := &watch{dir: dir, networks: map[string]map[string]*watched{}}
	defer w.close()
	if _, err := w.look(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.dirty = map[string]bool{path: true}
		if _, err := w.look(); err != nil {
			b.Fatal(err)
		}
		w.records()
	}
}
