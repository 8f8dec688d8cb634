package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/kernel/link"
)

// offloadFile lists the interfaces whose checksum offload --fix-offload
// switched off, one a line, so that without the flag it is switched on again.
const offloadFile = config.StateDir + "/fix-offload"

// fixOffload keeps checksum offload of the tunnel's interfaces off while that
// is asked for, and undoes it when it is no longer.
func (n *network) fixOffload() error {
	h := n.kernel.handle
	if !n.cfg.FixOffload {
		if n.unfixed {
			return nil
		}
		err := restoreOffload(h)
		n.unfixed = err == nil
		return err
	}
	info := n.device.Info()
	if info.Protocol == 0 {
		return nil // no tunnel
	}
	names, err := tunnelLinks(h, links(info))
	if err != nil {
		return fmt.Errorf("--fix-offload: %w", err)
	}
	var errs []error
	for _, name := range names {
		on, err := h.TxChecksums(name)
		if err == nil && on {
			// Noted first: killed in between, the next daemon still undoes it.
			if err = note(offloadFile, name); err == nil {
				err = h.SetTxChecksums(name, false)
			}
			if err == nil {
				n.log.Info("host set up", "change", "checksum offload of "+name+" off (--fix-offload)")
			}
		}
		if err != nil && !errors.Is(err, link.ErrNoLink) {
			errs = append(errs, fmt.Errorf("--fix-offload: %w", err))
		}
	}
	return errors.Join(errs...)
}

// tunnelLinks resolves names that end in *.
func tunnelLinks(h *link.Handle, names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		prefix, many := strings.CutSuffix(name, "*")
		if !many {
			out = append(out, name)
			continue
		}
		all, err := h.Links("")
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			if strings.HasPrefix(l.Name, prefix) {
				out = append(out, l.Name)
			}
		}
	}
	return out, nil
}

// note adds a line to a file unless it is there.
func note(path, line string) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, l := range strings.Fields(string(text)) {
		if l == line {
			return nil
		}
	}
	return os.WriteFile(path, append(text, line+"\n"...), 0o600)
}

// restoreOffload switches on what fixOffload switched off. Interfaces that are
// gone need nothing.
func restoreOffload(h *link.Handle) error {
	text, err := os.ReadFile(offloadFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range strings.Fields(string(text)) {
		if err := h.SetTxChecksums(name, true); err != nil && !errors.Is(err, link.ErrNoLink) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo --fix-offload: %w", err)
	}
	return os.Remove(offloadFile)
}
