package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// conflist is a network configuration list of the CNI specification 1.1.0.
// Engines before it read cniVersion, later ones choose from cniVersions.
type conflist struct {
	CNIVersion  string           `json:"cniVersion"`
	CNIVersions []string         `json:"cniVersions"`
	Name        string           `json:"name"`
	Plugins     []map[string]any `json:"plugins"`
}

// render makes the conflist. Port mapping is somebody else's plugin: it is
// listed only where its executable is, because a list that names a missing
// plugin fails as a whole.
func render(name string, portmap bool) []byte {
	list := conflist{
		CNIVersion:  "1.0.0",
		CNIVersions: []string{"0.4.0", "1.0.0", "1.1.0"},
		Name:        name,
		Plugins: []map[string]any{{
			"type":             "flanneld-bridge",
			"isDefaultGateway": true,
			"hairpinMode":      true,
			"ipam":             map[string]any{"type": "flanneld-ipam"},
			"capabilities":     map[string]bool{"aliases": true},
		}},
	}
	if portmap {
		list.Plugins = append(list.Plugins, map[string]any{
			"type":         "portmap",
			"capabilities": map[string]bool{"portMappings": true},
		})
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		panic(err) // nothing in it can fail to encode
	}
	return append(text, '\n')
}

// writeConflist reports whether the file was kept.
func writeConflist(o Options) (kept bool, err error) {
	path := o.conflist()
	if !o.Force {
		switch mine, err := ours(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, err
		case mine:
			return true, nil
		default:
			return false, fmt.Errorf("%s: %w: --force overwrites it, --name chooses another name", path, ErrForeign)
		}
	}
	_, err = os.Stat(filepath.Join(o.BinDir, "portmap"))
	text := render(o.Name, err == nil)
	err = replace(path, 0o644, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("write network configuration: %w", err)
	}
	return false, nil
}

// ours reports whether a conflist's first plugin is this project's.
func ours(path string) (bool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(text, &list) != nil {
		return false, nil //nolint:nilerr // not JSON: not ours
	}
	return len(list.Plugins) > 0 && list.Plugins[0].Type == plugins[0], nil
}

// sortedBefore lists configurations that engines find earlier than ours.
func sortedBefore(o Options) ([]string, error) {
	entries, err := os.ReadDir(o.ConfDir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("list network configurations: %w", err)
	}
	var first []string
	for _, e := range entries {
		if e.Name() >= filepath.Base(o.conflist()) {
			break
		}
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			first = append(first, filepath.Join(o.ConfDir, e.Name()))
		}
	}
	return first, nil
}
