package dns

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sieve has the kernel drop, before they are queued, most packets of sources
// from which far too many come: reading them to drop them would take all of a
// CPU, and while the queue is full it is everybody's packets that are lost.
//
// Of a source from which floodDrops packets were dropped within a second, one
// in thinning gets through, and if that is still as much, one in thinning of
// those, and so on; after a second without that it goes back by one step. So a
// source that floods gets about its rate all the same.
type sieve struct {
	conn *net.UDPConn
	// Who was dropped how often since when; the reader's alone.
	dropped map[netip.Addr]int
	since   time.Duration

	mu     sync.Mutex // guards what follows
	thin   map[netip.Addr]thinned
	timer  *time.Timer // set while any is thinned
	closed bool
}

type thinned struct {
	steps int
	until time.Time
}

const (
	floodDrops  = 2000
	thinning    = 16
	thinFor     = time.Second
	mostSteps   = 5
	mostThinned = 16   // sources of one socket: what a short program can look for
	mostCounted = 1024 // sources whose drops are counted
)

func newSieve(conn *net.UDPConn) *sieve {
	return &sieve{conn: conn, dropped: map[netip.Addr]int{}, thin: map[netip.Addr]thinned{}}
}

// drop counts a packet that was dropped. It belongs to the reader.
func (s *sieve) drop(source netip.Addr, now time.Duration) {
	if now-s.since > time.Second {
		clear(s.dropped)
		s.since = now
	}
	n := s.dropped[source] + 1
	if n == 1 && len(s.dropped) >= mostCounted {
		return
	}
	s.dropped[source] = n
	if n == floodDrops {
		delete(s.dropped, source)
		s.thinOut(source)
	}
}

// thinOut goes one step further with a source.
func (s *sieve) thinOut(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.thin[source]
	if !known && len(s.thin) >= mostThinned || s.closed {
		return
	}
	s.thin[source] = thinned{min(t.steps+1, mostSteps), time.Now().Add(thinFor)}
	if s.timer == nil {
		s.timer = time.AfterFunc(thinFor, s.thicken)
	}
	s.attach()
}

// thicken goes one step back with those whose time is over.
func (s *sieve) thicken() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.timer = nil
	now := time.Now()
	next := now.Add(thinFor)
	for source, t := range s.thin {
		if t.until.After(now) {
			if t.until.Before(next) {
				next = t.until
			}
		} else if t.steps > 1 {
			s.thin[source] = thinned{t.steps - 1, now.Add(thinFor)}
		} else {
			delete(s.thin, source)
		}
	}
	if len(s.thin) > 0 {
		s.timer = time.AfterFunc(next.Sub(now), s.thicken)
	}
	s.attach()
}

// close ends the sieve's use; nothing of it runs any more when it returns.
func (s *sieve) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

// attach gives the kernel the program for those that are thinned out. If it
// takes none, the reader goes on dropping alone.
func (s *sieve) attach() {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(handle uintptr) {
		if len(s.thin) == 0 {
			_ = unix.SetsockoptInt(int(handle), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			return
		}
		p := sieveProgram(s.thin)
		_ = unix.SetsockoptSockFprog(int(handle), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]})
	})
}

// sieveProgram is a classic BPF program that lets one in thinning to the power
// of steps packets through of those that come from these addresses. It looks
// for the address in the IP header; all are of one family.
func sieveProgram(sources map[netip.Addr]thinned) (p []unix.SockFilter) {
	const (
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		below    = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K // with Jt and Jf the other way round
		give     = unix.BPF_RET | unix.BPF_K
		ipHeader = 0xfff00000 // SKF_NET_OFF (linux/filter.h)
		random   = 0xfffff038 // SKF_AD_OFF + SKF_AD_RANDOM
		whole    = 1 << 31
	)
	for addr, t := range sources {
		at := uint32(ipHeader + 8) // of the source's first word, IPv6
		if addr.Is4() {
			at = ipHeader + 12
		}
		b := addr.AsSlice()
		for i := 0; i < len(b); i += 4 {
			past := uint8((len(b)-i)/4*2 + 2) // to behind this address's instructions
			p = append(p,
				unix.SockFilter{Code: load, K: at + uint32(i)},
				unix.SockFilter{Code: equal, Jf: past, K: binary.BigEndian.Uint32(b[i:])})
		}
		share := uint32(1)
		for range t.steps {
			share *= thinning
		}
		p = append(p,
			unix.SockFilter{Code: load, K: random},
			unix.SockFilter{Code: below, Jf: 1, K: math.MaxUint32 / share},
			unix.SockFilter{Code: give, K: 0},
			unix.SockFilter{Code: give, K: whole})
	}
	return append(p, unix.SockFilter{Code: give, K: whole})
}
