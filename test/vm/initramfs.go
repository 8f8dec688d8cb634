package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/test/vm/plan"
)

// early are the modules without which the guest has no root or no way to
// answer.
var early = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// modules resolves names to files below tree, dependencies first.
func modules(tree string, names []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // by file, in the order of loading
	file := map[string]string{}    // by name
	for line := range strings.Lines(string(text)) {
		path, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs[path] = strings.Fields(rest)
		slices.Reverse(needs[path]) // modprobe's own order
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		file[strings.ReplaceAll(name, "-", "_")] = path
	}
	var all []string
	for _, name := range names {
		path, ok := file[name]
		if !ok {
			return nil, fmt.Errorf("%s has no module %s", tree, name)
		}
		for _, f := range append(needs[path], path) {
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// writeInitramfs makes the archive that the guest boots from: its program, the
// plan and the early modules, whose names it adds to the plan.
func writeInitramfs(ctx context.Context, to string, k kernel, guest string, p plan.Plan) error {
	program, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	files, err := modules(k.tree(), early)
	if err != nil {
		return err
	}
	a := &cpio{}
	a.add("init", 0o100755, program)
	a.add("modules", 0o040755, nil)
	for _, f := range files {
		code, err := readModule(ctx, filepath.Join(k.tree(), f))
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(f), ".")
		p.Early = append(p.Early, name)
		a.add("modules/"+name, 0o100644, code)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	a.add(strings.TrimPrefix(plan.File, "/"), 0o100644, text)
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	a.writeTo(w)
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// readModule returns a module as the kernel wants it. Debian compresses them
// since version 13.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		text, err := output(ctx, ".", "xz", "-dc", path)
		return []byte(text), err
	}
	return os.ReadFile(path)
}

// cpio is an archive in the kernel's "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct{ b bytes.Buffer }

// add appends a file; folders must come before what they contain.
func (c *cpio) add(name string, mode uint32, content []byte) {
	fmt.Fprintf(&c.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	c.b.WriteString(name + "\x00")
	c.pad()
	c.b.Write(content)
	c.pad()
}

func (c *cpio) pad() {
	for c.b.Len()%4 != 0 {
		c.b.WriteByte(0)
	}
}

// writeTo ends the archive.
func (c *cpio) writeTo(w io.Writer) {
	c.add("TRAILER!!!", 0, nil)
	_, _ = w.Write(c.b.Bytes()) // a bufio.Writer's error stays until Flush
}
