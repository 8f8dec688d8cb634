package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/flanneld/daemon"
)

// newLog is the daemon's log: text on standard error, without the time where
// the journal adds its own.
func newLog(w io.Writer, cfg *config.Config) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.LogLevel}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, o))
}

const cleanupText = `Remove everything that flanneld made on this host: tunnel devices, routes, packet filter rules, subnet.env, the
CNI configuration, the interfaces of containers, and the lease in etcd. The daemon must not be running; containers
that still run lose their network.

It takes the daemon's flags and FLANNELD_* variables; only those that name etcd and --subnet-file matter.

usage: flanneld cleanup [flags]

Examples:
  systemctl stop flanneld && flanneld cleanup
  flanneld cleanup --etcd-endpoints http://192.168.1.10:2379
`

// cleanup is "flanneld cleanup", the same as --cleanup.
func cleanup(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := config.Parse(args, os.Getenv, io.Discard)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, cleanupText)
		return exitOK
	case err != nil:
		return explain(stderr, err)
	}
	return explain(stderr, daemon.Cleanup(ctx, cfg, newLog(stderr, cfg)))
}
