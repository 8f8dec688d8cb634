// Package netns makes, opens and enters network namespaces.
//
// Entering a namespace is a property of a thread: everything here keeps the
// thread locked while it is elsewhere and throws it away if it cannot be
// brought back.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where named namespaces are mounted, the same as iproute2's.
const Dir = "/run/netns"

// nsfsMagic is the file system type of namespace files (linux/magic.h).
const nsfsMagic = 0x6e736673

// NS is an open network namespace. Its methods may be called concurrently,
// except Close and Delete, which end its use.
type NS struct {
	f     *os.File
	path  string
	named bool // mounted by New: Delete unmounts it
}

// ID tells namespaces of one machine apart.
type ID struct {
	Dev, Ino uint64
}

// New makes a namespace and mounts it at Dir/name, where ip netns finds it
// too. It fails with fs.ErrExist if there is one of that name. The
// namespace lives until Delete, whatever becomes of this process.
func New(name string) (*NS, error) { return NewIn(Dir, name) }

// NewIn is New with another directory than Dir. The directory is made if need
// be, and mounts below it are shared with other mount namespaces.
func NewIn(dir, name string) (*NS, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("network namespace name %q: must be a file name", name)
	}
	if err := shareDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	f.Close()
	n, err := create(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), os.Remove(path))
	}
	n.named = true
	return n, nil
}

// NewAnonymous makes a namespace that lives as long as it is open or in use.
// Its Path leads through this process's /proc directory and ends with Close.
func NewAnonymous() (*NS, error) {
	n, err := create("")
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return n, nil
}

// Open opens the namespace at a path such as /run/netns/web or
// /proc/17/ns/net. It fails with fs.ErrNotExist if the path is missing.
func Open(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n := &NS{f: f, path: path}
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.FD(), &st); err != nil || st.Type != nsfsMagic {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace", path)
	}
	if kind, err := unix.IoctlRetInt(n.FD(), unix.NS_GET_NSTYPE); err == nil && kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is a namespace of another kind, not a network namespace", path)
	}
	return n, nil
}

// OpenName opens the namespace that New made under that name.
func OpenName(name string) (*NS, error) { return Open(filepath.Join(Dir, name)) }

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// Path is a path that leads to the namespace, also from other processes, as
// long as n is open (or, of a named namespace, not deleted).
func (n *NS) Path() string { return n.path }

// FD is the file descriptor of the namespace. It stays n's own.
func (n *NS) FD() int { return int(n.f.Fd()) }

// ID identifies the namespace: two open namespaces with equal IDs are one.
func (n *NS) ID() (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", n.path, err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// Close lets go of the namespace; a named one stays.
func (n *NS) Close() error { return n.f.Close() }

// Delete closes the namespace and, if New made it, unmounts it and removes
// its name. The kernel frees it when its last process and socket are gone.
// It may be called again.
func (n *NS) Delete() error {
	err := n.f.Close()
	if errors.Is(err, fs.ErrClosed) {
		err = nil
	}
	if n.named {
		err = errors.Join(err, Remove(n.path))
	}
	return err
}

// Remove unmounts and removes a named namespace by its path; nil if there is
// none.
func Remove(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Do calls f on a thread inside the namespace and waits for it. Goroutines
// that f starts are outside. If f ends its goroutine (as testing's FailNow
// does), the caller's ends too.
func (n *NS) Do(f func() error) error {
	done := make(chan struct{})
	returned := false
	var err error
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, e := os.Open("/proc/thread-self/ns/net")
		if e != nil {
			runtime.UnlockOSThread()
			err, returned = fmt.Errorf("find own network namespace: %w", e), true
			return
		}
		defer home.Close()
		if e := unix.Setns(n.FD(), unix.CLONE_NEWNET); e != nil {
			runtime.UnlockOSThread()
			err, returned = fmt.Errorf("enter network namespace %s: %w", n.path, e), true
			return
		}
		defer func() {
			// A thread that cannot go home stays locked and ends with this
			// goroutine.
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = f()
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// LoopbackUp raises the interface lo.
func (n *NS) LoopbackUp() error { return n.Do(loopbackUp) }

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}

// create makes a namespace on a thread that is then thrown away, and mounts it
// on the file at path unless that is "".
func create(path string) (*NS, error) {
	type made struct {
		f   *os.File
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{nil, fmt.Errorf("unshare: %w", err)}
			return
		}
		const own = "/proc/thread-self/ns/net"
		f, err := os.Open(own)
		if err == nil && path != "" {
			if err = unix.Mount(own, path, "none", unix.MS_BIND, ""); err != nil {
				f.Close()
				err = fmt.Errorf("mount on %s: %w", path, err)
			}
		}
		c <- made{f, err}
	}()
	m := <-c
	if m.err != nil {
		return nil, m.err
	}
	n := &NS{f: m.f, path: path}
	if path == "" {
		n.path = "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(n.FD())
	}
	return n, nil
}

// shareDir makes dir a shared mount, as ip netns does, so that namespaces
// mounted below it appear in other mount namespaces too.
func shareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of network namespaces: %w", err)
	}
	if unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "") == nil {
		return nil
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share mounts below %s: %w", dir, err)
	}
	return nil
}
