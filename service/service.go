// Package service is the model of services: names that stand for endpoints
// chosen by their labels.
package service

import (
	"context"
	"iter"
	"net/netip"

	"github.com/flanneld/flanneld/store"
)

// Service is one service, as its key under services/ tells it. It is immutable
// once made.
type Service struct {
	// Tenant, Network and Name are the parts of its key. Name is a DNS label.
	Tenant  string `json:"-"`
	Network string `json:"-"`
	Name    string `json:"-"`

	Ports []Port `json:",omitempty"`
	// Selector: the endpoints of this network that carry all of these labels
	// are the service's; with none, only Endpoints are.
	Selector map[string]string `json:",omitempty"`
	// Endpoints are listed by hand, beside those of the Selector.
	Endpoints []netip.Addr `json:",omitempty"`
	// Headless: its name stands for the endpoints themselves.
	Headless bool `json:",omitempty"`
	// VirtualIPs its name stands for, at most one per family. While it has none,
	// its name stands for the endpoints as if it were headless.
	VirtualIPs []netip.Addr `json:",omitempty"`
}

// Port is one port of a service.
type Port struct {
	Name     string `json:",omitempty"` // a DNS label; "" only if the service has one port
	Port     uint16
	Target   uint16 `json:",omitempty"` // on the endpoints; 0: Port
	Protocol string // tcp, udp or sctp
}

// Prefix is where the services are below an etcd prefix.
func Prefix(etcdPrefix string) string { return etcdPrefix + "/services/" }

// Key is where s is below an etcd prefix.
func (s *Service) Key(etcdPrefix string) string {
	return Prefix(etcdPrefix) + s.Tenant + "/" + s.Network + "/" + s.Name
}

// Watch yields the services of the whole cluster, of every tenant and network,
// as store.WatchRecords does it.
func Watch(ctx context.Context, st store.Store, etcdPrefix string) iter.Seq2[store.Records[Service], error] {
	return store.WatchRecords(ctx, st, Prefix(etcdPrefix), func(kv store.KV) (*Service, error) { return Parse(etcdPrefix, kv) })
}
