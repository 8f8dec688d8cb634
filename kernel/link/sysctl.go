package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Sysctl reads a setting of the handle's namespace, such as
// "net", "ipv4", "conf", "all", "rp_filter". ErrNotFound if the kernel has no
// such setting.
func (h *Handle) Sysctl(elements ...string) (value string, err error) {
	file, err := sysctlFile(elements)
	if err != nil {
		return "", err
	}
	err = h.inside(func() error {
		raw, err := os.ReadFile(file)
		value = strings.TrimSpace(string(raw))
		return err
	})
	return value, sysctlError("read", file, err)
}

// SetSysctl writes a setting of the handle's namespace.
func (h *Handle) SetSysctl(value string, elements ...string) error {
	file, err := sysctlFile(elements)
	if err != nil {
		return err
	}
	h.writes++
	err = h.inside(func() error {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
	return sysctlError("set to "+value, file, err)
}

// sysctlFile joins the elements, of which some may be interface names: those
// may hold a dot, but nothing that leads elsewhere.
func sysctlFile(elements []string) (string, error) {
	for _, e := range elements {
		if e == "" || e == "." || e == ".." || strings.ContainsAny(e, "/\x00") {
			return "", fmt.Errorf("sysctl %q: %q is no file name", elements, e)
		}
	}
	return path.Join("/proc/sys", path.Join(elements...)), nil
}

func sysctlError(what, file string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("sysctl %s: %w", file, ErrNotFound)
	default: // names the file
		return fmt.Errorf("sysctl, %s: %w", what, err)
	}
}
