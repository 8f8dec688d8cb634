package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir holds one directory for each network.
const DefaultDir = "/run/flannel/attachments"

// Files in a network's directory beside the records. Both are written under
// the network's lock only.
const (
	newFile  = ".new"  // a record before it gets its name
	hintFile = ".last" // boot id and the last address given out of each set
)

// Network is the directory of one network's records. Processes share it; a
// lock on the directory is held for the time of an allocation, and a lock on
// a record's file while its container is being plugged in or out.
type Network struct {
	Name string
	dir  string
	boot string
	// Wait bounds the wait for another process that works on the same
	// attachment; 0 means 30 s.
	Wait time.Duration
}

// ErrBusy says that another process works on the attachment.
var ErrBusy = errors.New("another call works on this attachment")

// Open returns the network's directory below dataDir ("": DefaultDir). The
// name must be valid as CNI defines it; Open refuses what cannot be one
// directory name. Nothing is written until an allocation.
func Open(dataDir, name string) (*Network, error) {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") || len(name) > 200 {
		return nil, fmt.Errorf("network name %.220q cannot be the name of a directory", name)
	}
	if dataDir == "" {
		dataDir = DefaultDir
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	return &Network{Name: name, dir: filepath.Join(dataDir, name), boot: string(bytes.TrimSpace(boot))}, nil
}

