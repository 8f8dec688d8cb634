// Package api is the daemon's local API: its wire types and a client. The
// daemon serves it on a unix socket that only root may open.
package api

import (
	"net/netip"
	"time"
)

// Socket is where the daemon listens.
const Socket = "/run/flannel/flanneld.sock"

// Verdict is the state of this host's part of the network in one word.
type Verdict string

// Verdicts, best first.
const (
	OK       Verdict = "ok"       // everything as it should be
	Degraded Verdict = "degraded" // traffic flows, something needs attention
	Down     Verdict = "down"     // this host is not in the network
)

// Status is GET /v1/status.
type Status struct {
	Verdict Verdict `json:"verdict"`
	// Reasons say why the verdict is not OK, each with its remedy.
	Reasons []string `json:"reasons,omitempty"`
	// Notices need no action: records skipped, things set up on the host.
	Notices []string  `json:"notices,omitempty"`
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	Etcd    Etcd      `json:"etcd"`
	Network *Network  `json:"network,omitempty"` // nil before the lease
	DNS     *DNS      `json:"dns,omitempty"`     // nil before the lease, and with --no-dns
	Peers   []Peer    `json:"peers"`
}

// Etcd is the daemon's relation to the store.
type Etcd struct {
	Endpoints []string `json:"endpoints"`
	Connected bool     `json:"connected"`
	Error     string   `json:"error,omitempty"`
	// Since is when Connected last changed.
	Since    time.Time `json:"since"`
	Embedded *Embedded `json:"embedded,omitempty"`
}

// Embedded is the etcd server inside the daemon.
type Embedded struct {
	Listen   string `json:"listen"`
	Size     int64  `json:"size_bytes"`
	Quota    int64  `json:"quota_bytes"`
	Refusing string `json:"refusing,omitempty"` // why it takes no writes
}

// Network is this host's part of the pod network.
type Network struct {
	Name       string         `json:"name"`
	Networks   []netip.Prefix `json:"networks"`
	Subnets    []netip.Prefix `json:"subnets"`
	PublicIPs  []netip.Addr   `json:"public_ips"`
	Underlay   string         `json:"underlay"`
	Driver     string         `json:"driver"`
	Device     string         `json:"device,omitempty"`
	MTU        int            `json:"mtu"`
	Masquerade bool           `json:"masquerade"`
	Filter     string         `json:"filter"` // "nftables" or "iptables"
	// Held is since when the lease is held without a break.
	Held time.Time `json:"held"`
	// Synced is when the kernel was last made equal to the leases.
	Synced    time.Time `json:"synced"`
	SyncError string    `json:"sync_error,omitempty"`
}

// Peer is another host's lease.
type Peer struct {
	Node      string         `json:"node,omitempty"` // empty for flannel's own hosts
	Subnets   []netip.Prefix `json:"subnets"`
	PublicIPs []netip.Addr   `json:"public_ips"`
	Driver    string         `json:"driver"`
	// Known is since when this daemon knows it.
	Known time.Time `json:"known"`
	// Synced is when it was last made true in the kernel.
	Synced time.Time `json:"synced"`
	// Live says whether the host renews its hosts/ record; nil if it has
	// none to renew (flannel).
	Live  *bool  `json:"live,omitempty"`
	Error string `json:"error,omitempty"` // why it is not served
	// Plain: probes allow that packets go to it without the tunnel, and so the
	// driver was told.
	Plain bool `json:"plain,omitempty"`
	// Probes tell whether packets reach it, one of each family; empty as long
	// as nobody knows, and where there is no tunnel of ours.
	Probes []Probe `json:"probes,omitempty"`
}

// Probe is what is known of the way to a peer in one family.
type Probe struct {
	Addr netip.Addr `json:"addr"` // the tunnel address that was asked
	// Verdict is unknown, ok, down (silent, and known not to live),
	// unreachable, small-mtu or broken-tcp. Message says why, and the remedy.
	Verdict string        `json:"verdict"`
	Message string        `json:"message,omitempty"`
	RTT     time.Duration `json:"rtt_ns,omitempty"`
	MTU     int           `json:"mtu,omitempty"` // the largest packet that passed
	// TCP is works, fails or filtered (a firewall there drops the port of the
	// test), empty if it was not tried.
	TCP string `json:"tcp,omitempty"`
	// Plain says whether packets pass without encapsulation: passes, fails,
	// elsewhere (not on the same link), empty if that was not tried.
	Plain  string    `json:"plain,omitempty"`
	Looked time.Time `json:"looked"`
}
