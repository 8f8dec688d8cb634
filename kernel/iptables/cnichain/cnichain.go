// Package cnichain is what the CNI plugins keep in iptables where the kernel
// has no nf_tables: masquerading.
//
// It runs the programs itself and stands apart from kernel/iptables, because
// the process that links it lives for a few milliseconds.
package cnichain

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// The chains that the CNI plugins keep in the table nat, as iptables-save
// shows them:
//
//	-A POSTROUTING -m comment --comment flanneld-cni -j FLCNI-OUT
//	-A FLCNI-OUT -s <container> -m comment --comment "flanneld-cni <network>" -g FLCNI-<hash>
//	-A FLCNI-<hash> -d <inside> -j RETURN
//	-A FLCNI-<hash> -d 224.0.0.0/4 -j RETURN
//	-A FLCNI-<hash> -j MASQUERADE --random-fully
//
// Their names begin differently from those of the daemon's filter, which
// removes what it does not want.
const (
	Prefix   = "FLCNI-"
	outgoing = Prefix + "OUT"
	tag      = cnitable.Name
)

// Table is the table that the chains are in.
const Table = "nat"

// lockWait is how long, in seconds, a program waits for the xtables lock.
const lockWait = "10"

// Chains programs masquerading as cnitable.Table does. There is no guard:
// iptables does not see what a bridge forwards. Several processes may work at
// once. It works in the network namespace of whichever thread calls it and is
// not safe for concurrent use.
type Chains struct {
	// "": the -legacy ones, which kernels without nf_tables need, or where no
	// program has that name iptables and ip6tables.
	IPTables, IP6Tables string
}

// Close does nothing.
func (c *Chains) Close() error { return nil }

// Add masquerades what the attachment sends. Others may be nil; they are
// asked when somebody removed the chains. It fails with
// cnitable.ErrUnsupported if a guard is asked for, or if iptables is not
// installed.
func (c *Chains) Add(a cnitable.Attachment, others func() []cnitable.Attachment) error {
	if a.Guard {
		return fmt.Errorf("guard of port %s: %w", a.Link, cnitable.ErrUnsupported)
	}
	if !a.Masquerade {
		return nil
	}
	for _, v4 := range familiesOf(a) {
		err := c.change(v4, func(have table.Saved) string {
			all := []cnitable.Attachment{a}
			if _, there := have.Policy[outgoing]; !there && others != nil {
				all = append(all, slices.DeleteFunc(others(), func(o cnitable.Attachment) bool {
					return !o.Masquerade || o.Network != a.Network || o.Link == a.Link
				})...)
			}
			return script(have, v4, all)
		})
		if err != nil {
			return fmt.Errorf("masquerading for %s: %w", a.Link, err)
		}
	}
	return nil
}

// Remove takes out what Add put in for the attachment; what is not there is
// no error.
func (c *Chains) Remove(a cnitable.Attachment) error {
	if !a.Masquerade {
		return nil
	}
	return c.drop(func(from netip.Addr, _ string) bool { return slices.Contains(a.Addresses, from) }, familiesOf(a))
}

// drop removes the rules of those addresses and networks' chains that which
// tells.
func (c *Chains) drop(which func(from netip.Addr, chain string) bool, in []bool) error {
	for _, v4 := range in {
		err := c.change(v4, func(have table.Saved) string {
			var body strings.Builder
			for _, text := range have.Rules[outgoing] {
				if from, ok := sourceOf(text); ok && which(from, table.Target(text)) {
					fmt.Fprintf(&body, "-D %s %s\n", outgoing, text)
				}
			}
			return body.String()
		})
		if err != nil && !errors.Is(err, cnitable.ErrUnsupported) {
			return fmt.Errorf("remove masquerading: %w", err)
		}
	}
	return nil
}

// Missing says what of an attachment is not in the kernel; "" if all is there.
// More prefixes inside than the attachment's are none of its business.
func (c *Chains) Missing(a cnitable.Attachment) (string, error) {
	if !a.Masquerade {
		return "", nil
	}
	for _, v4 := range familiesOf(a) {
		have, err := c.read(v4)
		if err != nil {
			return "", err
		}
		want := networkChain(a, v4)
		if want.within(have.Rules[want.name]) && jumps(have) == 1 {
			for _, from := range addressesOf(a.Addresses, v4) {
				if targets := targetsOf(have, from); !slices.Equal(targets, []string{want.name}) {
					return fmt.Sprintf("masquerading of %s in iptables chain %s", from, outgoing), nil
				}
			}
			continue
		}
		return fmt.Sprintf("rules of iptables chains %s and %s in table %s", outgoing, want.name, Table), nil
	}
	return "", nil
}

// Prune removes a network's addresses but those that keep returns. Keep is
// called once, after they were listed: what is added meanwhile is not touched.
func (c *Chains) Prune(network string, keep func() (links map[string]bool, addresses map[netip.Addr]bool, err error)) error {
	mine := cnitable.NetworkChain(network)
	found := map[netip.Addr]bool{}
	for _, v4 := range families() {
		have, err := c.read(v4)
		if errors.Is(err, cnitable.ErrUnsupported) {
			continue
		}
		if err != nil {
			return err
		}
		for _, text := range have.Rules[outgoing] {
			if from, ok := sourceOf(text); ok && table.Target(text) == Prefix+mine {
				found[from] = true
			}
		}
	}
	_, kept, err := keep()
	if err != nil {
		return err
	}
	var stale []bool // families
	for from := range found {
		if kept[from] {
			delete(found, from)
		} else if !slices.Contains(stale, from.Is4()) {
			stale = append(stale, from.Is4())
		}
	}
	return c.drop(func(from netip.Addr, chain string) bool { return found[from] && chain == Prefix+mine }, stale)
}

// change applies what todo makes of the table, wholly or not at all, while no
// other Chains does.
func (c *Chains) change(v4 bool, todo func(have table.Saved) string) error {
	lock, err := lockNamespace()
	if err != nil {
		return err
	}
	defer lock.Close()
	have, err := c.read(v4)
	if err != nil {
		return err
	}
	body := todo(have)
	if body == "" {
		return nil
	}
	body = "*" + Table + "\n" + body + "COMMIT\n"
	_, err = c.run(v4, body, "-restore", "--noflush", "--wait", lockWait)
	if err != nil && strings.Contains(body, randomFully) { // unknown before 1.6.2, and to kernels before 3.14
		plain := strings.ReplaceAll(body, randomFully, "")
		if _, again := c.run(v4, plain, "-restore", "--noflush", "--wait", lockWait); again == nil {
			return nil
		}
	}
	return err
}

func (c *Chains) read(v4 bool) (table.Saved, error) {
	out, err := c.run(v4, "", "-save", "-t", Table)
	return table.Parse(out), err
}

// run runs a family's program. The error wraps cnitable.ErrUnsupported if it
// is not installed.
func (c *Chains) run(v4 bool, stdin, suffix string, args ...string) (string, error) {
	name, base := c.IP6Tables, "ip6tables"
	if v4 {
		name, base = c.IPTables, "iptables"
	}
	if name == "" {
		name = base + "-legacy"
		if _, err := exec.LookPath(name + suffix); err != nil {
			name = base
		}
	}
	cmd := exec.Command(name+suffix, args...)
	var out, said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: %w (Debian package iptables)", cnitable.ErrUnsupported, err)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// lockNamespace keeps other processes out until the file is closed: a lock on
// the network namespace itself is nobody else's and leaves nothing behind.
func lockNamespace() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
	}
}
