// Package cli is the command line of flanneld: one file a subcommand.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/flanneld/daemon"
)

// Exit codes; docs/troubleshooting.md and dist/flanneld.service rely on them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // flags or configuration are wrong: restarting does not help until they are changed
	exitTaken   = 3 // another host holds this host's subnet, address or name: restarting makes it worse
)

// command is one subcommand: its own flags, exit code returned.
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) int

// commands is the one place that knows every subcommand but help.
func commands() map[string]command {
	return map[string]command{
		"status":   status,
		"cleanup":  cleanup,
		"cni":      CNI,
		"service":  serviceCmd,
		"apply":    applyCmd,
		"publish":  publishCmd,
		"endpoint": endpointCmd,
		"dns":      dnsCmd,
		"lab":      Lab,
		"version":  version,
	}
}

const helpText = `flanneld gives every container on every host of a cluster an address and a way to the others.

  flanneld [flags]      run the daemon of this host; see flanneld --help
  flanneld status       show whether this host's part of the network is healthy, and why not
  flanneld cleanup      remove everything that flanneld made on this host
  flanneld cni          install the CNI plugins for container engines, or remove them
  flanneld service      names and addresses for containers chosen by their labels
  flanneld apply        make services from a file, also from Kubernetes manifests
  flanneld publish      make a port of one host lead to a container
  flanneld endpoint     list the containers of all hosts, and change their labels
  flanneld dns          look names up, and add names by hand
  flanneld lab          hosts made of namespaces on this machine, to try things out
  flanneld version      print the version

Each takes --help. The first host of a cluster, and every other one:

  flanneld --embed-etcd --network 10.1.0.0/16 --embed-etcd-listen 192.168.1.10
  flanneld --etcd-endpoints http://192.168.1.10:2379
`

// Run is the whole program. args are without the program's name.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if code, ok := outlive.Main(args, keepers()); ok {
		return code
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return run(ctx, args, stdout, stderr)
	}
	if args[0] == "help" {
		return help(ctx, args[1:], stdout, stderr)
	}
	c, ok := commands()[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "flanneld: there is no command %q; flanneld help lists them\n", args[0])
		return exitUsage
	}
	return c(ctx, args[1:], stdout, stderr)
}

// run is flags alone: the daemon.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := config.Parse(args, os.Getenv, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return explain(stderr, err)
	case cfg.Version:
		return version(ctx, nil, stdout, stderr)
	case cfg.Cleanup:
		return explain(stderr, daemon.Cleanup(ctx, cfg, newLog(stderr, cfg)))
	}
	return explain(stderr, daemon.Run(ctx, cfg, Version(), newLog(stderr, cfg)))
}

// explain prints err and returns the exit code for it.
func explain(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "flanneld: %s\n", strings.TrimSuffix(line, "\n"))
	}
	switch {
	case daemon.IsTaken(err):
		return exitTaken
	case daemon.IsConfig(err):
		return exitUsage
	default:
		return exitFailure
	}
}

func help(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		return Run(ctx, []string{args[0], "--help"}, stdout, stderr)
	}
	fmt.Fprint(stdout, helpText)
	return exitOK
}

func version(_ context.Context, _ []string, stdout, _ io.Writer) int {
	fmt.Fprintln(stdout, "flanneld", Version())
	return exitOK
}

// buildVersion is set by the linker (make build).
var buildVersion string

// Version is what was built: the linker's word, else the module's.
func Version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
