package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Cmd is an exec.Cmd that starts inside a host or container. Only the
// methods below start it in there.
type Cmd struct {
	*exec.Cmd
	space space
}

// newCmd prefers the lab's programs to those of the PATH, for the command
// itself and for what it runs.
func newCmd(ctx context.Context, l *Lab, s space, name string, args []string) *Cmd {
	path := name
	if !strings.Contains(name, "/") {
		if p, err := exec.LookPath(filepath.Join(l.Programs, name)); err == nil {
			path = p
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Env = append(os.Environ(), "PATH="+l.Programs+":"+os.Getenv("PATH"))
	return &Cmd{Cmd: cmd, space: s}
}

// Start starts the program and does not wait for it.
func (c *Cmd) Start() error {
	wd, wdErr := os.Getwd()
	return c.space.do(func() error {
		if c.Dir == "" && wdErr == nil {
			if info, err := os.Stat(wd); err == nil && info.IsDir() {
				c.Dir = wd
			}
		}
		return c.Cmd.Start()
	})
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns all it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
