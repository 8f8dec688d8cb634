package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/flanneld/flanneld/test/vm/plan"
	"golang.org/x/sys/unix"
)

// fs is something to mount; its folder is made if it is missing.
type fs struct {
	at, kind, source string
	flags            uintptr
	options          string
}

func mountAll(all []fs) error {
	for _, m := range all {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		source := m.source
		if source == "" {
			source = m.kind
		}
		if err := unix.Mount(source, m.at, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s (%s) on %s: %w", source, m.kind, m.at, err)
		}
	}
	return nil
}

// takeRoot makes the machine's own root this one's. What is written goes to
// memory: the machine never sees it, and programs find no read-only file
// system where they do not expect one.
func takeRoot() error {
	err := mountAll([]fs{
		{at: "/lower", kind: "9p", source: plan.Root, flags: unix.MS_RDONLY,
			options: "trans=virtio,version=9p2000.L,msize=512000,cache=loose"},
		{at: "/upper", kind: "tmpfs"},
	})
	if err != nil {
		return err
	}
	err = errors.Join(os.Mkdir("/upper/changes", 0o755), os.Mkdir("/upper/work", 0o755))
	if err != nil {
		return err
	}
	err = mountAll([]fs{{at: "/new", kind: "overlay", options: "lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work"}})
	if err != nil {
		return err
	}
	// As switch_root does.
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// settle mounts what every Linux has, and puts the kernel's modules where
// modprobe, also the kernel's own calls of it, looks for them.
func settle(p *plan.Plan) error {
	kept, err := unix.OpenTree(unix.AT_FDCWD, p.Keep, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep %s: %w", p.Keep, err)
	}
	defer unix.Close(kept)
	err = mountAll([]fs{
		{at: "/proc", kind: "proc"},
		{at: "/sys", kind: "sysfs"},
		{at: "/sys/fs/cgroup", kind: "cgroup2"},
		{at: "/dev", kind: "devtmpfs"},
		{at: "/dev/pts", kind: "devpts", options: "ptmxmode=666"},
		{at: "/dev/shm", kind: "tmpfs"},
		{at: "/run", kind: "tmpfs", options: "mode=755"},
		{at: "/tmp", kind: "tmpfs", options: "mode=1777"},
		// Not on the overlay: containers make overlays of their own there.
		{at: "/var/lib/containers", kind: "tmpfs"},
		{at: "/var/lib/containerd", kind: "tmpfs"},
		{at: "/var/lib/docker", kind: "tmpfs"},
		{at: "/var/tmp", kind: "tmpfs", options: "mode=1777"},
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.Keep, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(kept, "", unix.AT_FDCWD, p.Keep, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s again: %w", p.Keep, err)
	}
	if err := unix.Sethostname([]byte("vm")); err != nil {
		return err
	}
	modules := filepath.Join("/lib/modules", filepath.Base(p.Tree))
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(p.Tree, modules, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", p.Tree, modules, err)
	}
	for _, name := range p.Without {
		if err := hide(modules, name); err != nil {
			return err
		}
	}
	return nil
}

// hide makes a module one that cannot be loaded, nor those that need it.
func hide(tree, name string) error {
	list, err := os.Open(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return err
	}
	defer list.Close()
	for lines := bufio.NewScanner(list); lines.Scan(); {
		path, _, _ := strings.Cut(lines.Text(), ":")
		file, _, _ := strings.Cut(filepath.Base(path), ".")
		if strings.ReplaceAll(file, "-", "_") == name {
			return unix.Mount("/dev/null", filepath.Join(tree, path), "", unix.MS_BIND, "")
		}
	}
	return fmt.Errorf("without %s: this kernel has no such module", name)
}
