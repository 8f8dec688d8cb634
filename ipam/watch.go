package ipam

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of a Watch.
const (
	settle  = 3 * time.Millisecond // from the first event to looking: an ADD makes several
	relist  = 30 * time.Second     // for what inotify did not tell
	unaided = time.Second          // instead of both while there is no inotify
)

// Watch yields the records of every network below dataDir ("": DefaultDir), at
// once and again after each change; several changes may come as one. Records
// of attachments that are not finished, of another boot, and files that
// cannot be understood are left out. The order is by network and file name.
// What is yielded is shared with what is yielded later: it must not be
// written to.
//
// An error says why changes are seen late or what cannot be read; it comes
// once, with the records as they were read last (nil: they never could be), and
// Watch goes on. Neither dataDir nor a network's directory need be there, and both may come and go.
// It ends when ctx does or when the consumer stops, and leaves nothing running.
func Watch(ctx context.Context, dataDir string) iter.Seq2[[]Record, error] {
	return func(yield func([]Record, error) bool) {
		w := &watch{dir: filepath.Clean(cmp.Or(dataDir, DefaultDir)), networks: map[string]map[string]*watched{}}
		defer w.close()
		first, told := true, ""
		for {
			changed, err := w.look()
			text := ""
			if err != nil {
				text = err.Error()
			}
			if (changed || first || text != told) && !yield(w.records(), err) {
				return
			}
			first, told = false, text
			if !w.wait(ctx) {
				return
			}
		}
	}
}

// watch is the state of one Watch.
type watch struct {
	dir      string
	boot     string
	listed   bool              // once, all of it
	inotify  *fsnotify.Watcher // nil: not available
	above    string            // that is watched until dir is there; "": it is
	networks map[string]map[string]*watched
	dirty    map[string]bool // paths that somebody wrote to; nil: any
}

// watched is a record's file.
type watched struct {
	record Record
	info   os.FileInfo // when it was read
	good   bool        // to be yielded
}

func (w *watch) close() {
	if w.inotify != nil {
		_ = w.inotify.Close()
	}
}

// look reads what is new and reports whether anything is that is yielded.
func (w *watch) look() (changed bool, err error) {
	if w.onlyFiles() {
		changed, err = w.files()
	} else {
		changed, err = w.all()
	}
	if err == nil {
		w.dirty = map[string]bool{}
	}
	return changed, err
}

// onlyFiles tells whether nothing but files of known networks was written to.
func (w *watch) onlyFiles() bool {
	for path := range w.dirty {
		dir, network := filepath.Split(filepath.Dir(path))
		if filepath.Clean(dir) != w.dir || w.networks[network] == nil {
			return false
		}
	}
	return len(w.dirty) > 0
}

// files reads those that were written to.
func (w *watch) files() (changed bool, err error) {
	var errs []error
	for path := range w.dirty {
		dir, file := filepath.Split(path)
		if _, ok := parseName(file); !ok {
			continue
		}
		network := w.networks[filepath.Base(dir)]
		was := network[file]
		now, err := w.file(path, was)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case now == nil:
			delete(network, file)
		default:
			network[file] = now
		}
		changed = changed || differ(was, now)
	}
	return changed, errors.Join(errs...)
}

// all lists everything, and reads the files that differ from when they were
// read.
func (w *watch) all() (changed bool, err error) {
	if w.boot == "" {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return false, fmt.Errorf("read boot id: %w", err)
		}
		w.boot = string(bytes.TrimSpace(boot))
	}
	// First the watches, then the listing: nothing is missed in between.
	errs := []error{w.follow()}
	names, err := Networks(w.dir)
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	for name, files := range w.networks {
		if !slices.Contains(names, name) {
			changed = changed || anyGood(files)
			delete(w.networks, name)
		}
	}
	read := true
	for _, name := range names {
		c, err := w.network(name)
		changed, read = changed || c, read && w.networks[name] != nil
		errs = append(errs, err)
	}
	changed = changed || read && !w.listed
	w.listed = w.listed || read
	return changed, errors.Join(errs...)
}

