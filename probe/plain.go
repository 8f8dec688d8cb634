package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
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

// direct reports whether this peer is reached without the tunnel now, as far
// as it is known here.
func (e *entry) direct(s *State) bool {
	var r Result
	for _, side := range e.sides {
		if side.used {
			r.Paths = append(r.Paths, Path{Plain: side.plain})
		}
	}
	return Way(s.Plain, e.peer, r.Plain()) == backend.WayPlain
}

// How long a path that failed plainly is left to the tunnel.
const (
	holdLeast  = time.Minute
	holdMost   = 30 * time.Minute
	holdMemory = time.Hour // failures further apart have nothing to do with each other
)

// hold is how long unencapsulated packets are not tried again. Its zero value
// holds nothing.
type hold struct {
	failed time.Time // last
	wait   time.Duration
}

// fail is the hold after one more failure.
func (h hold) fail(now time.Time) hold {
	if h.wait == 0 || now.Sub(h.failed) > holdMemory {
		return hold{now, holdLeast}
	}
	return hold{now, min(2*h.wait, holdMost)}
}

// on reports whether it is not time yet to try again.
func (h hold) on(now time.Time) bool { return now.Before(h.failed.Add(h.wait)) }

// neighbours knows whom the underlay's interface reaches without a router, and
// sends to them past the routes.
type neighbours struct {
	mu sync.Mutex // guards what follows: looks run at the same time
	h  *link.Handle
	// frames is a packet socket, nil until the first frame. It is kept: for
	// each that is closed the kernel waits for all its readers, 10 ms and more.
	frames *os.File
}

func openNeighbours() (*neighbours, error) {
	h, err := link.Open()
	if err != nil {
		return nil, err
	}
	return &neighbours{h: h}, nil
}

// close may be called when no look runs any more.
func (n *neighbours) close() {
	n.h.Close()
	if n.frames != nil {
		_ = n.frames.Close() // nothing is buffered
	}
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

// echoes is how many echo requests must all be answered without the tunnel:
// what goes there is everything that pods send.
const echoes = 4

// passes finds out whether unencapsulated packets reach the peer: echo
// requests of pods' addresses go straight to the peer's MAC, whatever the
// routes say, and a SYN to its responder (service, 0: none): there are
// networks that pass one kind and drop the other. Whichever way the answers
// come is right. The echo requests together count as one packet: they are small.
func (p *pinger) passes(ctx context.Context, b *bucket, n *neighbours, index int, public netip.Addr, service uint16) (Plain, error) {
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
	if err := b.take(ctx); err != nil {
		return PlainUnknown, err
	}
	sent := time.Now()
	var es []echo // all at once: to wake up for each answer costs more than the packet
	for range echoes {
		e := p.request()
		es = append(es, e)
		if err := n.send(index, mac, e.packet(p.from, p.to, small)); err != nil {
			return PlainUnknown, err
		}
	}
	switch _, err := p.wait(ctx, small, sent, es...); {
	case lost(err):
		return PlainFails, nil
	case err != nil:
		return PlainUnknown, err
	}
	if service == 0 {
		return PlainPasses, nil
	}
	answered, err := synAnswered(ctx, p.from, netip.AddrPortFrom(p.to, service), func(header []byte) error {
		if err := b.take(ctx); err != nil {
			return err
		}
		return n.send(index, mac, ipPacket(p.from, p.to, unix.IPPROTO_TCP, header))
	})
	switch {
	case err != nil:
		return PlainUnknown, err
	case answered:
		return PlainPasses, nil
	default:
		return PlainFails, nil
	}
}

// socket opens frames unless it is open.
func (n *neighbours) socket() (fd int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frames == nil {
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // receives nothing
		if err != nil {
			return 0, fmt.Errorf("open a packet socket: %w", err)
		}
		n.frames = os.NewFile(uintptr(s), "packet socket")
	}
	return int(n.frames.Fd()), nil
}

// send sends an IP packet to a MAC.
func (n *neighbours) send(index int, mac link.MAC, packet []byte) error {
	s, err := n.socket()
	if err != nil {
		return err
	}
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
