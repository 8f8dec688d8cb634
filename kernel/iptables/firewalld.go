package iptables

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
	"sync/atomic"
	"time"

	"github.com/flanneld/flanneld/kernel/nft"
)

// firewalldTable is firewalld's own nftables table: it is there while
// firewalld runs, and made anew by each reload.
const firewalldTable = "firewalld"

// firewalldPatience bounds one firewall-cmd, a program that may take a second
// to start.
const firewalldPatience = 15 * time.Second

// firewalld makes networks sources of the trusted zone.
type firewalld struct {
	state string // file; ""
	runs  *atomic.Int64
	seen  uint64
	added []string
	// problem says why firewalld cannot be told, since failed; "" if it can.
	problem string
	failed  time.Time
}

// firewalldRetry is how long a firewalld that left its rules behind, or is
// busy, is not asked again.
const firewalldRetry = time.Minute

// due tells whether it is time to ask again.
func (f *firewalld) due() bool { return f.problem != "" && time.Since(f.failed) > firewalldRetry }

// sync runs firewall-cmd only after firewalld started or was reloaded.
func (f *firewalld) sync(ctx context.Context, w *nft.Watch, networks []netip.Prefix) error {
	id, err := w.Table(nft.INet, firewalldTable)
	if err != nil || id == f.seen && !f.due() {
		return err
	}
	f.problem = ""
	if id == 0 {
		f.seen = 0
		return nil
	}
	out, err := f.run(ctx, "--zone=trusted", "--list-sources")
	if absent(err) {
		f.seen, f.failed = id, time.Now()
		f.problem = "nftables table inet " + firewalldTable + " drops what it does not accept and firewalld does not answer: start firewalld, or delete the table"
		return nil
	}
	if err != nil {
		return err
	}
	have := strings.Fields(out)
	var add []string
	for _, n := range networks {
		if !slices.Contains(have, n.String()) {
			add = append(add, n.String())
		}
	}
	if len(add) > 0 {
		if err := f.remember(add); err != nil {
			return err
		}
		if err := f.change(ctx, "add", add); err != nil {
			return err
		}
	}
	f.seen = id
	return nil
}

// remove takes away the sources that sync added.
func (f *firewalld) remove(ctx context.Context) error {
	f.seen = 0
	f.recall()
	if len(f.added) == 0 {
		return nil
	}
	out, err := f.run(ctx, "--zone=trusted", "--list-sources")
	if err != nil && !absent(err) {
		return err
	}
	have := strings.Fields(out)
	gone := slices.DeleteFunc(slices.Clone(f.added), func(n string) bool { return !slices.Contains(have, n) })
	if len(gone) > 0 {
		if err := f.change(ctx, "remove", gone); err != nil {
			return err
		}
	}
	f.added = nil
	if f.state == "" {
		return nil
	}
	if err := os.Remove(f.state); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// absent tells whether there is no firewalld to talk to.
func absent(err error) bool {
	var e *runError
	return errors.Is(err, exec.ErrNotFound) ||
		errors.As(err, &e) && (strings.Contains(e.said, "not running") || strings.Contains(e.said, "DBUS_ERROR"))
}

func (f *firewalld) change(ctx context.Context, verb string, networks []string) error {
	args := []string{"--zone=trusted"}
	for _, n := range networks {
		args = append(args, "--"+verb+"-source="+n)
	}
	if _, err := f.run(ctx, args...); err != nil {
		return fmt.Errorf("%s the pod network in firewalld's trusted zone: %w", verb, err)
	}
	return nil
}

func (f *firewalld) run(ctx context.Context, args ...string) (string, error) {
	f.runs.Add(1)
	ctx, cancel := context.WithTimeout(ctx, firewalldPatience)
	defer cancel()
	const name = "firewall-cmd"
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", &runError{name: name, args: args, said: strings.TrimSpace(errs.String() + out.String()), err: err}
	}
	return out.String(), nil
}

// remember notes, before it is done, what is going to be added.
func (f *firewalld) remember(networks []string) error {
	f.recall()
	f.added = append(f.added, networks...)
	slices.Sort(f.added)
	f.added = slices.Compact(f.added)
	if f.state == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(f.state), 0o755); err != nil {
		return err
	}
	return os.WriteFile(f.state, []byte(strings.Join(f.added, "\n")+"\n"), 0o600)
}

func (f *firewalld) recall() {
	if f.state == "" {
		return
	}
	b, err := os.ReadFile(f.state)
	if err != nil {
		return // nothing was added
	}
	for _, word := range strings.Fields(string(b)) {
		if p, err := netip.ParsePrefix(word); err == nil && !slices.Contains(f.added, p.String()) {
			f.added = append(f.added, p.String())
		}
	}
}
