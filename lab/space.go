package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// space is the namespaces of one host, kept alive by the files net, mnt and
// uts in its directory rather than by a process.
type space struct {
	dir string
	// netns, if not empty, is used instead of the host's network namespace:
	// a path inside the host's mount namespace.
	netns string
	// private gives what runs here a mount namespace of its own, with the
	// /sys of netns and the resolv.conf of the container of this name, and it
	// is the host name.
	private string
}

// do runs f on a thread that lives in the space and then dies. Processes that
// f starts and sockets that it opens stay there; goroutines that f starts do
// not run there.
func (s space) do(f func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread, which can never come back.
func (s space) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	// All files are opened first: they are out of sight from inside.
	kinds := []struct {
		file string
		flag int
	}{{"mnt", unix.CLONE_NEWNS}, {"uts", unix.CLONE_NEWUTS}, {"net", unix.CLONE_NEWNET}}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, k := range kinds {
		f, err := os.Open(filepath.Join(s.dir, k.file))
		if err != nil {
			return fmt.Errorf("enter %s: %w", s.dir, err)
		}
		files = append(files, f)
	}
	for i, k := range kinds {
		if err := unix.Setns(int(files[i].Fd()), k.flag); err != nil {
			return fmt.Errorf("enter namespace %s: %w", files[i].Name(), err)
		}
	}
	if s.netns == "" {
		return nil
	}
	f, err := os.Open(s.netns)
	if err != nil {
		return fmt.Errorf("enter container: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter container %s: %w", s.netns, err)
	}
	if s.private == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare mounts of container %s: %w", s.netns, err)
	}
	// Mounts made on the host arrive, those made in here stay in here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts of container %s slaves: %w", s.netns, err)
	}
	return errors.Join(mountSys(), mountResolvConf(s.private), unix.Sethostname([]byte(s.private)))
}

// onThread runs f on an operating system thread that ends with it, so that f
// may spoil the thread's namespaces. It is never the main thread, whose
// namespaces others see as the process's. If f ends its goroutine (as
// testing's FailNow does), the caller's ends too.
func onThread(f func() error) error {
	var err error
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			err = f()
			returned = true
			return // without unlocking: the thread ends
		}
		// While this goroutine holds the main thread, f gets another one.
		defer runtime.UnlockOSThread()
		err = onThread(f)
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// makeSpace makes the namespaces of a host and the files that keep them in
// dir, which must be on a mount that does not propagate.
func makeSpace(dir, hostname string) error {
	err := makeSpaceOn(nil, dir, hostname)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// A mount namespace can be kept only in one that is older. Linux 6.18 takes
	// the one with the smaller number for the older, and gives the processors
	// ranges of numbers of their own: another one's may be higher.
	var one unix.CPUSet
	for cpu := range len(one) * 64 {
		one.Zero()
		one.Set(cpu)
		// For one that is not there it is EINVAL too.
		if again := makeSpaceOn(&one, dir, hostname); !errors.Is(again, unix.EINVAL) {
			return again
		}
	}
	return err
}

// makeSpaceOn is makeSpace once, on one processor (nil: any).
func makeSpaceOn(cpu *unix.CPUSet, dir, hostname string) error {
	return onThread(func() error {
		if cpu != nil { // the thread ends with it
			if err := unix.SchedSetaffinity(0, cpu); err != nil {
				return fmt.Errorf("choose a processor: %w", err)
			}
		}
		// From a thread of its own: a mount made after the unshare would be
		// seen inside only.
		threadNS := fmt.Sprintf("/proc/%d/task/%d/ns/", unix.Getpid(), unix.Gettid())
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("make namespaces of %s: %w (root is needed)", hostname, err)
		}
		if err := furnish(hostname); err != nil {
			return fmt.Errorf("furnish %s: %w", hostname, err)
		}
		return onCleanThread(func() error {
			for _, kind := range []string{"mnt", "net", "uts"} { // first what may fail
				file := filepath.Join(dir, kind)
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					return err
				}
				if err := unix.Mount(threadNS+kind, file, "", unix.MS_BIND, ""); err != nil {
					return fmt.Errorf("keep namespace %s: %w", file, err)
				}
			}
			return nil
		})
	})
}

// onCleanThread runs f outside the namespaces of the calling thread.
func onCleanThread(f func() error) error {
	done := make(chan error)
	go func() { done <- f() }() // the caller's thread is locked: this is another
	return <-done
}

// furnish makes the calling thread's new mount and UTS namespace a host's.
func furnish(hostname string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := dropForeignMounts(); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := overlays("/etc", "/opt", "/var/lib"); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	for _, d := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	// A namespace plugged in by one program must be seen by the others.
	if err := unix.Mount("", "/run", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share /run: %w", err)
	}
	if err := os.MkdirAll("/var/lib/cni", 0o755); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return os.WriteFile("/etc/hostname", []byte(hostname+"\n"), 0o644)
}

// dropForeignMounts lets go of what is mounted below /run and of all
// namespace files: a copy of them in here would keep somebody else's
// namespaces alive.
func dropForeignMounts() error {
	points, err := mounts("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(points) {
		if m.fs != "nsfs" && !strings.HasPrefix(m.point, "/run/") {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", m.point, err)
		}
	}
	return nil
}

// overlays lets this host write to directories of the machine without the
// machine noticing: the writes stay in memory.
func overlays(dirs ...string) error {
	const upper = "/run/overlays"
	if err := os.Mkdir(upper, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", upper, "tmpfs", unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", upper, err)
	}
	for _, d := range dirs {
		up, work := upper+d+"/upper", upper+d+"/work"
		if err := errors.Join(os.MkdirAll(up, 0o755), os.MkdirAll(work, 0o700)); err != nil {
			return err
		}
		opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", d, up, work)
		if err := unix.Mount("overlay", d, "overlay", 0, opts); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mount overlay on %s: %w (the kernel needs overlayfs: modprobe overlay)", d, err)
		}
	}
	// The overlays hold on to it; nobody needs the name.
	if err := unix.Unmount(upper, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach %s: %w", upper, err)
	}
	return os.Remove(upper)
}

// mountSys mounts the /sys of the thread's network namespace and puts the
// machine's control groups back under it.
func mountSys() error {
	cgroups := isMountPoint("/sys/fs/cgroup")
	tree := -1
	if cgroups {
		var err error
		tree, err = unix.OpenTree(unix.AT_FDCWD, "/sys/fs/cgroup", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("copy mounts of /sys/fs/cgroup: %w", err)
		}
		defer unix.Close(tree)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if !cgroups {
		return nil
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, "/sys/fs/cgroup", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	return nil
}

// mount is one line of mountinfo.
type mount struct{ point, fs string }

// mounts lists a mount namespace, in the order of mounting.
func mounts(mountinfo string) ([]mount, error) {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []mount
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 1 {
			continue
		}
		out = append(out, mount{point: unescape.Replace(l[4]), fs: r[0]})
	}
	return out, nil
}

func isMountPoint(dir string) bool {
	points, err := mounts("/proc/thread-self/mountinfo")
	return err == nil && slices.ContainsFunc(points, func(m mount) bool { return m.point == dir })
}
