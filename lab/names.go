package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// labelled gives every plugin of a CNI configuration list the labels, where the
// conventions put them: args.cni.labels.
func labelled(conflist string, labels map[string]string) (json.RawMessage, error) {
	if len(labels) == 0 {
		return json.RawMessage(conflist), nil
	}
	var list map[string]any
	if err := json.Unmarshal([]byte(conflist), &list); err != nil {
		return nil, err
	}
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	var ls []label
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		ls = append(ls, label{k, labels[k]})
	}
	plugins, ok := list["plugins"].([]any)
	if !ok {
		return nil, errors.New("it has no list of plugins")
	}
	for i := range plugins {
		plugin, ok := plugins[i].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("plugin %d is no object", i)
		}
		args, _ := plugin["args"].(map[string]any) // others' are kept
		if args == nil {
			args = map[string]any{}
		}
		cni, _ := args["cni"].(map[string]any)
		if cni == nil {
			cni = map[string]any{}
		}
		cni["labels"], args["cni"], plugin["args"] = ls, cni, args
	}
	return json.Marshal(list)
}

// resolvConf is where a container's resolv.conf is, on its host. iproute2 looks
// there too (ip-netns(8)).
func resolvConf(container string) string { return "/etc/netns/" + container + "/resolv.conf" }

// writeResolvConf writes what the plugins say about DNS. Without servers the
// container has its host's resolv.conf. It runs on the host.
func (c *Container) writeResolvConf(d types.DNS) error {
	if len(d.Nameservers) == 0 {
		return nil
	}
	var b strings.Builder
	for _, s := range d.Nameservers {
		fmt.Fprintln(&b, "nameserver", s)
	}
	if d.Domain != "" {
		fmt.Fprintln(&b, "domain", d.Domain)
	}
	if len(d.Search) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(d.Search, " "))
	}
	if len(d.Options) > 0 {
		fmt.Fprintln(&b, "options", strings.Join(d.Options, " "))
	}
	path := resolvConf(c.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return err
	}
	// It is mounted over what is there. A symbolic link may lead to /run, which
	// is not the machine's in here.
	if _, err := os.Stat("/etc/resolv.conf"); errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove("/etc/resolv.conf") // else writing says why
		return os.WriteFile("/etc/resolv.conf", nil, 0o644)
	}
	return nil
}

// mountResolvConf gives the calling thread's private mount namespace the
// container's resolv.conf, if it has one.
func mountResolvConf(container string) error {
	err := unix.Mount(resolvConf(container), "/etc/resolv.conf", "", unix.MS_BIND, "")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount resolv.conf of container %s: %w", container, err)
	}
	return nil
}
