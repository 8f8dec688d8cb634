// Package install puts the CNI plugins where container engines look for them.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Plugins are the executables that are copied.
var plugins = []string{"flanneld-bridge", "flanneld-ipam"}

// ErrForeign: a file that somebody else made stands where ours would go.
var ErrForeign = errors.New("not written by flanneld")

// Options say what goes where. The zero value is what most engines expect.
type Options struct {
	From       string // folder the executables are copied from; "": where this program is
	BinDir     string // "": /opt/cni/bin
	ConfDir    string // "": /etc/cni/net.d
	Name       string // of the network in the conflist and in the file's name; "": flannel
	SubnetFile string // written by the daemon when the network is ready; "": /run/flannel/subnet.env
	// Force overwrites a conflist that is there, whoever wrote it.
	Force bool
	// Waiting is called once if SubnetFile is not there yet; nil: quiet.
	Waiting func(file string)
}

// Result says what Run did.
type Result struct {
	Binaries []string // complete paths
	Conflist string   // complete path
	// Kept: the conflist was there, is one of ours, and was left as it is.
	Kept bool
	// First lists other configurations in ConfDir that sort before ours:
	// containerd and CRI-O take the first.
	First []string
}

// validName is what the CNI specification allows as a network's name, short
// enough for a file.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

func (o Options) complete() (Options, error) {
	for field, value := range map[*string]string{
		&o.BinDir: "/opt/cni/bin", &o.ConfDir: "/etc/cni/net.d",
		&o.Name: "flannel", &o.SubnetFile: "/run/flannel/subnet.env",
	} {
		if *field == "" {
			*field = value
		}
	}
	if !validName.MatchString(o.Name) {
		return o, fmt.Errorf("network name %q: use up to 64 letters, digits, '_', '.' and '-', beginning with a letter or digit", o.Name)
	}
	if o.From == "" {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("find the folder of this program: %w", err)
		}
		o.From = filepath.Dir(self)
	}
	return o, nil
}

func (o Options) conflist() string { return filepath.Join(o.ConfDir, "10-"+o.Name+".conflist") }

// Run copies the plugins and then writes the conflist, each by a rename, so
// that an engine never sees half a file. The conflist is what makes an engine
// believe in a network, so Run waits with it for the subnet file until ctx
// ends. It may be repeated: binaries are replaced, a conflist of ours is kept
// as the admin left it (see Options.Force), and somebody else's is ErrForeign.
func Run(ctx context.Context, o Options) (Result, error) {
	o, err := o.complete()
	if err != nil {
		return Result{}, err
	}
	res := Result{Conflist: o.conflist()}
	if err := os.MkdirAll(o.BinDir, 0o755); err != nil {
		return res, fmt.Errorf("make folder for plugins: %w", err)
	}
	for _, name := range plugins {
		to := filepath.Join(o.BinDir, name)
		if err := copyFile(filepath.Join(o.From, name), to); err != nil {
			return res, fmt.Errorf("install plugin %s: %w", name, err)
		}
		res.Binaries = append(res.Binaries, to)
	}
	if err := waitReady(ctx, o); err != nil {
		return res, err
	}
	if err := os.MkdirAll(o.ConfDir, 0o755); err != nil {
		return res, fmt.Errorf("make folder for network configuration: %w", err)
	}
	res.Kept, err = writeConflist(o)
	if err != nil {
		return res, err
	}
	res.First, err = sortedBefore(o)
	return res, err
}

// Remove takes away what Run put there: the plugins, and the conflist if it is
// one of ours. What is already gone, or somebody else's, is no error.
func Remove(o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	var errs []error
	switch mine, err := ours(o.conflist()); {
	case mine:
		errs = append(errs, remove(o.conflist()))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		errs = append(errs, err)
	}
	for _, name := range plugins {
		errs = append(errs, remove(filepath.Join(o.BinDir, name)))
	}
	return errors.Join(errs...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// waitReady returns when the subnet file names a subnet.
func waitReady(ctx context.Context, o Options) error {
	const poll = 200 * time.Millisecond // a folder that may not exist yet cannot be watched
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for told := false; ; {
		ready, err := hasSubnet(o.SubnetFile)
		if err != nil {
			return err
		}
		if ready {
			return nil
		}
		if !told && o.Waiting != nil {
			o.Waiting(o.SubnetFile)
			told = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the network is not ready: %s does not name a subnet; is flanneld running? (%w)", o.SubnetFile, context.Cause(ctx))
		}
	}
}

func hasSubnet(file string) (bool, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read subnet file: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if (key == "FLANNEL_SUBNET" || key == "FLANNEL_IPV6_SUBNET") && value != "" {
			return true, nil
		}
	}
	return false, nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return replace(to, 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// replace writes path by way of a temporary file beside it, whose name no
// engine takes for a configuration.
func replace(path string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(tmp.Name()))
		}
	}()
	err = errors.Join(write(tmp), tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