// follow watches dir, or as long as it is not there the nearest folder above
// it.
func (w *watch) follow() error {
	if w.inotify == nil {
		n, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch %s: %w: changes of attachments are seen every %v only: raise fs.inotify.max_user_instances", w.dir, err, unaided)
		}
		w.inotify = n
	}
	for {
		err := w.add(w.dir)
		if err == nil {
			if w.above != "" {
				_ = w.inotify.Remove(w.above) // it may be gone
				w.above = ""
			}
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		next := w.dir // what is missing in above
		for err != nil && next != "/" && next != "." {
			above := filepath.Dir(next)
			if err = w.add(above); err == nil {
				if w.above != "" && w.above != above {
					_ = w.inotify.Remove(w.above) // it may be gone
				}
				w.above = above
			} else if next = above; !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if !exists(next) { // nobody made it since
			return nil
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (w *watch) add(dir string) error {
	if err := w.inotify.Add(dir); err != nil {
		return fmt.Errorf("watch %s: %w: changes of attachments may be seen every %v only (see fs.inotify.max_user_watches)", dir, err, relist)
	}
	return nil
}

// network reads what is new in one network's directory.
func (w *watch) network(name string) (changed bool, err error) {
	dir := filepath.Join(w.dir, name)
	var errs []error
	if w.inotify != nil {
		if err := w.add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	n := Network{Name: name, dir: dir, boot: w.boot}
	entries, err := n.entries()
	if err != nil {
		return false, errors.Join(append(errs, err)...)
	}
	old := w.networks[name]
	files := make(map[string]*watched, len(entries))
	for _, e := range entries {
		was := old[e.name]
		now, err := w.file(filepath.Join(dir, e.name), was)
		if err != nil {
			errs = append(errs, err)
			now = was
		}
		if now != nil {
			files[e.name] = now
		}
		changed = changed || differ(was, now)
	}
	for file, was := range old {
		changed = changed || was.good && files[file] == nil
	}
	w.networks[name] = files
	return changed, errors.Join(errs...)
}

// file returns was if nobody wrote to the file, as far as events and its times
// tell, else what it says now; nil if it is gone.
func (w *watch) file(path string, was *watched) (*watched, error) {
	info, err := os.Lstat(path)
	if err == nil && was != nil && was.good && !w.dirty[path] &&
		os.SameFile(info, was.info) && info.ModTime().Equal(was.info.ModTime()) && info.Size() == was.info.Size() {
		return was, nil
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attachment record: %w", err)
	}
	now := &watched{info: info}
	now.record, err = ParseRecord(b)
	now.good = err == nil && now.record.Attached && now.record.BootID == w.boot
	return now, nil
}

// differ reports whether a change of one file is one of what is yielded.
func differ(was, now *watched) bool {
	if was == nil || !was.good || now == nil || !now.good {
		return (was != nil && was.good) != (now != nil && now.good)
	}
	return was != now && !reflect.DeepEqual(was.record, now.record)
}

func anyGood(files map[string]*watched) bool {
	for _, f := range files {
		if f.good {
			return true
		}
	}
	return false
}

// records is what is yielded.
func (w *watch) records() []Record {
	if !w.listed {
		return nil
	}
	type named struct {
		network, file string
		*watched
	}
	var all []named
	for network, files := range w.networks {
		for file, f := range files {
			if f.good {
				all = append(all, named{network, file, f})
			}
		}
	}
	slices.SortFunc(all, func(a, b named) int {
		return cmp.Or(strings.Compare(a.network, b.network), strings.Compare(a.file, b.file))
	})
	records := make([]Record, len(all))
	for i, f := range all {
		records[i] = f.record
	}
	return records
}

// wait returns when it is time to look again; false when ctx ended.
func (w *watch) wait(ctx context.Context) bool {
	pause := relist
	var events chan fsnotify.Event
	var errs chan error
	if w.inotify == nil {
		pause = unaided
	} else {
		events, errs = w.inotify.Events, w.inotify.Errors
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for settling := false; ; {
		var some bool
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			if !settling {
				w.dirty = nil
			}
			return true
		case e := <-events:
			some = w.concerns(e)
		case err := <-errs: // as a rule fsnotify.ErrEventOverflow: some are lost
			w.dirty, some = nil, err != nil
		}
		if some && !settling {
			settling = true
			timer.Reset(settle)
		}
	}
}

// concerns notes an event, unless it is nothing to look for.
func (w *watch) concerns(e fsnotify.Event) bool {
	if strings.HasPrefix(filepath.Base(e.Name), ".") && filepath.Dir(filepath.Dir(e.Name)) == w.dir {
		return false // a record that has no name yet, a hint
	}
	if w.above != "" && e.Name != w.dir && !strings.HasPrefix(w.dir, e.Name+"/") && !strings.HasPrefix(e.Name, w.dir+"/") {
		return false // beside the way to dir
	}
	if w.dirty != nil {
		w.dirty[e.Name] = true
	}
	return true
}
