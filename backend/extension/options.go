package extension

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

// The hooks, by their names in the configuration.
const (
	preStartup   = "PreStartupCommand"
	postStartup  = "PostStartupCommand"
	subnetAdd    = "SubnetAddCommand"
	subnetRemove = "SubnetRemoveCommand"
	shutdown     = "ShutdownCommand"
)

// commands are the file names of the hooks in their directory, by the hook's
// name; a hook that there is none of is absent.
type commands map[string]string

type options struct {
	commands commands
	MTU      int // of the underlay; 0: the interface's
}

func (drv Driver) parseOptions(n subnet.Config) (options, error) {
	o := options{commands: commands{}}
	all := []string{preStartup, postStartup, subnetAdd, subnetRemove, shutdown}
	dir, _ := drv.dirs()
	err := routed.ParseOptions(n, strings.Join(all, ", ")+", MTU", func(name string, f routed.Option) (bool, error) {
		if name == "mtu" {
			return true, f.Size(&o.MTU, n.Ranges, routed.Overhead{})
		}
		for _, hook := range all {
			if name == strings.ToLower(hook) {
				return true, o.command(dir, hook, f)
			}
		}
		return false, nil
	})
	return o, err
}

// fileName is what a hook may be called.
var fileName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// command reads the name of one hook's file. Whoever wrote this value can
// write to etcd, which must not mean that he can run what he likes as root:
// so it is no command line but the name of a program that root put into dir,
// and has no arguments that could make a program do something else.
func (o *options) command(dir, hook string, f routed.Option) error {
	var value string
	if err := f.String(&value); err != nil {
		return err
	}
	if value == "" {
		return nil
	}
	name, inside := strings.CutPrefix(value, dir+"/")
	if !fileName.MatchString(name) || !inside && strings.Contains(value, "/") {
		return f.Refuse(fmt.Sprintf("must be the name of a program in %s, without arguments: put what is to be run into a script there, on every host, e.g. %s, and write its name; the script finds SUBNET, PUBLIC_IP and the like in its environment",
			dir, filepath.Join(dir, strings.ToLower(strings.TrimSuffix(hook, "Command")))))
	}
	o.commands[hook] = name
	return nil
}
