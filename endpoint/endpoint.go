// Package endpoint tells who is attached where: this host's containers, as
// their attachment records say, among those of the whole cluster.
package endpoint

import (
	"context"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/store"
)

// Endpoint is one attached container interface, as its key under endpoints/
// tells it. It is immutable once made.
type Endpoint struct {
	// Tenant, Network and ID are the parts of its key. ID begins with the
	// host's name: "<host>,<container id>,<interface>".
	Tenant  string `json:"-"`
	Network string `json:"-"`
	ID      string `json:"-"`

	Host     string // name
	Identity string // of that host, see subnet.Host

	Container string // the engine's id, whole
	IfName    string
	Addresses []netip.Addr
	MAC       string
	// Namespace is Kubernetes', "" if the engine gave none.
	Namespace string `json:",omitempty"`
	// Names are DNS labels in lower case, each once: the pod's name, aliases.
	// What the engine gave and cannot be a label is not here.
	Names  []string          `json:",omitempty"`
	Labels map[string]string `json:",omitempty"`
	// Unhealthy says of services, by name, why it must not be an answer for
	// them. Its own names are not answered while there is any.
	Unhealthy map[string]string `json:",omitempty"`

	revision int64 // of the key, if it was read from the store
}

// The pod network's place among the tenants.
const (
	DefaultTenant  = "default"
	DefaultNetwork = "default"
)

// Prefix is where the endpoints are below an etcd prefix.
func Prefix(etcdPrefix string) string { return etcdPrefix + "/endpoints/" }

// Key is where e is below an etcd prefix.
func (e *Endpoint) Key(etcdPrefix string) string {
	return Prefix(etcdPrefix) + e.Tenant + "/" + e.Network + "/" + e.ID
}

// Parent is the label below which e's names are: its namespace, else its
// network. It is "" if that label means something else in the DNS (see
// Reserved): e then has no names, not even its container id's.
func (e *Endpoint) Parent() string {
	parent := e.Namespace
	if parent == "" {
		parent = e.Network
	}
	if Reserved(parent) {
		return ""
	}
	return parent
}

// Reserved are the labels that stand for services and for addresses of pods
// and cannot be a namespace's or a network's beside them.
func Reserved(label string) bool { return label == "svc" || label == "pod" }

// Equal tells whether two endpoints have the same key and value.
func (e *Endpoint) Equal(o *Endpoint) bool {
	return e.Tenant == o.Tenant && e.Network == o.Network && e.ID == o.ID &&
		e.Host == o.Host && e.Identity == o.Identity && e.Container == o.Container && e.IfName == o.IfName &&
		slices.Equal(e.Addresses, o.Addresses) && e.MAC == o.MAC && e.Namespace == o.Namespace &&
		slices.Equal(e.Names, o.Names) && maps.Equal(e.Labels, o.Labels) && maps.Equal(e.Unhealthy, o.Unhealthy)
}

// Watch yields the endpoints of the whole cluster, of every tenant and
// network, as store.WatchRecords does it.
func Watch(ctx context.Context, st store.Store, etcdPrefix string) iter.Seq2[store.Records[Endpoint], error] {
	return store.WatchRecords(ctx, st, Prefix(etcdPrefix), newReader(etcdPrefix).parse)
}
