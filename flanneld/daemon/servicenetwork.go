package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// chooseServices writes where virtual addresses are, once, if neither the
// configuration nor another daemon does.
func chooseServices(ctx context.Context, st store.Store, prefix string, views latest[subnet.View], log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-views:
			if err := writeServices(ctx, st, prefix, v, log); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

func writeServices(ctx context.Context, st store.Store, prefix string, v subnet.View, log *slog.Logger) error {
	avoid, err := taken(v)
	if err != nil {
		return err
	}
	networks := subnet.ChooseServices(v.Config, avoid)
	value, err := subnet.MarshalServices(networks)
	if err != nil {
		return err
	}
	key := subnet.ServicesKey(prefix)
	b := store.Backoff{Min: 10 * time.Millisecond, Max: 5 * time.Second}
	for {
		_, err := st.Commit(ctx, store.Txn{If: []store.Cond{{Key: key}}, Put: []store.Put{{Key: key, Value: value}}})
		switch {
		case err == nil:
			log.Info("networks of services chosen for the whole cluster", "key", key, "subnets", networks)
			return nil
		case errors.Is(err, store.ErrConflict): // another daemon was faster
			return nil
		}
		if b.Wait(ctx) != nil {
			return nil //nolint:nilerr // the daemon ends, and the watch tells of trouble with the store
		}
	}
}

// taken are the networks that this host is in, and the other hosts' addresses.
func taken(v subnet.View) ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	for _, l := range v.Leases {
		for _, a := range l.PublicIPs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out, nil
}
