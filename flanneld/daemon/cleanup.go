package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/host"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/subnet"
)

// Cleanup removes everything of ours from this host and nothing else. It
// refuses while a daemon runs here.
func Cleanup(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	lock, err := lockHost(ctx, config.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	release(ctx, cfg, log)
	if err := clean(ctx, cfg, log); err != nil {
		return err
	}
	if err := os.Remove(config.StateDir + "/identity"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(config.StateDir) // what others keep there stays
	return nil
}

// release gives the lease back, if etcd can be asked: otherwise it expires.
func release(ctx context.Context, cfg *config.Config, log *slog.Logger) {
	id, err := os.ReadFile(config.StateDir + "/identity")
	if err != nil {
		return // this host never had one
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	st, err := etcd.New((*embeddedServer)(nil).client(cfg, log))
	if err == nil {
		defer st.Close()
		identity := strings.TrimSpace(string(id))
		err = errors.Join(endpoint.Release(ctx, st, cfg.Etcd.Prefix, identity), subnet.Release(ctx, st, cfg.Etcd.Prefix, identity))
	}
	if err != nil {
		log.Warn("lease not given back, it expires by itself within 24 hours", "error", err)
	}
}

// releaseTime is how long etcd may take to answer.
const releaseTime = 3 * time.Second

// clean does the work; the caller holds the host's lock. It goes on after an
// error, so that as much as possible goes.
func clean(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	var errs []error
	// Engines first, so that nothing is plugged in any more.
	errs = append(errs, install.Remove(install.Options{}))
	errs = append(errs, withdraw(ctx, cfg))
	report, err := host.Cleanup(ctx, host.Options{}) // before the rules that make its settings harmless
	errs = append(errs, err, cleanRules(ctx), cleanContainers(ctx), cleanAddresses())
	for _, line := range report {
		log.Info("host cleaned up", "change", line)
	}
	for _, path := range []string{api.Socket, config.StateDir + "/forward.json", offloadFile} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// withdraw takes this host's side of the tunnel away and tells engines so, but
// leaves containers what they have among themselves and to the world.
func withdraw(ctx context.Context, cfg *config.Config) error {
	var errs []error
	for name, d := range drivers(routed.Options{}) {
		if err := d.Cleanup(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove %s devices: %w", name, err))
		}
	}
	errs = append(errs, routed.RemoveRoutes(ctx, nil))
	for _, path := range []string{cfg.SubnetFile, dnsEnvFile(cfg)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dropFormer removes what other backends have left on this host, now that
// traffic has its new way. Their routes went with the first Sync.
func (n *network) dropFormer(ctx context.Context) error {
	if n.sole == n.opened.Backend.Type {
		return nil
	}
	var errs []error
	for name, d := range drivers(routed.Options{Own: n.kernel.own}) {
		if name == n.opened.Backend.Type {
			continue
		}
		if err := d.Cleanup(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove what the %s backend has left: %w", name, err))
		}
	}
	if len(errs) == 0 {
		n.sole = n.opened.Backend.Type
	}
	return errors.Join(errs...)
}

// cleanContainers unplugs what the CNI plugins plugged in.
func cleanContainers(ctx context.Context) error {
	p, err := link.OpenPorts()
	if err != nil {
		return err
	}
	defer p.Close()
	veths, err := p.OfKind("veth")
	errs := []error{err}
	for _, v := range veths {
		if strings.HasPrefix(v.Name, ipam.LinkPrefix) && strings.HasPrefix(v.Alias, "flanneld ") {
			errs = append(errs, p.Delete(v.Name))
		}
	}
	bridges, err := p.OfKind("bridge")
	errs = append(errs, err)
	for _, b := range bridges {
		if b.Alias != link.BridgeAlias {
			continue
		}
		// One that somebody else plugged something into is theirs by now.
		if ports, err := p.On(b.Index); err != nil || len(ports) > 0 {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, p.Delete(b.Name))
	}
	errs = append(errs, cnitable.RemoveAll(), iptables.CleanupCNI(ctx), os.RemoveAll(ipam.DefaultDir))
	return errors.Join(errs...)
}

// cleanAddresses takes this host the addresses that it had on no link, and its
// way to those of services.
func cleanAddresses() error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.SyncLocal(nil)
	_, routes := h.SyncServices(nil, nil, nil)
	return errors.Join(err, routes)
}

// cleanRules removes our packet filter rules of every kind.
func cleanRules(ctx context.Context) error {
	errs := []error{nft.Cleanup(ctx), iptables.Cleanup(ctx)}
	f, err := iptables.OpenForward(config.StateDir + "/forward.json")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, f.Remove(ctx), f.Close())...)
}
