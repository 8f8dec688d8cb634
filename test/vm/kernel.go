package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is Debian's, unpacked.
type kernel struct {
	dir     string // of the package's files
	release string // as uname tells it
}

func (k kernel) image() string { return filepath.Join(k.dir, "boot", "vmlinuz-"+k.release) }
func (k kernel) tree() string  { return filepath.Join(k.dir, "lib", "modules", k.release) }

// metapackage depends on the kernel that this release of Debian offers today.
const metapackage = "linux-image-amd64"

// findKernel returns the kernel in the cache folder, having fetched it if
// there is none: an old one stays until make clean, so that a machine without
// a network keeps working. Two callers may do so at once.
func findKernel(ctx context.Context, cache string, out io.Writer) (kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, err
	}
	if k, err := inCache(cache); err == nil {
		return k, nil
	}
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(tmp)
	if err := fetch(ctx, tmp, out); err != nil {
		return kernel{}, fmt.Errorf("fetch Debian's kernel: %w", err)
	}
	if err := os.Rename(filepath.Join(tmp, "kernel"), filepath.Join(cache, "kernel")); err != nil {
		if k, other := inCache(cache); other == nil {
			return k, nil // somebody else was faster
		}
		return kernel{}, err
	}
	return inCache(cache)
}

func inCache(cache string) (kernel, error) {
	trees, err := filepath.Glob(filepath.Join(cache, "kernel", "lib", "modules", "*"))
	if err != nil {
		return kernel{}, err
	}
	if len(trees) != 1 {
		return kernel{}, fmt.Errorf("%s has %d kernels", cache, len(trees))
	}
	return kernel{filepath.Join(cache, "kernel"), filepath.Base(trees[0])}, nil
}

// fetch unpacks the package into dir/kernel. It is not installed: the machine
// gets no second kernel.
func fetch(ctx context.Context, dir string, out io.Writer) error {
	name, err := packageName(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "fetching %s (70 MB, once)\n", name)
	if err := download(ctx, dir, name); err != nil {
		// The lists of packages are older than what the mirror has.
		update := []string{"apt-get", "update", "-q"}
		if os.Geteuid() != 0 {
			update = append([]string{"sudo"}, update...)
		}
		if _, again := output(ctx, dir, update...); again != nil {
			return errors.Join(err, again)
		}
		if name, err = packageName(ctx); err != nil {
			return err
		}
		if err = download(ctx, dir, name); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download left %d packages in %s: %w", len(debs), dir, err)
	}
	to := filepath.Join(dir, "kernel")
	if _, err := output(ctx, dir, "dpkg-deb", "-x", debs[0], to); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(to, "usr")); err != nil { // documentation
		return err
	}
	trees, err := os.ReadDir(filepath.Join(to, "lib", "modules"))
	if err != nil {
		return err
	}
	for _, t := range trees {
		if _, err := output(ctx, dir, "depmod", "-b", to, t.Name()); err != nil {
			return err
		}
	}
	return nil
}

// packageName resolves the metapackage from apt's lists.
func packageName(ctx context.Context) (string, error) {
	text, err := output(ctx, ".", "apt-cache", "depends", "--important", metapackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if _, name, ok := strings.Cut(line, "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("apt knows no %s: is this Debian on amd64?", metapackage)
}

// download fetches as this user; apt's own has no access to our folders.
func download(ctx context.Context, dir, name string) error {
	argv := []string{"apt-get", "download", "-q", name}
	if os.Geteuid() == 0 {
		argv = slices.Insert(argv, 1, "-o", "APT::Sandbox::User=root")
	}
	_, err := output(ctx, dir, argv...)
	return err
}

// output runs a program to its end; its error says what the program said.
func output(ctx context.Context, dir string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+path())
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return string(out), err
}
