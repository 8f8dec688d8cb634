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
	// Addrs are what the records of A and AAAA say, Data that of others, names
	// in it uncompressed.
	Addrs []netip.Addr
	Data  [][]byte
	// Local of them come first: this host's before others', and of the names of
	// an address the container's. Their order is free within these, and within
	// the rest.
	Local int
}

// Answer is what a Zone says to a question.
type Answer struct {
	// Apex of the zone that answers, in wire format, lower case: the owner of
	// the SOA record that belongs in the authority section if NoData. It may be
	// a part of the question's name.
	Apex []byte
	// Unknown: nothing can be told, as whether the name exists is not known yet
	// (see State.Partial), or as its aliases lead in a circle.
	Unknown bool
	// NameError: the name does not exist (NXDOMAIN), nor does any below it. Of
	// an alias that holds of the name that it leads to (RFC 6604, section 3).
	NameError bool
	// Set is what the question's name has, or its alias (CNAME), and More, behind
	// it in the answer section, what that leads to. Type 0: nothing.
	Set  Set
	More []Set
	// NoData: there are at most aliases, and the SOA record belongs in the
	// authority section.
	NoData bool
	// Outside is the name, in wire format, lower case, of another's zone that
	// the last alias leads to: what it has goes behind More. nil: that is all.
	Outside []byte
	Extra   []Set // the additional section
}
