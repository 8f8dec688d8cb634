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
	// Cleanup removes every device, route, FDB and neighbour entry of this
	// kind that is ours, whatever its configuration was.
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
	// Protocol (unix.IPPROTO_UDP, …) and Port (0 if none) of the tunnel's
	// packets on the underlay, for the packet filter.
	Protocol uint8
	Port     uint16
}

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
	Sync(ctx context.Context, own subnet.Lease, peers []subnet.Lease) error
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
	Peer subnet.Lease
	// Served are those of Peer.PublicIPs that packets may come from all the
	// same: of a family that is served, or that the kernel refused for now.
	Served []netip.Addr
	Err    error
}

func (e *PeerError) Error() string { return "lease " + e.Peer.Key + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }
