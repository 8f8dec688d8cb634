package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recordPath remembers, until the next boot, what was changed and what it was
// before.
const recordPath = "run/flannel/host.json"

// change is one thing that was changed.
type change struct {
	Name string `json:"name"`
	Was  string `json:"was,omitempty"`
	Is   string `json:"is,omitempty"`
	File bool   `json:"file,omitempty"` // Name is a file of ours
}

func (c change) String() string {
	if c.File || c.Was == "" && c.Is == "" {
		return c.Name
	}
	return c.Name + " " + c.Was + " → " + c.Is
}

func load(path string) ([]change, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []change
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("%s: %w (remove the file)", path, err)
	}
	return out, nil
}

// remember adds changes to the record. The first original value of a setting
// is kept, and what has it again is forgotten; a damaged record is begun anew.
func remember(path string, changes []change) error {
	have, err := load(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		have = nil
	}
	for _, c := range changes {
		known := false
		for i := range have {
			if have[i].Name == c.Name {
				known, have[i].Is = true, c.Is
			}
		}
		if !known {
			have = append(have, c)
		}
	}
	have = slices.DeleteFunc(have, func(c change) bool { return c.Was != "" && c.Was == c.Is })
	b, err := json.MarshalIndent(have, "", "  ")
	if err != nil {
		return err
	}
	_, err = write(path, string(b)+"\n")
	return err
}

// write replaces a file atomically unless it has this content.
func write(path, content string) (changed bool, err error) {
	if have, err := os.ReadFile(path); err == nil && string(have) == content {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".flanneld-*")
	if err != nil {
		return false, err
	}
	_, err = tmp.WriteString(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(tmp.Name()))
	}
	return true, nil
}

// Changes returns everything that was changed on this host since it booted,
// one line each, for status.
func Changes(o Options) ([]string, error) {
	s := setup{o: o}
	have, err := load(s.path(recordPath))
	var out []string
	for _, c := range have {
		out = append(out, c.String())
	}
	return out, err
}

// Cleanup removes our files and reports, one line each, what it did and what
// it leaves: settings of the kernel stay as they are, because other software
// may have come to rely on them (a container engine on forwarding) and cannot
// be asked. Only Localnet is taken back; call it before the packet filter goes.
func Cleanup(_ context.Context, o Options) (report []string, err error) {
	s := setup{o: o}
	have, err := load(s.path(recordPath))
	s.fail(err)
	for _, c := range have {
		if link, ok := localnetLink(c); ok {
			s.sysctl(localnetPath(link), "0", "1")
			continue
		}
		if !c.File && c.Was != "" {
			report = append(report, fmt.Sprintf("%s stays %s (it was %s)", c.Name, c.Is, c.Was))
		}
	}
	for _, c := range s.changes {
		report = append(report, c.String())
	}
	for _, f := range managerFiles(o) {
		if gone, err := remove(s.path(f.path)); err != nil {
			s.fail(err)
		} else if gone {
			report = append(report, "removed /"+f.path)
		}
	}
	_, err = remove(s.path(recordPath))
	s.fail(err)
	return report, errors.Join(s.errs...)
}

// localnetLink returns the link whose Localnet c has switched on.
func localnetLink(c change) (link string, ok bool) {
	name := sysctlName(c.Name) // swaps back
	link, ok = strings.CutPrefix(strings.TrimSuffix(name, "/route_localnet"), "net/ipv4/conf/")
	return link, ok && c.Was == "0" && name == localnetPath(link)
}

func remove(path string) (gone bool, err error) {
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
