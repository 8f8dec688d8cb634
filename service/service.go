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
	// External is a name elsewhere that this one is an alias of (CNAME); a
	// service that has one has no ports, endpoints or addresses.
	External string `json:",omitempty"`
	// VirtualIPs its name stands for, at most one per family. While it has none,
	// its name stands for the endpoints as if it were headless.
	VirtualIPs []netip.Addr `json:",omitempty"`
	// Affinity keeps a client at its endpoint for so many seconds after its last
	// connection; 0: it does not.
	Affinity int `json:",omitempty"`
	// Local says which endpoints a host sends connections to that begin on it
	// or come to it from outside: LocalCluster (or ""), LocalOnly, LocalFirst.
	Local string `json:",omitempty"`
	// Balance is how an endpoint is chosen: BalanceRandom (or ""),
	// BalanceRoundRobin, BalanceHash.
	Balance string  `json:",omitempty"`
	Health  *Health `json:",omitempty"` // nil: endpoints count as healthy

	created int64 // revision of the key, if it was read from the store
}

// Values of Service.Local.
const (
	LocalCluster = "cluster"      // those of all hosts
	LocalOnly    = "local"        // the host's own; if there is none the connection is refused
	LocalFirst   = "prefer-local" // the host's own, and only if there is none those of others
)

// Values of Service.Balance.
const (
	BalanceRandom     = "random"
	BalanceRoundRobin = "round-robin"
	BalanceHash       = "hash" // by the client's address
)

// Values of Health.Type.
const (
	HealthTCP  = "tcp"
	HealthHTTP = "http"
)

// Health is how each host looks whether its own endpoints of a service work.
// The target ports of TCP are looked at, all of them or, for http, the first.
type Health struct {
	Type string // tcp: a connection can be made; http: GET answers 200 to 399
	Path string `json:",omitempty"` // of http, begins with /
	// Interval and Timeout are in seconds, Threshold is after how many results
	// in a row that say otherwise the verdict changes. 0: 5, 2, 2.
	Interval, Timeout, Threshold int `json:",omitempty"`
}

// Port is one port of a service.
type Port struct {
	Name   string `json:",omitempty"` // a DNS label; "" only if the service has one port
	Port   uint16
	Target uint16 `json:",omitempty"` // on the endpoints; 0: Port, or TargetName's
	// TargetName is a port that containers name: label LabelPort + TargetName
	// says which number it is there. An endpoint without it is left out.
	TargetName string `json:",omitempty"`
	Protocol   string // tcp, udp or sctp
	// NodePort is the port of every host's own addresses that leads here too; 0: none.
	NodePort uint16 `json:",omitempty"`
}

// Labels of endpoints that mean something to services.
const (
	LabelPort   = "flanneld.io/port-"  // + name: the number of a port
	LabelWeight = "flanneld.io/weight" // 1 to 100 times as many connections
)

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
