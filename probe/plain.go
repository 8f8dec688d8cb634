package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/link"
)

// Way is how packets should get to a peer, for drivers that can do without
// the tunnel. own: this host takes unencapsulated packets; p is what is
// known of sending them. They are sent where the peer says that it takes them
// and a probe showed that they arrive; one that is away for a moment (Down)
// leaves things as they are, and flannel itself never said so.
func Way(own bool, peer *Peer, p Plain) backend.Way {
	switch {
	case !own || !peer.Plain && !peer.Down:
		return backend.WayTunnel
	case p == PlainPasses:
		return backend.WayPlain
	case p == PlainFails, p == PlainElsewhere:
		return backend.WayTunnel
	default:
		return backend.WayUnknown
	}
}

// Plain is what is known of all paths together: it fails if one does. One
// whose peer is not on the link is none.
func (r Result) Plain() Plain {
	all := PlainElsewhere
	for _, p := range r.Paths {
		switch {
		case p.Plain == PlainFails:
			return PlainFails
		case p.Plain == PlainUnknown || all == PlainUnknown:
			all = PlainUnknown
		case p.Plain == PlainPasses:
			all = PlainPasses
		}
	}
	if len(r.Paths) == 0 {
		return PlainUnknown
	}
	return all
}

// neighbours knows whom the underlay's interface reaches without a router.
type neighbours struct {
	mu sync.Mutex // guards h: looks run at the same time
	h  *link.Handle
}

// errElsewhere: a router is in between, or another interface.
var errElsewhere = errors.New("not on the same link")

// mac is the address on the link of a host that packets were sent to before.
func (n *neighbours) mac(index int, public netip.Addr) (link.MAC, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	way, err := n.h.RouteTo(public)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return link.MAC{}, errElsewhere
	case err != nil:
		return link.MAC{}, err
	case way.Link != index || way.Via.IsValid() || way.Local:
		return link.MAC{}, errElsewhere
	}
	return n.h.Resolved(index, public)
}

// passes finds out whether an unencapsulated packet reaches the peer: an echo
// request of pods' addresses goes straight to the peer's MAC, whatever the
// routes say. Whichever way the answer comes is right.
func (p *pinger) passes(ctx context.Context, n *neighbours, index int, public netip.Addr) (Plain, error) {
	if !public.IsValid() {
		return PlainElsewhere, nil
	}
	mac, err := n.mac(index, public)
	switch {
	case errors.Is(err, errElsewhere):
		return PlainElsewhere, nil
	case errors.Is(err, link.ErrNotFound):
		return PlainUnknown, nil
	case err != nil:
		return PlainUnknown, err
	}
	for range tries {
		e := p.request()
		sent := time.Now()
		if err := sendFrame(index, mac, e.packet(p.from, p.to, small)); err != nil {
			return PlainUnknown, err
		}
		_, err := p.wait(ctx, e, small, sent)
		switch {
		case err == nil:
			return PlainPasses, nil
		case !lost(err):
			return PlainUnknown, err
		}
	}
	return PlainFails, nil
}

// sendFrame sends an IP packet to a MAC.
func sendFrame(index int, mac link.MAC, packet []byte) error {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // receives nothing
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(s)
	protocol := uint16(unix.ETH_P_IPV6)
	if packet[0]>>4 == 4 {
		protocol = unix.ETH_P_IP
	}
	onWire := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	to := unix.SockaddrLinklayer{Protocol: onWire, Ifindex: index, Halen: uint8(len(mac))}
	copy(to.Addr[:], mac[:])
	if err := unix.Sendto(s, packet, 0, &to); err != nil {
		return fmt.Errorf("send a frame: %w", err)
	}
	return nil
}
