// Package wireguard reads and configures WireGuard devices, the kernel's and
// those of a userspace process alike.
package wireguard

import (
	"net/netip"
	"time"
)

// Peer is who may send into a device and is sent what is for Allowed.
type Peer struct {
	Key       Key
	Preshared Secret         // zero: none
	Endpoint  netip.AddrPort // zero: unknown until the peer sends
	Keepalive time.Duration  // whole seconds; 0: none
	Allowed   []netip.Prefix
}

// Status is a peer as a device has it.
type Status struct {
	Peer
	// Handshake is when the last one succeeded; zero: none did.
	Handshake time.Time
}

// State is everything that a device was told and has found out.
type State struct {
	Private Secret // zero: none
	Port    uint16
	Mark    uint32 // of the packets that it sends on the underlay
	Peers   []Status
}

// Change is what is to be changed of a device; what it does not name stays.
type Change struct {
	Private *Secret
	Port    *uint16
	Mark    *uint32
	// Set makes peers be exactly so, or adds them; only a zero Endpoint leaves
	// the present one. What Allowed another peer has is taken from it. A peer
	// that is there keeps its session.
	Set []Peer
	// Remove is done after Set; a peer that is not there is none to remove.
	Remove []Key
}
