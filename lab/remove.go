package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Remove takes down the lab of that name, or what is left of one: every
// process in its namespaces and their children are killed, then mounts and
// files go, and the namespaces with them. No lab of that name: nothing to do.
func Remove(ctx context.Context, name string) error {
	if err := checkName("lab", name); err != nil {
		return err
	}
	dir := filepath.Join(Root, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	spaces, err := namespacesOf(dir)
	if err == nil && len(spaces) > 0 {
		err = kill(ctx, spaces)
	}
	if err != nil {
		return fmt.Errorf("take down lab %s: %w", name, err)
	}
	points, err := mounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(points) {
		if m.point != dir && !strings.HasPrefix(m.point, dir+"/") {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.point, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Remove(Root); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// kill kills until no process is left in these namespaces.
func kill(ctx context.Context, spaces map[nsID]bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		pids, err := processesIn(spaces)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", pids, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// nsID tells namespaces apart.
type nsID struct{ dev, ino uint64 }

// namespacesOf lists the network and mount namespaces of a lab: its hosts'
// and those of the containers in them.
func namespacesOf(dir string) (map[nsID]bool, error) {
	out := map[nsID]bool{}
	hosts, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		s := space{dir: filepath.Join(dir, h.Name())}
		for _, kind := range []string{"net", "mnt"} {
			if id, ok := namespaceAt(filepath.Join(s.dir, kind)); ok {
				out[id] = true
			}
		}
		// A host that was not finished cannot be entered and has no
		// containers.
		err := s.do(func() error {
			names, err := os.ReadDir("/run/netns")
			for _, n := range names {
				if id, ok := namespaceAt(filepath.Join("/run/netns", n.Name())); ok {
					out[id] = true
				}
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTDIR) {
			return nil, err
		}
	}
	return out, nil
}

// namespaceAt returns the namespace that a file keeps; false if it is an
// ordinary file or there is none.
func namespaceAt(path string) (nsID, bool) {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return nsID{}, false
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return nsID{}, false
	}
	return nsID{st.Dev, st.Ino}, true
}

// processesIn lists the processes in these namespaces and all their
// descendants, but not this process.
func processesIn(spaces map[nsID]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	found := map[int]bool{}
	var queue []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		parent := parentOf(pid)
		children[parent] = append(children[parent], pid)
		for _, kind := range []string{"net", "mnt"} {
			if id, ok := namespaceAt(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); ok && spaces[id] && !found[pid] {
				found[pid] = true
				queue = append(queue, pid)
			}
		}
	}
	for len(queue) > 0 {
		pid := queue[0]
		queue = queue[1:]
		for _, c := range children[pid] {
			if !found[c] && !isZombie(c) {
				found[c] = true
				queue = append(queue, c)
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// parentOf reads a process's parent; 0 if it is gone.
func parentOf(pid int) int {
	fields := statOf(pid)
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

func isZombie(pid int) bool {
	fields := statOf(pid)
	return len(fields) == 0 || fields[0] == "Z" || fields[0] == "X"
}

// statOf returns the fields of /proc/<pid>/stat that follow the program's
// name, the state first; none if there is no such process.
func statOf(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	s := string(b)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
}
