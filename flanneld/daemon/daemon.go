// Package daemon wires the rooms of one host together and owns their
// goroutines: the cluster's state comes in, the kernel and the files follow.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/subnet"
)

// IsTaken tells whether err means that another host holds what this one
// needs, so that starting again without a change makes things worse.
func IsTaken(err error) bool {
	var inUse *subnet.InUseError
	return errors.Is(err, subnet.ErrTaken) || errors.As(err, &inUse)
}

// IsConfig tells whether err is a mistake in flags or in the cluster's
// configuration.
func IsConfig(err error) bool {
	var ue *config.UsageError
	var ce *subnet.ConfigError
	return errors.As(err, &ue) || errors.As(err, &ce)
}

// Run is the daemon. It returns nil when ctx ends, leaving the data path
// working, and an error when going on makes no sense (see IsTaken, IsConfig).
func Run(ctx context.Context, cfg *config.Config, version string, log *slog.Logger) error {
	started := time.Now()
	lock, err := lockHost(ctx, config.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	log.Info("flanneld starts", "version", version, "node", cfg.NodeName)
	for {
		err := runOnce(ctx, cfg, version, started, log)
		if !errors.Is(err, subnet.ErrClone) {
			if errors.Is(err, subnet.ErrTaken) {
				err = errors.Join(err, withdraw(context.WithoutCancel(ctx), cfg))
			}
			return err
		}
		// A copy of another machine must differ from it in all that peers see,
		// the device's MAC included.
		log.Warn("this host is a copy of a live one: it takes an identity and a subnet of its own", "error", err)
		if err := withdraw(context.WithoutCancel(ctx), cfg); err != nil {
			return err
		}
		if _, err := subnet.NewIdentity(config.StateDir); err != nil {
			return err
		}
	}
}

// runOnce runs the daemon as one identity.
func runOnce(ctx context.Context, cfg *config.Config, version string, started time.Time, log *slog.Logger) error {
	id, err := subnet.LoadIdentity(config.StateDir)
	if err != nil {
		return err
	}
	embed, err := startEmbedded(ctx, cfg, log)
	if err != nil {
		return err
	}
	// The server must outlive the goroutines that say goodbye through it.
	defer embed.close(log)
	st, err := etcd.New(embed.client(cfg, log))
	if err != nil {
		return &config.UsageError{Msg: err.Error()}
	}
	defer st.Close()

	k, err := openKernel(ctx, log)
	if err != nil {
		return err
	}
	defer k.close()
	n := newNetwork(cfg, log, started, k)
	n.embed, n.guard, n.endpoints = embed, embed.guard(), embed.client(cfg, log).Endpoints
	n.self = subnet.Host{
		Name: cfg.NodeName, Identity: id, Instance: rand.Text(),
		Version: version, Drivers: driverNames(),
	}
	n.names = newNames(cfg, st, n.self, n.balancer, log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return embed.run(ctx) })
	g.Go(func() error { return k.monitor.Run(ctx) })
	services := newLatest[subnet.View]()
	g.Go(func() error { return watch(ctx, st, cfg, n.views, services) })
	g.Go(func() error { return chooseServices(ctx, st, cfg.Etcd.Prefix, services, log) })
	g.Go(func() error { return n.run(ctx) })
	g.Go(func() error { return n.probes.run(ctx) })
	g.Go(func() error { return n.names.run(ctx) })
	g.Go(func() error {
		keeper := subnet.Keeper{Store: st, Prefix: cfg.Etcd.Prefix, Report: n.report.put}
		return keeper.Run(ctx, n.keeper.self, n.keeper.views, n.held.put)
	})
	g.Go(func() error {
		return server.Run(ctx, n, n.serverOptions())
	})
	if len(cfg.Embed.Networks) > 0 {
		g.Go(func() error { return seed(ctx, st, cfg, log) })
	}
	return g.Wait()
}

// watch hands every newer view to the network, and those without networks of
// services to who chooses them.
func watch(ctx context.Context, st store.Store, cfg *config.Config, to latest[seen], unset latest[subnet.View]) error {
	accept := func(c subnet.Config) error { return usable(cfg, c) }
	for v, err := range subnet.Watch(ctx, st, cfg.Etcd.Prefix, accept) {
		to.put(seen{v, err})
		if err == nil && len(v.Config.Ranges) > 0 && v.Config.Services == nil {
			unset.put(v)
		}
	}
	return nil
}

// seed writes the configuration that --network asks for, if there is none.
func seed(ctx context.Context, st store.Store, cfg *config.Config, log *slog.Logger) error {
	key := subnet.ConfigKey(cfg.Etcd.Prefix)
	want, text, err := seedConfig(cfg.Embed.Networks)
	if err == nil {
		err = usable(cfg, want)
	}
	if err != nil {
		return &config.UsageError{Msg: fmt.Sprintf("--network: %v", err)}
	}
	b := store.Backoff{Min: 10 * time.Millisecond, Max: 5 * time.Second}
	for {
		_, err := st.Commit(ctx, store.Txn{
			If:  []store.Cond{{Key: key}},
			Put: []store.Put{{Key: key, Value: text}},
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, store.ErrConflict):
			return compareSeed(ctx, st, key, want, log)
		}
		if b.Wait(ctx) != nil {
			return nil //nolint:nilerr // the daemon ends, and the watch tells of trouble with the store
		}
	}
}

// compareSeed tells an admin who expects --network to change what is there.
func compareSeed(ctx context.Context, st store.Store, key string, want subnet.Config, log *slog.Logger) error {
	kv, err := st.Get(ctx, key)
	if err != nil {
		return nil //nolint:nilerr // it was for the log only
	}
	if have, err := subnet.ParseConfig(kv.Value); err != nil || !slices.Equal(networks(have), networks(want)) {
		log.Warn("--network is not used: etcd has a configuration already, change it there", "key", key, "value", string(kv.Value))
	}
	return nil
}

// seedConfig is the configuration for a VXLAN over these networks.
func seedConfig(networks []netip.Prefix) (subnet.Config, []byte, error) {
	value := map[string]any{"Backend": map[string]string{"Type": "vxlan"}, "EnableIPv4": false}
	for _, p := range networks {
		if p.Addr().Is4() {
			value["Network"], value["EnableIPv4"] = p.String(), true
		} else {
			value["IPv6Network"], value["EnableIPv6"] = p.String(), true
		}
	}
	text, err := json.Marshal(value)
	if err != nil {
		return subnet.Config{}, nil, fmt.Errorf("encode the configuration: %w", err)
	}
	c, err := subnet.ParseConfig(text)
	return c, text, err
}
