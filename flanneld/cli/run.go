package cli

import (
	"context"
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

// cleanup is "flanneld cleanup", the same as --cleanup.
func cleanup(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("cleanup", "", `Remove everything that flanneld made on this host: tunnel devices, routes, packet filter rules,
subnet.env, the CNI configuration. The daemon must not be running. Containers that are attached lose
their way to other hosts; their own interfaces stay.`,
		"systemctl stop flanneld && flanneld cleanup")
	subnetFile := fs.String("subnet-file", config.StateDir+"/subnet.env", "the `FILE` that the daemon wrote")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	cfg := &config.Config{SubnetFile: *subnetFile}
	return explain(stderr, daemon.Cleanup(ctx, cfg, newLog(stderr, cfg)))
}
