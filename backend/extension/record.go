package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/flanneld/flanneld/kernel/netns"
)

// record is a directory that remembers until the next boot, as long as what
// hooks do to the kernel lasts: which hooks there were, and one file for each
// peer that SubnetAddCommand may have been told of.
type record struct{ dir string }

func (r record) hostFile() string { return filepath.Join(r.dir, "host.json") }
func (r record) peerDir() string  { return filepath.Join(r.dir, "peers") }

// peerFile is a peer's file: its lease's key comes from elsewhere.
func (r record) peerFile(key string) string {
	return filepath.Join(r.peerDir(), url.PathEscape(key)+".json")
}

// begun is the content of the host's own file.
type begun struct {
	Commands commands
	Self     input
}

// former is what begin remembered last; nothing without a record.
func (r record) former() (commands, input, error) {
	b, err := os.ReadFile(r.hostFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, input{}, nil
	}
	if err != nil {
		return nil, input{}, err
	}
	var was begun
	if err := json.Unmarshal(b, &was); err != nil {
		return nil, input{}, fmt.Errorf("%s: %w (forgotten)", r.hostFile(), err)
	}
	for _, name := range was.Commands {
		if !fileName.MatchString(name) {
			return nil, input{}, fmt.Errorf("%s: %q is no hook (forgotten)", r.hostFile(), name)
		}
	}
	return was.Commands, was.Self, nil
}

// begin remembers the hooks before the first is run, and what they are told
// about this host.
func (r record) begin(c commands, self input) error {
	if err := os.MkdirAll(r.peerDir(), 0o700); err != nil {
		return err
	}
	return replace(r.hostFile(), begun{c, self})
}

// peers are all that are remembered. A file that cannot be read is one that was
// being written when the host crashed, before any hook was told.
func (r record) peers() (map[string]input, error) {
	files, err := os.ReadDir(r.peerDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	out := map[string]input{}
	for _, f := range files {
		var entry struct {
			Key string
			input
		}
		path := filepath.Join(r.peerDir(), f.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if json.Unmarshal(b, &entry) != nil || path != r.peerFile(entry.Key) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		out[entry.Key] = entry.input
	}
	return out, err
}

// add remembers a peer before its hook is told.
func (r record) add(key string, in input) error {
	return replace(r.peerFile(key), struct {
		Key string
		input
	}{key, in})
}

// remove forgets a peer whose hook was told.
func (r record) remove(key string) error {
	if err := os.Remove(r.peerFile(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// end runs the remembered hooks for the end of all peers and of this host, and
// forgets everything. It goes on after errors, but not long after hooks that
// hang.
func (r record) end(ctx context.Context, ns *netns.NS, dir string) error {
	c, self, err := r.former()
	errs := []error{err}
	told, err := r.peers()
	errs = append(errs, err)
	h := hooks{dir, c}
	hung := 0
	run := func(hook string, in input) {
		if c[hook] == "" || hung > 2 || ctx.Err() != nil {
			return
		}
		if _, err := h.run(ctx, ns, hook, in, in.Data); err != nil {
			errs = append(errs, err)
			if errors.Is(err, errSlow) {
				hung++
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(told)) {
		run(subnetRemove, told[key])
	}
	run(shutdown, self)
	return errors.Join(append(errs, ctx.Err(), os.RemoveAll(r.dir))...)
}

// replace writes a file atomically.
func replace(path string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
