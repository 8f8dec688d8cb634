// Package backend is how packets of the pod network cross the underlay:
// the contract between the daemon and the drivers, which live in folders of
// their own and each pass backendtest.
package backend

import (
	"context"
	"net/netip"

	"github.com/flanneld/flanneld/subnet"
)

// Underlay is this host's end of the hosts' own network.
type Underlay struct {
	Link  string // interface name
	Index int
	MTU   int
	// Addrs are the interface's addresses that tunnels use, one per enabled
	// family, IPv4 first.
	Addrs []netip.Addr
	// PublicIPs are how other hosts reach Addrs; the same unless there is NAT.
	PublicIPs []netip.Addr
}

// Driver makes devices of one kind of tunnel.
type Driver interface {
	// Check says why Open would refuse a configuration whatever the host: a
	// *subnet.ConfigError with field, value and remedy; nil if it would not.
	// It does not touch the kernel.
	Check(n subnet.Config) error
	// Open makes the device ready to receive, before the lease tells anybody:
	// it adopts what an earlier daemon (ours or flannel's) left where that
	// fits and replaces it where it does not. identity is the host's stable
	// random identity: whatever must stay the same over a deletion of the
	// device (its MAC) is derived from it. What Check refuses is refused
	// with the same error.
	Open(ctx context.Context, n subnet.Config, u Underlay, identity string) (Device, error)
	// Cleanup removes every device of this kind that is ours, and what else
	// this driver made, whatever its configuration was: but for routes on
	// interfaces that are not this driver's, which any driver of ours may have
	// set (see routed.RemoveRoutes).
	Cleanup(ctx context.Context) error
}

// Info is what others must know about a device.
type Info struct {
	Data subnet.BackendData // goes into the lease
	MTU  int                // of a packet inside the tunnel; goes to subnet.env
	Link string             // the device's interface name, "" if it has none
	// MoreLinks are further interfaces of the tunnel: where each family has a
	// device of its own, those of IPv6.
	MoreLinks []string
	// Protocol (unix.IPPROTO_UDP, …; 0: no tunnel) and destination ports (none
	// if the protocol has no ports) of the tunnel's packets on the underlay,
	// for the packet filter.
	Protocol uint8
	Ports    []uint16
	// Plain: packets of pods also cross the underlay without a tunnel.
	Plain bool
	// Note is what people should know of how the device works, such as
	// "userspace"; "": nothing.
	Note string
}

// Peer is another host.
type Peer struct {
	Lease *subnet.Lease // immutable: a lease that changes is another value
	Way   Way
}

// Way is how packets get to a peer, for drivers that can do without the tunnel
// where both hosts are on one link.
type Way uint8

// Ways.
const (
	WayUnknown Way = iota // nobody knows yet: as it is, the tunnel if it is neither
	WayTunnel             // through the tunnel
	WayPlain              // without it where both are on one link
)

// Device is one network's tunnel on this host, owned by one goroutine.
type Device interface {
	// Info is what the device is now; Sync may change it.
	Info() Info
	// Sync makes the kernel carry traffic to exactly these peers. It is told
	// whole state and is idempotent; it writes only what differs, and nothing
	// at all when nothing changed. A peer that cannot be served (another
	// backend type, broken data) is skipped and joined into the error as a
	// *PeerError; the others are served. What two peers claim, the one whose
	// lease was created first has, of equals the first by key. A device that
	// somebody deleted is made again as it was. The first Sync that succeeds
	// removes the devices of this kind that former configurations left.
	Sync(ctx context.Context, own *subnet.Lease, peers []Peer) error
	// Forget drops what the device believes about the kernel: the next Sync
	// reads it. To be called when somebody else may have touched the kernel.
	Forget()
	// Close lets go of the device but leaves it forwarding, so that a restart
	// of the daemon does not disturb traffic.
	Close() error
}

// PeerError says why one peer is not served, or not in every family. Its text
// is stable.
type PeerError struct {
	Peer *subnet.Lease
	// Served are those of Peer.PublicIPs that packets may come from all the
	// same: of a family that is served, or that the kernel refused for now.
	Served []netip.Addr
	Err    error
}

func (e *PeerError) Error() string { return "lease " + e.Peer.Key + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }
