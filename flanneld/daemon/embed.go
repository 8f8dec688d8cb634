package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/etcd/embedded"
)

// embeddedServer is the etcd inside the daemon; nil: none.
type embeddedServer struct{ *embedded.Server }

// startEmbedded starts the embedded etcd if it was asked for.
func startEmbedded(ctx context.Context, cfg *config.Config, log *slog.Logger) (*embeddedServer, error) {
	if cfg.Embed.Dir == "" {
		return nil, nil
	}
	s, err := embedded.Serve(ctx, embedded.Options{
		Dir: cfg.Embed.Dir, Listen: cfg.Embed.Listen,
		CertFile: cfg.Etcd.CertFile, KeyFile: cfg.Etcd.KeyFile, CAFile: cfg.Etcd.CAFile,
		Log: log,
	})
	if err != nil {
		return nil, err
	}
	log.Info("embedded etcd serves", "listen", s.Addr(), "dir", cfg.Embed.Dir)
	return &embeddedServer{s}, nil
}

// run returns when ctx ends, or with an error when the server ends by itself.
func (e *embeddedServer) run(ctx context.Context) error {
	if e == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-e.Done():
		return errors.New("the embedded etcd stopped by itself: see the log above, and whether its disk is full")
	}
}

func (e *embeddedServer) close(log *slog.Logger) {
	if e == nil {
		return
	}
	if err := e.Close(); err != nil {
		log.Warn("embedded etcd not closed", "error", err)
	}
}

// guard is what no container may reach.
func (e *embeddedServer) guard() []netip.AddrPort {
	if e == nil {
		return nil
	}
	return []netip.AddrPort{e.Addr()}
}

func (e *embeddedServer) status() *api.Embedded {
	s := e.Status()
	return &api.Embedded{Listen: e.Addr().String(), Size: s.Size, Quota: s.Quota, Refusing: s.Refusing}
}

// client is how this process reaches the cluster's etcd.
func (e *embeddedServer) client(cfg *config.Config, log *slog.Logger) etcd.Options {
	if e != nil {
		o := e.Client()
		o.Username, o.Password = cfg.Etcd.Username, cfg.Etcd.Password
		return o
	}
	return etcd.Options{
		Endpoints: cfg.Etcd.Endpoints,
		KeyFile:   cfg.Etcd.KeyFile, CertFile: cfg.Etcd.CertFile, CAFile: cfg.Etcd.CAFile,
		Username: cfg.Etcd.Username, Password: cfg.Etcd.Password,
		Log: log,
	}
}
