package hostside

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/iptables/cnichain"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// PacketFilter is one way to make the packet filter be as attachments need it.
// Several processes may use it at once; one value is not safe for concurrent use.
type PacketFilter interface {
	// Add lets an attachment in. Where the filter turns out to have been
	// flushed, the attachments that others returns get theirs back too.
	// cnitable.ErrUnsupported says that the kernel cannot do what is asked.
	Add(a cnitable.Attachment, others func() []cnitable.Attachment) error
	// Remove takes out what Add put in; what is not there is no error.
	Remove(a cnitable.Attachment) error
	// Missing says what of an attachment is not there; "" if all is.
	Missing(a cnitable.Attachment) (string, error)
	// Prune removes what belongs to a network but to none of the host links
	// and addresses that keep returns.
	Prune(network string, keep func() (links map[string]bool, addresses map[netip.Addr]bool, err error)) error
	Close() error
}

var (
	_ PacketFilter = (*cnitable.Table)(nil)
	_ PacketFilter = (*cnichain.Chains)(nil)
)

// OpenFilter opens nftables, or iptables if the kernel lacks nf_tables, in the
// calling thread's network namespace.
func OpenFilter() (PacketFilter, error) {
	t, err := cnitable.Open()
	if errors.Is(err, cnitable.ErrUnsupported) {
		return &cnichain.Chains{}, nil
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// present is what a filter held at one moment.
type present interface {
	Lacks(cnitable.Attachment) bool
}

// read reads the whole filter, and returns how to put back what it lacks.
func read(f PacketFilter) (p present, mend func(cnitable.Attachment) error, err error) {
	switch f := f.(type) {
	case *cnitable.Table:
		p, err := f.Present()
		return p, func(a cnitable.Attachment) error { return f.Repair(a, p) }, err
	case *cnichain.Chains:
		p, err := f.Present()
		return p, func(a cnitable.Attachment) error { return f.Add(a, nil) }, err
	default:
		return nil, nil, fmt.Errorf("packet filter of kind %T cannot be looked at", f)
	}
}