// Networks names the networks that have a directory below dataDir ("":
// DefaultDir).
func Networks(dataDir string) ([]string, error) {
	if dataDir == "" {
		dataDir = DefaultDir
	}
	entries, err := os.ReadDir(dataDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list networks with attachments: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Dir is the network's directory.
func (n *Network) Dir() string { return n.dir }

// lock opens and locks the directory, making it if need be. Closing the file
// unlocks it.
func (n *Network) lock() (*os.File, error) {
	d, err := os.Open(n.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(filepath.Dir(n.dir), 0o755)
		if err == nil {
			err = os.Mkdir(n.dir, 0o700)
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			d, err = os.Open(n.dir)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open attachments of network %s: %w", n.Name, err)
	}
	if err := flock(d, unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock attachments of network %s: %w", n.Name, err)
	}
	return d, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// list reads the names of the records in an open directory.
func list(d *os.File) ([]entry, error) {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	entries := make([]entry, 0, len(names))
	for _, name := range names {
		if e, ok := parseName(name); ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// entries lists without a lock; nothing if there is no directory.
func (n *Network) entries() ([]entry, error) {
	d, err := os.Open(n.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open attachments of network %s: %w", n.Name, err)
	}
	defer d.Close()
	return list(d)
}

// Held is an attachment's record under its lock: nobody else works on the
// attachment until Close, Release or the end of the process.
type Held struct {
	Record Record
	// Intact is false if the file's content could not be read; Record then
	// holds what the file's name and the network tell.
	Intact bool
	f      *os.File
	path   string
	close  sync.Once
}

// Find locks and returns the record of an attachment, nil if there is none.
// It waits for a process that works on it, and fails with ErrBusy if that
// takes too long.
func (n *Network) Find(k Key) (*Held, error) { return n.find(k, n.wait()) }

// Try is Find without waiting.
func (n *Network) Try(k Key) (*Held, error) { return n.find(k, 0) }

func (n *Network) find(k Key, wait time.Duration) (*Held, error) {
	for range 100 { // a record may be replaced while we wait for it
		entries, err := n.entries()
		if err != nil {
			return nil, err
		}
		var found *entry
		for _, e := range entries {
			if e.is(k) {
				found = &e
			}
		}
		if found == nil {
			return nil, nil
		}
		h, err := n.hold(*found, wait)
		if err != nil || h != nil {
			return h, err
		}
	}
	return nil, fmt.Errorf("attachment of %s, %s: %w", k.ContainerID, k.IfName, ErrBusy)
}

func (n *Network) wait() time.Duration {
	if n.Wait == 0 {
		return 30 * time.Second
	}
	return n.Wait
}

// All yields every record that nobody works on, locked while it is yielded.
func (n *Network) All() iter.Seq2[*Held, error] {
	return func(yield func(*Held, error) bool) {
		entries, err := n.entries()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, e := range entries {
			h, err := n.hold(e, 0)
			if errors.Is(err, ErrBusy) || err == nil && h == nil {
				continue
			}
			ok := yield(h, err)
			if h != nil {
				h.Close()
			}
			if !ok {
				return
			}
		}
	}
}

// Peek returns the record of an attachment without locking it; false if there is none.
func (n *Network) Peek(k Key) (Record, bool, error) {
	entries, err := n.entries()
	if err != nil {
		return Record{}, false, err
	}
	for _, e := range entries {
		if e.is(k) {
			b, err := os.ReadFile(filepath.Join(n.dir, e.name))
			if err != nil {
				return Record{}, false, fmt.Errorf("read attachment record: %w", err)
			}
			r, err := ParseRecord(b)
			return r, err == nil, err
		}
	}
	return Record{}, false, nil
}

// Records reads every record without locking any, but for those that cannot
// be understood. Somebody may be working on what it returns: Try tells.
func (n *Network) Records() ([]Record, error) {
	entries, err := n.entries()
	if err != nil {
		return nil, err
	}
	out := make([]Record, 0, len(entries))
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(n.dir, e.name))
		if errors.Is(err, fs.ErrNotExist) { // released since
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attachment record: %w", err)
		}
		if r, err := ParseRecord(b); err == nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// Taken is what the name of a record tells.
type Taken struct {
	HostLink  string // that the attachment has if it is a bridge's
	Addresses []netip.Addr
}

// Taken lists the records without opening or locking any.
func (n *Network) Taken() ([]Taken, error) {
	entries, err := n.entries()
	if err != nil {
		return nil, err
	}
	out := make([]Taken, 0, len(entries))
	for _, e := range entries {
		out = append(out, Taken{e.key().HostLink(n.Name), e.addresses})
	}
	return out, nil
}

// hold locks a record's file. It returns nil if the file is gone.
func (n *Network) hold(e entry, wait time.Duration) (*Held, error) {
	path := filepath.Join(n.dir, e.name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open attachment record: %w", err)
	}
	if err := lockWithin(f, wait); err != nil {
		return nil, fmt.Errorf("attachment %s of network %s: %w", e.name, n.Name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at attachment record: %w", err)
	}
	if st.Nlink == 0 { // released while we waited
		f.Close()
		return nil, nil
	}
	b, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read attachment record: %w", err)
	}
	h := &Held{f: f, path: path, Intact: true}
	if h.Record, err = ParseRecord(b); err != nil {
		h.Intact = false
		h.Record = Record{Network: n.Name, ContainerID: e.id, IfName: e.ifName, HostLink: e.key().HostLink(n.Name)}
		for _, a := range e.addresses {
			h.Record.Addresses = append(h.Record.Addresses, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return h, nil
}

// lockWithin locks f, or closes it and fails with ErrBusy.
func lockWithin(f *os.File, wait time.Duration) error {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && wait > 0 {
		got := make(chan error, 1)
		go func() { got <- flock(f, unix.LOCK_EX) }()
		select {
		case err = <-got:
		case <-time.After(wait):
			go func() { // as a rule the process ends first
				_ = errors.Join(<-got, f.Close())
			}()
			return ErrBusy
		}
	}
	if err == nil {
		return nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	}
	return fmt.Errorf("lock attachment record: %w", err)
}

// Attached marks the record as complete: the container is plugged in.
func (h *Held) Attached() error {
	if _, err := h.f.WriteAt([]byte(attached), 0); err != nil {
		return fmt.Errorf("mark attachment record: %w", err)
	}
	h.Record.Attached = true
	return nil
}

// Unguarded notes in the record that the kernel does not guard the
// attachment.
func (h *Held) Unguarded() error {
	r := h.Record
	r.Guarded = false
	return h.Rewrite(r)
}

// Rewrite changes what the record says, but not whose it is. Addresses that
// it did not have before are the caller's business: nobody is asked whether
// they are free.
func (h *Held) Rewrite(r Record) error {
	before, err := h.Record.encode()
	if err != nil {
		return err
	}
	b, err := r.encode()
	if err != nil {
		return err
	}
	name, err := r.fileName()
	if err != nil {
		return err
	}
	// In place: whoever waits for the lock waits for this file. White space
	// fills what it was longer.
	b = append(b, bytes.Repeat([]byte{' '}, max(0, len(before)-len(b)))...)
	if _, err := h.f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("write attachment record: %w", err)
	}
	h.Record = r
	path := filepath.Join(filepath.Dir(h.path), name)
	if path == h.path {
		return nil
	}
	if err := os.Rename(h.path, path); err != nil {
		return fmt.Errorf("rename attachment record: %w", err)
	}
	h.path = path
	return nil
}

// Release removes the record: its addresses are free.
func (h *Held) Release() error {
	err := os.Remove(h.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	h.Close()
	if err != nil {
		return fmt.Errorf("release attachment: %w", err)
	}
	return nil
}

// Close unlocks the record and keeps it. It may be called again.
func (h *Held) Close() { h.close.Do(func() { h.f.Close() }) }
