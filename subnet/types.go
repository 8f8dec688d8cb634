// Package subnet is the pod network: its configuration, the leases that give
// each host a part of it, and how a host takes and keeps its own.
package subnet

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Config is the network's configuration: the validated value of the key
// "config", in flannel's format.
type Config struct {
	// Ranges holds one entry for each enabled family, IPv4 first. Never empty.
	Ranges []Range
	// Services are the networks of services' virtual addresses, at most one per
	// family, IPv4 first; empty: the cluster has none, nil: none were chosen yet.
	Services []netip.Prefix
	// Backend says how packets cross the underlay.
	Backend Backend
}

// Range is the address space of one family.
type Range struct {
	Network   netip.Prefix // masked
	SubnetLen int          // bits of each host's subnet
	// First and Last subnet that may be leased, inclusive.
	SubnetMin, SubnetMax netip.Addr
}

// Backend is the "Backend" object of the configuration.
type Backend struct {
	Type string          // lower case: "vxlan", "host-gw", …
	Raw  json.RawMessage // the whole object, for the driver to parse
}

// BackendData is what a driver tells its peers through the lease, in
// flannel's format: one JSON value per family, nil where it has nothing to
// say.
type BackendData struct {
	V4, V6 json.RawMessage
}

// Lease is a host's right to a subnet of each family.
type Lease struct {
	Subnets   []netip.Prefix // masked, one per family, IPv4 first
	PublicIPs []netip.Addr   // where the underlay reaches the host; one per family, IPv4 first
	Type      string         // backend type
	Data      BackendData
	// Node and Identity tell who holds it; both empty for flannel's own hosts.
	Node, Identity string
	// Key, Revision, Created and Session are the store's: complete key,
	// modification and creation revision, session it is bound to.
	Key      string
	Revision int64
	Created  int64
	Session  store.SessionID

	// value is what the store holds, shared with the snapshot; nil if this
	// lease was not read from there.
	value []byte
}

// Host is the value of hosts/<name>: this host lives, and what it can do.
// The key vanishes when the host does not renew it for HostTTL.
type Host struct {
	Name     string `json:"Name"`
	Identity string `json:"Identity"`
	// Instance is made anew by every start of the daemon.
	Instance  string       `json:"Instance"`
	PublicIPs []netip.Addr `json:"PublicIPs"`
	Version   string       `json:"Version"`
	Drivers   []string     `json:"Drivers,omitempty"`
	// Guard lists addresses that no container may reach: the embedded etcd's.
	Guard []netip.AddrPort `json:"Guard,omitempty"`
	// Probe is the TCP port of the responder on its tunnel addresses, with
	// which peers find out whether TCP works through the tunnel; 0: none.
	Probe uint16 `json:"Probe,omitempty"`
	// Plain: it has a tunnel, and takes packets of pods without it too.
	Plain bool `json:"Plain,omitempty"`
}

// Lifetimes in the store.
const (
	LeaseTTL = 24 * time.Hour
	HostTTL  = 8 * time.Second
)

// Self is what a host says about itself when it takes a lease.
type Self struct {
	Host Host
	Type string
	Data BackendData
	// Previous is the subnets last written to subnet.env; may be empty. Only
	// what it is before the first lease counts: the Keeper knows the rest.
	Previous []netip.Prefix
	// NodeNameExplicit: Host.Name was asked for by its user, so that taking
	// another one because it is in use is not an answer.
	NodeNameExplicit bool
}

// View is what the cluster agreed on, parsed: configuration, leases and live
// hosts at one moment. It is immutable.
type View struct {
	Config Config
	// ConfigErr says why Config is not valid (absent or wrong); Config then
	// is the last valid one, zero if there was none.
	ConfigErr error
	// Leases that are usable and immutable, sorted by key, without the subnets of families
	// that Config does not enable.
	Leases []*Lease
	Hosts  map[string]Host
	// Problems are the records that were skipped, one error each, stable text.
	Problems []error
	Epoch    store.Epoch
	// Revision is the store's revision that Leases were listed at: a Txn
	// conditioned on it sees every lease that this view does not.
	Revision int64
	// Fresh: see store.Snapshot; the oldest of the three prefixes'.
	Fresh time.Time

	// skipped are the leases of Problems: they are not served, but what their
	// keys say is taken.
	skipped []*Lease
	// hostRecs are Hosts as records, those of Problems too, at hostsRevision.
	hostRecs      map[string]hostRecord
	hostsRevision int64
}
