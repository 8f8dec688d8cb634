package rules

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"
)

// Services says where connections to virtual addresses, and to ports of this
// host's own addresses, go instead. The zero value asks for nothing.
//
// A connection is looked at when it begins, from containers, from this host
// itself and from outside; it keeps its endpoint while others come and go. The
// source stays the client's, but where the answer would not come back this way.
// It is this host's own for a container that reaches itself, for 127.0.0.0/8,
// for a client outside Subnets whose endpoint is outside them too (towards Pods
// the first address of Subnets), and for this host itself towards an endpoint
// outside Pods, whatever address of its own it sends from.
type Services struct {
	// Networks hold the virtual addresses, at most one per family. What goes to
	// an address in them that no Frontend takes, and that is neither this host's
	// own nor one of Hosts, is refused at once (TCP reset, else ICMP port
	// unreachable).
	Networks []netip.Prefix
	// Hosts are addresses in Networks that are other hosts' own, and no
	// Frontend's: sorted, each once, usually none.
	Hosts []netip.Addr
	// Pods are the pod network's address spaces, Subnets this host's own parts
	// of them; at most one per family.
	Pods, Subnets []netip.Prefix
	// Frontends are sorted by Compare, each address, protocol and port once.
	// They are immutable: one that did not change keeps its pointer, so that
	// finding what did costs no comparison of values.
	Frontends []*Frontend
	// Local are the addresses of this host's containers, sorted, each once.
	Local []netip.Addr
}

// Frontend is an address and a port that stand for others.
type Frontend struct {
	// Addr is in one of Services.Networks, or an address of this host (Node),
	// or 127.0.0.1, which counts for what this host itself sends to it.
	Addr     netip.Addr
	Protocol uint8 // IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
	Port     uint16
	// Node: Addr is this host's own, and without Slots its own servers answer.
	Node    bool
	Balance Balance
	// Affinity: a client's connections go to the endpoint of its last one if
	// that was not longer ago; 0: none. Clients are source addresses.
	Affinity time.Duration
	// Slots are of Addr's family. Each is chosen equally often; one that is to
	// have more is there more often. Without any the connection is refused.
	Slots []netip.AddrPort
}

// Balance is how a slot is chosen.
type Balance uint8

// The ways to choose.
const (
	Random     Balance = iota
	RoundRobin         // one after the other
	Hash               // by the client's address: the same one while Slots stays
)

// Compare orders by address, protocol and port.
func (f *Frontend) Compare(o *Frontend) int {
	return cmp.Or(f.Addr.Compare(o.Addr), cmp.Compare(f.Protocol, o.Protocol), cmp.Compare(f.Port, o.Port))
}

// Equal tells whether two frontends say the same.
func (f *Frontend) Equal(o *Frontend) bool {
	return f == o || f.Addr == o.Addr && f.Protocol == o.Protocol && f.Port == o.Port && f.Node == o.Node &&
		f.Balance == o.Balance && f.Affinity == o.Affinity && slices.Equal(f.Slots, o.Slots)
}

// Balancer is one way to program the kernel. Owned by one goroutine, which may
// be another than a Filter's in the same network namespace.
type Balancer interface {
	// Sync makes the kernel's rules equal to s: whole state, idempotent. What
	// others flushed or changed is noticed within 10 s if it is called every
	// few seconds, and costs little to look for. A change of one frontend among
	// thousands writes a few elements (nftables). s is not written to and is not
	// kept but for the frontends.
	Sync(ctx context.Context, s Services) error
	// Repairs is how often Sync found that somebody else had taken away or
	// changed what it had made: connections that began meanwhile were not
	// translated, and the kernel does not look at them again. It may count once
	// too often after a Sync that failed.
	Repairs() uint64
	// Remove takes away everything of ours and nothing else.
	Remove(ctx context.Context) error
}
