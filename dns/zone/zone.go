// Package zone is the cluster's names as an immutable value: which records a
// question is answered with.
package zone

import (
	"net/netip"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// State is all that the zones of one view follow from.
type State struct {
	Domain string // "cluster.local", lower case, without the dot at the end
	Tenant string // whose names; the default tenant's have no part for it
	// Networks are those whose addresses' reverse names are answered here.
	// None of these is asked upstream, whoever has it.
	Networks []netip.Prefix
	TTL      time.Duration
	// Nameservers are the addresses that ns.dns.<domain>, the SOA's server, has.
	Nameservers []netip.Addr
	// Local is this host's name; its endpoints come first if PreferLocal.
	Local       string
	PreferLocal bool
	// Endpoints, Services and Names of every tenant, sorted by key; what did
	// not change since the former State keeps its pointer. They are as their
	// Parse functions make them.
	Endpoints []*endpoint.Endpoint
	Services  []*service.Service
	Names     []*Name
	// Partial: some of these could not be had yet. What is not found may exist.
	Partial bool
	// Dead says of hosts why their endpoints are no answers, in words that do
	// not change by the second: "host3 has not been seen since 12:00:00".
	Dead map[string]string
}

// Set is records of one owner and type. Nobody may write to what it holds.
type Set struct {
	Owner []byte // in wire format, lower case; nil: the question's name
	Type  uint16
	// Data of each record, names in it uncompressed. Their order is free within
	// Data[:Local], which come first, and within the rest: this host's before
	// others', and of the names of an address the container's.
	Data  [][]byte
	Local int
}

// Answer is what a Zone says to a question.
type Answer struct {
	// Apex of the zone that answers, in wire format, lower case: the owner of
	// the SOA record that belongs in the authority section if Sets is empty. It
	// may be a part of the question's name.
	Apex []byte
	// Unknown: whether the name exists cannot be told yet (see State.Partial).
	Unknown bool
	// NameError: the name does not exist (NXDOMAIN), nor does any below it.
	NameError bool
	Sets      []Set // the answer section; empty: no data
	Extra     []Set // the additional section
}
