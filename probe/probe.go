// Package probe tells whether packets of the pod network really reach each
// peer and come back.
//
// It pings the tunnel address of every peer from this host's own, so that the
// packets go the way that pods' do, finds the largest packet that passes,
// and exchanges some data by TCP with the peer's own responder. A verdict
// against a peer takes several losses; one answer ends it.
package probe

import (
	"net/netip"
	"slices"
	"time"
)

// State is everything that a Prober works on.
type State struct {
	// Own are this host's tunnel addresses, at most one per family. A peer is
	// probed in the families that both have.
	Own []netip.Addr
	// MTU of a packet inside the tunnel, and what is to be added to it for
	// the option "MTU" of the configuration's Backend.
	MTU, Overhead int
	Underlay      Underlay
	Tunnel        Tunnel
	// FixOffload: checksum offload of the tunnel is off already.
	FixOffload bool
	// Plain: this host may send packets to peers unencapsulated if they pass.
	Plain bool
	// Epoch is another number when the underlay changed: all is probed anew.
	Epoch int
	// Peers are sorted by Key. What they point to never changes: a peer of
	// which something changed is another pointer.
	Peers []*Peer
}

// Underlay is this host's end of the hosts' own network.
type Underlay struct {
	Link  string // interface name
	Index int
	Addrs []netip.Addr
}

// Peer is another host.
type Peer struct {
	Key    string       // of its lease
	Name   string       // for messages
	Addrs  []netip.Addr // tunnel addresses, at most one per family
	Public []netip.Addr // on the underlay, likewise
	// Service is the port of the peer's Responder; 0: it has none (flannel),
	// and gets pings only.
	Service uint16
	// Plain: it takes packets that come unencapsulated.
	Plain bool
	// Down: it is known not to live. That it does not answer is no alarm.
	Down bool
}

// Verdict is what is known of the way to a peer.
type Verdict string

// Verdicts. Those after Down are somebody's to mend.
const (
	Unknown     Verdict = "unknown" // not probed yet, or this host cannot probe now
	OK          Verdict = "ok"
	Down        Verdict = "down" // silent, and known not to live
	Unreachable Verdict = "unreachable"
	SmallMTU    Verdict = "small-mtu" // large packets are lost
	BrokenTCP   Verdict = "broken-tcp"
)

// Bad reports whether somebody has to mend something.
func (v Verdict) Bad() bool { return v == Unreachable || v == SmallMTU || v == BrokenTCP }

// TCP says how an exchange of data by TCP ended.
type TCP string

// Outcomes of an exchange.
const (
	TCPUntried TCP = "" // or nobody answers there: its packets come through
	TCPWorks   TCP = "works"
	TCPFails   TCP = "fails"
	// TCPFiltered: somebody drops the responder's port; of TCP itself that
	// tells nothing.
	TCPFiltered TCP = "filtered"
)

// Plain says whether a packet with addresses of pods reaches a peer without
// encapsulation.
type Plain string

// What is known of it.
const (
	PlainUnknown   Plain = ""
	PlainPasses    Plain = "passes"
	PlainFails     Plain = "fails"
	PlainElsewhere Plain = "elsewhere" // the peer is not on the same link
)

// Result is what is known of one peer.
type Result struct {
	Key, Name string
	Paths     []Path // one per family, IPv4 first
}

// Path is the way to a peer in one family.
type Path struct {
	Addr    netip.Addr // the peer's tunnel address
	Verdict Verdict
	// Message says why Verdict is not OK, and what to do. Stable text.
	Message string
	RTT     time.Duration // of the last answer
	MTU     int           // the largest packet that passed; 0: not known
	TCP     TCP           // how the last exchange ended
	Plain   Plain
	// Underlay: the peer is Unreachable and answers outside of the tunnel.
	Underlay bool
	At       time.Time // when this was last looked at
}

// Worst is the path that is worst off; the zero Path if there is none.
func (r Result) Worst() Path {
	var worst Path
	for _, p := range r.Paths {
		if worst.Verdict == "" || rank(p.Verdict) > rank(worst.Verdict) {
			worst = p
		}
	}
	return worst
}

func rank(v Verdict) int {
	return slices.Index([]Verdict{OK, Unknown, Down, BrokenTCP, SmallMTU, Unreachable}, v)
}
