package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/kernel/host"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Cleanup removes everything of ours from this host and nothing else. It
// refuses while a daemon runs here.
func Cleanup(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	lock, err := lockHost(config.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := clean(ctx, cfg, log); err != nil {
		return err
	}
	return os.Remove(lock.Name())
}

// clean does the work; the caller holds the host's lock. It goes on after an
// error, so that as much as possible goes.
func clean(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	var errs []error
	// Engines first, so that nothing is plugged in any more.
	errs = append(errs, install.Remove(install.Options{}))
	for name, d := range drivers(nil) {
		if err := d.Cleanup(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove %s devices: %w", name, err))
		}
	}
	errs = append(errs, cleanRules(ctx))
	report, err := host.Cleanup(ctx, host.Options{})
	errs = append(errs, err)
	for _, line := range report {
		log.Info("host cleaned up", "change", line)
	}
	for _, path := range []string{cfg.SubnetFile, api.Socket, config.StateDir + "/forward.json"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cleanRules removes our packet filter rules of every kind.
func cleanRules(ctx context.Context) error {
	var errs []error
	n, err := nft.New()
	switch {
	case err == nil:
		errs = append(errs, n.Remove(ctx), n.Close())
	case !errors.Is(err, rules.ErrNotSupported):
		errs = append(errs, err)
	}
	errs = append(errs, iptables.Cleanup(ctx))
	f, err := iptables.OpenForward(config.StateDir + "/forward.json")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, f.Remove(ctx), f.Close())...)
}
