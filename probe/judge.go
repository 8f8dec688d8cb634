package probe

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// observation is what one look at a path found.
type observation struct {
	at time.Time
	// err: this host could not even ask.
	err error
	// answered: a packet of some size came back; rtt is its time.
	answered bool
	rtt      time.Duration
	// mtu is the largest size that was answered, if it was looked for.
	mtu int
	// underlay: the peer's underlay address answered; told only where the
	// tunnel did not.
	underlay bool
	tcp      TCP
	plain    Plain
	// direct: all this went without the tunnel, but for plain.
	direct bool
}

// path is what is remembered of the way to a peer in one family. Its zero
// value knows nothing.
type path struct {
	verdict  Verdict
	misses   int // looks in a row that say something bad which is no verdict yet
	suspect  Verdict
	rtt      time.Duration
	mtu      int
	underlay bool // as of the last silent look
	tcp      TCP
	tcpAt    time.Time // of the last exchange that told something; zero: all is to be looked at anew
	plain    Plain
	hold     hold // of plain
	direct   bool // as of the last look: rtt and mtu are those without the tunnel
	fell     bool // plain was in use when it failed
	moved    bool // the last look changed plain: the other way is to be looked at
	at       time.Time
	err      error
}

// alarm is how many looks in a row must say the same bad thing. Each of them
// sends several packets before it says so.
const alarm = 2

// after is the path once o was seen. down: the peer is known not to live.
func (p path) after(o observation, size int, down bool) path {
	p.at, p.err = o.at, o.err
	if o.err != nil {
		return p // says nothing about the peer
	}
	p.direct = o.direct
	if p = p.plainAfter(o, down); o.direct && p.plain == PlainFails { // of the tunnel that says nothing
		p.suspect, p.misses = "", 0
		return p
	}
	if o.tcp != TCPUntried {
		p.tcp, p.tcpAt = o.tcp, o.at
	}
	found := OK
	switch {
	case !o.answered && down:
		found = Down
	case !o.answered:
		found, p.underlay = Unreachable, o.underlay
	case o.mtu < size:
		found = SmallMTU
	case o.tcp == TCPFails, o.tcp == TCPUntried && p.tcp == TCPFails:
		found = BrokenTCP
	}
	if o.answered {
		p.rtt, p.mtu = o.rtt, o.mtu
	}
	if !found.Bad() || found == p.verdict {
		p.verdict, p.suspect, p.misses = found, "", 0
		return p
	}
	if found != p.suspect {
		p.suspect, p.misses = found, 0
	}
	if p.misses++; p.misses >= alarm {
		p.verdict, p.suspect, p.misses = found, "", 0
	}
	return p
}

// plainAfter is the path with what o tells of unencapsulated packets. They
// fail at once: what they lose is everything that pods send, and the tunnel
// is there.
func (p path) plainAfter(o observation, down bool) path {
	was := p.plain
	p.moved = false
	switch {
	case o.plain == PlainFails, o.direct && !down && (!o.answered || o.tcp == TCPFails || o.tcp == TCPFiltered):
		p.plain, p.hold = PlainFails, p.hold.fail(o.at)
		p.moved = was == PlainPasses
		p.fell = p.fell || o.direct
	case o.plain != PlainUnknown:
		p.plain, p.fell = o.plain, false
		p.moved = o.plain == PlainPasses && was != PlainPasses
	}
	return p
}

// show is the path as others see it.
func (p path) show(s *State, peer *Peer, family int) Path {
	out := Path{
		Addr: ofFamily(peer.Addrs, family), Verdict: p.verdict, RTT: p.rtt, MTU: p.mtu,
		TCP: p.tcp, Plain: p.plain, At: p.at, Underlay: p.verdict == Unreachable && p.underlay,
	}
	if out.Verdict == "" {
		out.Verdict = Unknown
	}
	out.Message = p.message(s, peer, ofFamily(peer.Public, family))
	return out
}

