package extension

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/subnet"
)

// mostData is what a hook may say, and hear from another host's.
const mostData = 4 << 10

// input is what a hook is told beside its standard input. It holds nothing but
// addresses and this host's own interface.
type input struct {
	Networks  []netip.Prefix `json:",omitempty"`
	Subnets   []netip.Prefix
	PublicIPs []netip.Addr
	Interface string
	MTU       int
	Data      string // for the standard input, as far as peers are concerned
}

func (in input) equal(o input) bool {
	return in.Interface == o.Interface && in.MTU == o.MTU && in.Data == o.Data && slices.Equal(in.Networks, o.Networks) &&
		slices.Equal(in.Subnets, o.Subnets) && slices.Equal(in.PublicIPs, o.PublicIPs)
}

// environment has flannel's variables, and those that it promises for IPv6.
// The daemon's own may hold etcd's password and are not passed on.
func (in input) environment(hook string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C",
		"HOOK=" + strings.TrimSuffix(hook, "Command"), "IFACE=" + in.Interface, fmt.Sprintf("MTU=%d", in.MTU)}
	for _, n := range in.Networks {
		env = append(env, pick(n.Addr(), "NETWORK=", "IPV6NETWORK=")+n.String())
	}
	for _, s := range in.Subnets {
		env = append(env, pick(s.Addr(), "SUBNET=", "IPV6SUBNET=")+s.String())
	}
	for _, a := range in.PublicIPs {
		env = append(env, pick(a, "PUBLIC_IP=", "PUBLIC_IPV6=")+a.String())
	}
	return env
}

func pick(a netip.Addr, v4, v6 string) string {
	if a.Is4() {
		return v4
	}
	return v6
}

// hooks are programs of a directory.
type hooks struct {
	dir      string
	commands commands
}

// present says which hook this host lacks, or would not run.
func (h hooks) present() error {
	for _, hook := range []string{preStartup, postStartup, subnetAdd, subnetRemove, shutdown} {
		if _, err := h.path(hook); err != nil {
			return err
		}
	}
	return nil
}

// path is a hook's file, "" without a hook; a *subnet.ConfigError if it must
// not be run.
func (h hooks) path(hook string) (string, error) {
	name := h.commands[hook]
	if name == "" {
		return "", nil
	}
	path := filepath.Join(h.dir, name)
	if err := trusted(path); err != nil {
		return "", &subnet.ConfigError{Field: "Backend." + hook, Value: name, Remedy: err.Error()}
	}
	return path, nil
}

// trusted says why a program is not to be run: nobody but root may be able to
// have changed it, or put it there.
func trusted(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return fmt.Errorf("this host has no such hook: put an executable file there, on every host (%w)", err)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s must be a file, not a link or anything else", path)
	case fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s cannot be executed: chmod 755 %s", path, path)
	}
	for {
		// In a directory like /tmp others may add, but not touch what is there.
		shared := fi.IsDir() && fi.Mode()&os.ModeSticky != 0
		if owner := fi.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
			return fmt.Errorf("%s belongs to user %d: chown root %s", path, owner, path)
		}
		if fi.Mode()&0o022 != 0 && !shared {
			return fmt.Errorf("%s can be written to by others than root: chmod go-w %s", path, path)
		}
		if path == "/" || path == "." {
			return nil
		}
		path = filepath.Dir(path)
		if fi, err = os.Lstat(path); err != nil {
			return err
		}
	}
}

// errSlow: a hook was ended by force.
var errSlow = fmt.Errorf("killed because it took more than %v", hookTime)

// run runs a hook and returns what it wrote to its standard output, without
// space around it. No shell is involved. What it wrote to its standard error
// is in the error.
func (h hooks) run(ctx context.Context, ns *netns.NS, hook string, in input, stdin string) (string, error) {
	path, err := h.path(hook)
	if err != nil {
		return "", err
	}
	// A hook that has begun ends, also where the daemon does.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	var out, said limited
	cmd.Dir, cmd.Env, cmd.Stdin = "/", in.environment(hook), strings.NewReader(stdin+"\n")
	cmd.Stdout, cmd.Stderr = &out, &said
	// Its children go with it, or keep nobody waiting.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err = ns.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		err = errSlow
	case errors.Is(err, exec.ErrWaitDelay): // something in the background goes on
		err = nil
	}
	if err != nil {
		if text := strings.TrimSpace(said.String() + " " + out.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, clip(text))
		}
		return "", fmt.Errorf("%s %s: %w", hook, path, err)
	}
	return strings.TrimSpace(out.String()), nil
}

// limited keeps the beginning of what is written to it, and one byte more than
// allowed so that too much can be told.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := mostData + 1 - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// harmless tells whether a text may go from one host to another's hook: lines
// of graphic characters.
func harmless(s string) bool {
	return len(s) <= mostData && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) && r != '\n' && r != '\t' })
}

// clip makes the output of a hook fit for an error.
func clip(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(s), " "))
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}
