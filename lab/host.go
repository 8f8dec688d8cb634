package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/flanneld/flanneld/kernel/link"
)

// Host is one host of a lab. Its methods may be called concurrently.
type Host struct {
	Name  string
	Addrs []netip.Prefix // of Interface when the lab was made, IPv4 first

	lab *Lab
}

// Addr is the host's IPv4 address on the underlay.
func (h *Host) Addr() netip.Addr { return h.Addrs[0].Addr() }

// Do runs f on a thread inside the host: processes that f starts run there,
// sockets that it opens and files that it names are the host's. Goroutines
// that f starts are not inside.
func (h *Host) Do(f func() error) error { return h.space().do(f) }

// ReadFile reads a file as the host sees it.
func (h *Host) ReadFile(path string) ([]byte, error) {
	var b []byte
	err := h.Do(func() (err error) {
		b, err = os.ReadFile(path)
		return err
	})
	return b, err
}

// WriteFile writes a file inside the host, making its directory.
func (h *Host) WriteFile(path string, b []byte) error {
	return h.Do(func() error {
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644))
	})
}

// Command is like exec.CommandContext for a program that runs inside the
// host. Its directory is the caller's where the host has it, else /; the
// lab's programs come first in its PATH.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, h.lab, h.space(), name, args)
}

// Unplug cuts the host off the underlay as pulling the cable at the switch
// does: the host's own interface loses its carrier.
func (h *Host) Unplug() error { return h.cable(false) }

// Plug undoes Unplug.
func (h *Host) Plug() error { return h.cable(true) }

func (h *Host) cable(in bool) error {
	if h.Name == switchName {
		return errors.New("the switch has no cable of its own: name a host")
	}
	return h.lab.Switch().wiring(func(w link.Wiring) error { return w.SetLink(h.Name, in) })
}

func (h *Host) space() space { return space{dir: h.dir()} }

func (h *Host) dir() string { return filepath.Join(h.lab.dir(), h.Name) }

func (h *Host) netnsFile() string { return filepath.Join(h.dir(), "net") }

// build makes the host's directory and namespaces.
func (h *Host) build() error {
	if err := os.Mkdir(h.dir(), 0o700); err != nil {
		return err
	}
	if err := makeSpace(h.dir(), h.Name); err != nil {
		return err
	}
	return h.wiring(link.Wiring.Loopback)
}

// address gives the interface its addresses and default routes.
func (h *Host) address() error {
	return h.wiring(func(w link.Wiring) error {
		for i, a := range h.Addrs {
			if err := w.AddAddress(Interface, a); err != nil {
				return err
			}
			if err := w.AddDefaultRoute(Interface, SwitchAddrs()[i].Addr()); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *Host) wiring(f func(link.Wiring) error) error {
	w, err := link.OpenWiringAt(h.netnsFile())
	if err != nil {
		return err
	}
	defer w.Close()
	return f(w)
}

// program finds one of our programs.
func (h *Host) program(name string) (string, error) {
	path := filepath.Join(h.lab.Programs, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: make build makes it, or say where it is with --programs", err)
	}
	return path, nil
}