// message says what is wrong, and what to do about it.
func (p path) message(s *State, peer *Peer, public netip.Addr) string {
	switch p.verdict {
	case Down:
		return peer.Name + ": is down: its record under hosts/ ended and it does not answer"
	case Unreachable:
		if !p.underlay {
			return fmt.Sprintf("%s: does not answer at %s on the underlay either: is the host, or the network between, down?", peer.Name, public)
		}
		return fmt.Sprintf("%s: %s do not arrive: a firewall?", peer.Name, s.Tunnel.packetsTo(public))
	case SmallMTU:
		if p.direct {
			return fmt.Sprintf("%s: packets over %d bytes are lost on the underlay itself, without a tunnel: set \"MTU\":%d in the configuration's Backend", peer.Name, p.mtu, p.mtu)
		}
		return fmt.Sprintf("%s: packets over %d bytes are lost: set MTU %d (\"MTU\":%d in the configuration's Backend)", peer.Name, p.mtu, p.mtu, p.mtu+s.Overhead)
	case BrokenTCP:
		if s.FixOffload {
			return fmt.Sprintf("%s: TCP fails but ping works: checksum offload of its network interface; remedy: --fix-offload there, too", peer.Name)
		}
		return fmt.Sprintf("%s: TCP fails but ping works: checksum offload of %s; remedy: --fix-offload on both, which costs throughput", peer.Name, s.Underlay.Link)
	}
	if p.err != nil {
		return fmt.Sprintf("%s: cannot be probed: %v", peer.Name, cause(p.err))
	}
	if p.fell && p.plain == PlainFails {
		return fmt.Sprintf("%s: packets without the tunnel to %s do not arrive: the tunnel is used", peer.Name, public)
	}
	return ""
}

// cause is the innermost error: what is around it names ports that differ.
func cause(err error) error {
	for {
		in := errors.Unwrap(err)
		if in == nil {
			return err
		}
		err = in
	}
}

// Tunnel says what a tunnel's packets look like on the underlay.
type Tunnel struct {
	Name     string   // "VXLAN"
	Protocol uint8    // 0: none, packets go as they are
	Ports    []uint16 // at the receiver; of UDP
}

// Alone tells, of several peers, in which families (0: IPv4, 1: IPv6) none
// answers: then the fault is more likely this host's own than theirs. A peer
// that is known not to live does not count. message says it once for all, ""
// if there is no such family. It is stable text.
func Alone(s State, all iter.Seq[Result]) (alone [2]bool, message string) {
	var silent, other [2]int
	underlay := false
	for r := range all {
		for _, p := range r.Paths {
			family := familyOf(p.Addr)
			switch p.Verdict {
			case Down:
			case Unreachable:
				silent[family]++
				underlay = underlay || p.Underlay
			default:
				other[family]++
			}
		}
	}
	for i := range alone {
		alone[i] = silent[i] >= 2 && other[i] == 0
	}
	by := ""
	switch {
	case alone == [2]bool{}:
		return alone, ""
	case other[0] > 0:
		by = " by IPv6"
	case other[1] > 0:
		by = " by IPv4"
	}
	if !underlay {
		return alone, fmt.Sprintf("no peer answers%s, nor does any on the underlay: is %s of this host, or the network behind it, down?", by, s.Underlay.Link)
	}
	through := ""
	if s.Tunnel.Protocol != 0 {
		through = " through the tunnel"
	}
	return alone, fmt.Sprintf("no peer answers%s%s: does this host's own firewall drop %s?", by, through, s.Tunnel.packets())
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// packets describes the packets to any peer.
func (t Tunnel) packets() string {
	switch {
	case len(t.Ports) > 0:
		var ports []string
		for _, p := range t.Ports {
			ports = append(ports, strconv.Itoa(int(p))+"/udp")
		}
		return t.Name + " packets (" + strings.Join(ports, ", ") + ")"
	case t.Protocol != 0:
		return fmt.Sprintf("%s packets (IP protocol %d)", t.Name, t.Protocol)
	default:
		return "packets of pods"
	}
}

// packetsTo describes the packets to a peer's underlay address.
func (t Tunnel) packetsTo(public netip.Addr) string {
	switch {
	case len(t.Ports) > 0:
		port := strconv.Itoa(int(t.Ports[0]))
		if len(t.Ports) > 1 && public.Is6() { // one for each family
			port = strconv.Itoa(int(t.Ports[1]))
		}
		host := public.String()
		if public.Is6() {
			host = "[" + host + "]"
		}
		return t.Name + " packets to " + host + ":" + port + "/udp"
	case t.Protocol != 0:
		return fmt.Sprintf("%s packets to %s (IP protocol %d)", t.Name, public, t.Protocol)
	default:
		return "packets of pods, routed by " + public.String() + ","
	}
}

// ofFamily is the first address of a family (0: IPv4, 1: IPv6); zero if there
// is none.
func ofFamily(all []netip.Addr, family int) netip.Addr {
	for _, a := range all {
		if a.Is4() == (family == 0) {
			return a
		}
	}
	return netip.Addr{}
}
