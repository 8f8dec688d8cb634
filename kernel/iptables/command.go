package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-iptables/iptables"

	"github.com/flanneld/flanneld/kernel/iptables/table"
)

// lockWait is how long, in seconds, a program waits for the xtables lock.
const lockWait = "10"

// command runs the programs of one family: NAME, NAME-save and NAME-restore.
type command struct {
	name        string // "iptables", "ip6tables-legacy", …
	nft         bool   // keeps its rules in nf_tables
	randomFully bool
	runs        *atomic.Int64 // programs run so far
	writes      atomic.Int64  // those of them that wrote
}

// newCommand finds the programs. The error wraps exec.ErrNotFound if they are
// not installed.
func newCommand(ctx context.Context, name string, v4 bool, runs *atomic.Int64) (*command, error) {
	proto := iptables.ProtocolIPv6
	if v4 {
		proto = iptables.ProtocolIPv4
	}
	runs.Add(2)
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(name))
	if err != nil {
		return nil, fmt.Errorf("%s (Debian package iptables): %w", name, err)
	}
	version, err := exec.CommandContext(ctx, name, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("run %s --version: %w", name, err)
	}
	return &command{
		name:        name,
		nft:         bytes.Contains(version, []byte("nf_tables")),
		randomFully: ipt.HasRandomFully(),
		runs:        runs,
	}, nil
}

// save returns the rules of a table.
func (c *command) save(ctx context.Context, name string) (table.Saved, error) {
	out, err := c.run(ctx, "", c.name+"-save", "-t", name)
	if err != nil {
		return table.Saved{}, err
	}
	return table.Parse(out), nil
}

// restore applies a script to a table, wholly or not at all, leaving alone
// what the script does not name.
func (c *command) restore(ctx context.Context, script string) error {
	c.writes.Add(1)
	_, err := c.run(ctx, script, c.name+"-restore", "--noflush", "--wait", lockWait)
	return err
}

func (c *command) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	c.runs.Add(1)
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", &runError{name: name, args: args, said: strings.TrimSpace(errs.String()), err: err}
	}
	return out.String(), nil
}

// runError is a program that was not satisfied.
type runError struct {
	name, said string
	args       []string
	err        error
}

func (e *runError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", e.name, strings.Join(e.args, " "), e.err, e.said)
}

// Unwrap returns the reason.
func (e *runError) Unwrap() error { return e.err }

func missing(err error) bool { return errors.Is(err, exec.ErrNotFound) }
