package service

import (
	"net/netip"

	"github.com/flanneld/flanneld/endpoint"
)

// State is all that the frontends of one host follow from.
type State struct {
	Tenant string // whose services
	Host   string // this host's name
	// Networks are those that virtual addresses may be in, Pods the pod network
	// and Subnets this host's own parts of it.
	Networks, Pods, Subnets []netip.Prefix
	// Hosts are addresses in Networks that are hosts' own, and so no service's:
	// sorted, each once, usually none.
	Hosts []netip.Addr
	// Guarded are ports of TCP that no container may reach: no service leads
	// there, where the filter would not know any more who asks.
	Guarded []netip.AddrPort
	// Nodes are this host's addresses at which node ports and published ports
	// are; 127.0.0.1 is always one for what begins on this host.
	Nodes []netip.Addr
	// Services, Endpoints and Published of every tenant, sorted by key; what did
	// not change since the former State keeps its pointer.
	Services  []*Service
	Endpoints []*endpoint.Endpoint
	Published []*Publication
	// Dead says of hosts why their endpoints are not to be used.
	Dead map[string]string
}

// Publication is a port of one host's own addresses that leads to containers
// of a name: the key published/<tenant>/<host>/<protocol>-<port>.
type Publication struct {
	Tenant   string `json:"-"`
	Host     string `json:"-"`
	Protocol string `json:"-"` // tcp, udp or sctp
	Port     uint16 `json:"-"`

	Network string
	// Target is a name of containers there, or the beginning of an id (12
	// characters at least).
	Target     string
	TargetPort uint16
	created    int64 // revision of the key, if it was read from the store
}
