package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Watch says what a Monitor looks at, by interface name.
type Watch struct {
	// Devices are ours: everything on them counts, and every route that
	// carries Protocol. A name that ends in * is every name that begins so.
	Devices []string
	// Underlay are interfaces of which only themselves and their addresses
	// count.
	Underlay []string
}

// Change is what happened since the one before, as coarse as it is used.
type Change struct {
	Lost     bool // notifications were lost: everything may have changed
	Devices  bool // one of our devices, or an object on one, or a route of ours
	Underlay bool
}

// What a Monitor waits for before it speaks, so that what happens together is
// told once, and between two Changes.
const (
	monitorDelay = 50 * time.Millisecond
	monitorGap   = 500 * time.Millisecond
)

// Monitor tells when somebody else changed the kernel. The kernel selects
// what it hands over, so that route churn elsewhere costs next to nothing.
// Changes that the handles of own made are no news.
type Monitor struct {
	// C receives after changes, several of them merged. Never closed.
	C <-chan Change
	// Unplugged receives after a bridge of WatchBridges, an address of one or
	// a port of one was taken away or down, and not put back at once. It
	// keeps one for who looks later. Never closed.
	Unplugged <-chan struct{}

	c         chan Change
	unplugged chan struct{}
	own       *Own
	f         *os.File
	raw       interface {
		Read(func(fd uintptr) (done bool)) error
		Control(func(fd uintptr)) error
	}
	pending map[int]struct{} // links to be looked at after the delay; of Run alone

	mu       sync.Mutex // guards what follows
	addrs    map[Address]struct{}
	devices  []string
	underlay []string
	links    map[int]linkState // of the interfaces watched
	plugs    plugs
}

// NewMonitor subscribes in the calling thread's network namespace; what
// happens from now on is told once Run runs. own may be nil.
func NewMonitor(w Watch, own *Own) (*Monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := make(chan Change, 1)
	unplugged := make(chan struct{}, 1)
	m := &Monitor{C: c, c: c, Unplugged: unplugged, unplugged: unplugged, own: own, pending: map[int]struct{}{}, plugs: newPlugs(nil)}
	m.f = os.NewFile(uintptr(fd), "netlink monitor")
	if m.raw, err = m.f.SyscallConn(); err == nil {
		err = m.subscribe(fd)
	}
	if err == nil {
		err = m.Watch(w)
	}
	if err != nil {
		m.f.Close()
		return nil, fmt.Errorf("subscribe to the kernel's changes: %w", err)
	}
	own.watch(m, true)
	return m, nil
}

func (m *Monitor) subscribe(fd int) error {
	m.refilter()
	const buffer = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	var groups uint32
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	} {
		groups |= 1 << (g - 1)
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
}

// Watch replaces what is looked at. It must be called from a thread in the
// monitor's network namespace, and may be called while Run runs.
func (m *Monitor) Watch(w Watch) error {
	h, err := Open()
	if err != nil {
		return err
	}
	defer h.Close()
	links, addrs := map[int]linkState{}, map[Address]struct{}{}
	watched, err := watchedLinks(h, slices.Concat(w.Devices, w.Underlay))
	if err != nil {
		return err
	}
	for _, l := range watched {
		links[l.Index] = stateOf(&l)
		all, err := h.Addresses(l.Index)
		if err != nil && !errors.Is(err, unix.ENODEV) { // gone since
			return err
		}
		for _, a := range all {
			addrs[a] = struct{}{}
		}
	}
	m.mu.Lock()
	m.devices, m.underlay, m.links, m.addrs = slices.Clone(w.Devices), slices.Clone(w.Underlay), links, addrs
	m.mu.Unlock()
	m.refilter()
	return nil
}

// refilter tells the kernel what to hand over.
func (m *Monitor) refilter() {
	m.mu.Lock()
	var devices, underlay []int
	for index, s := range m.links {
		if named(m.devices, s.name) {
			devices = append(devices, index)
		} else {
			underlay = append(underlay, index)
		}
	}
	underlay = slices.AppendSeq(underlay, maps.Keys(m.plugs.bridges)) // the same counts
	m.mu.Unlock()
	prog := filter(m.own.portIDs(), devices, underlay)
	_ = m.raw.Control(func(fd uintptr) {
		// Without a filter everything is handed over and sorted out here.
		_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	})
}

// Run reads notifications until ctx ends, then closes the monitor and returns
// nil.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.f.Close()
	defer m.own.watch(m, false)
	defer context.AfterFunc(ctx, func() { _ = m.f.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 64<<10)
	var news Change
	var due, quiet time.Time // when news is told; until when none is
	for {
		if ctx.Err() != nil {
			return nil
		}
		n, err := m.read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, unix.ENOBUFS):
			news.Lost = true
		case err != nil:
			return fmt.Errorf("receive the kernel's changes: %w", err)
		}
		m.take(buf[:n], &news)
		now := time.Now()
		switch {
		case due.IsZero() && news == Change{} && len(m.pending) == 0 && !m.plugsPending():
			continue
		case due.IsZero():
			due = now.Add(monitorDelay)
			if due.Before(quiet) {
				due = quiet
			}
			_ = m.f.SetReadDeadline(due)
			if ctx.Err() != nil { // its deadline may have been overwritten
				return nil
			}
		case !now.Before(due):
			m.settle(&news)
			m.tell(news)
			if news != (Change{}) {
				quiet = now.Add(monitorGap)
			}
			news, due = Change{}, time.Time{}
			_ = m.f.SetReadDeadline(time.Time{})
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

func (m *Monitor) read(buf []byte) (n int, err error) {
	var got error
	err = m.raw.Read(func(fd uintptr) bool {
		n, _, got = unix.Recvfrom(int(fd), buf, 0)
		return got != unix.EAGAIN && got != unix.EINTR
	})
	if err == nil {
		err = got
	}
	return max(n, 0), err
}

// tell hands news over, merged with what was not fetched yet.
func (m *Monitor) tell(news Change) {
	if news == (Change{}) {
		return
	}
	if news.Lost {
		m.tellUnplugged()
	}
	select {
	case old := <-m.c:
		news.Lost = news.Lost || old.Lost
		news.Devices = news.Devices || old.Devices
		news.Underlay = news.Underlay || old.Underlay
	default:
	}
	m.c <- news // there is room: nobody else sends
}

// take sorts the notifications of one read.
func (m *Monitor) take(b []byte, news *Change) {
	ports := m.own.portIDs()
	for h, body := range nlbatch.Messages(b) {
		ours := h.Port != 0 && slices.Contains(ports, h.Port)
		switch h.Kind {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			m.link(h.Kind, body, news)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			m.address(h.Kind, ours, body, news)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			var r Route
			// The kernel's own routes follow addresses, which are told too.
			if !ours && readRoute(body, &r) && r.Protocol != unix.RTPROT_KERNEL && (r.Protocol == Protocol || m.isDevice(r.Link)) {
				news.Devices = true
			}
			if _, local := readLocal(body); local && !ours {
				news.Devices = true
			}
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			if !ours && m.neighbour(h.Kind, body) {
				news.Devices = true
			}
		}
	}
}

// neighbour reports whether an entry's change is news: one that can matter on
// a device of ours, and that we did not make ourselves.
func (m *Monitor) neighbour(kind uint16, body []byte) bool {
	e := echo{kind: kind}
	if len(body) > 0 && body[0] == unix.AF_BRIDGE {
		var f FDB
		if !parseFDB(body, &f) {
			return false
		}
		e.link, e.mac, e.addr = f.Link, f.MAC, f.Dst
	} else {
		var n Neighbour
		// A deleted entry is not permanent any more, whatever it was.
		if !parseNeighbour(body, &n) || !n.Permanent && kind == unix.RTM_NEWNEIGH {
			return false
		}
		e.link, e.addr = n.Link, n.Addr
	}
	return m.isDevice(e.link) && !m.own.heard(e)
}

func (m *Monitor) address(kind uint16, ours bool, body []byte, news *Change) {
	var a Address
	if !parseAddress(body, &a) || a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast() {
		return // the kernel's own, and nobody's end of a tunnel
	}
	if refreshed := m.noteAddress(kind, a); refreshed {
		return
	}
	if kind == unix.RTM_DELADDR {
		m.unaddressed(a.Link)
	}
	device, underlay := m.watched(a.Link)
	if device && (ours || m.own.dropped(a.Link) || m.own.heard(echo{kind: kind, link: a.Link, addr: a.Prefix.Addr()})) {
		return
	}
	news.Devices = news.Devices || device
	news.Underlay = news.Underlay || underlay
}

// noteAddress keeps the addresses current and reports whether one was only
// told again, as with every router advertisement.
func (m *Monitor) noteAddress(kind uint16, a Address) (refreshed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, same := m.addrs[a]
	other := a
	other.Settled = !a.Settled
	delete(m.addrs, other)
	delete(m.addrs, a)
	if _, watched := m.links[a.Link]; watched && kind == unix.RTM_NEWADDR {
		m.addrs[a] = struct{}{}
	}
	return same && kind == unix.RTM_NEWADDR
}

// link notes how a link is now. Of our devices, only what loses objects is
// news at once; the rest is compared after a while with what our own handles
// found.
func (m *Monitor) link(kind uint16, body []byte, news *Change) {
	var l Link
	if !parseLink(body, &l) {
		return
	}
	m.mu.Lock()
	bridge := m.plugs.link(kind == unix.RTM_DELLINK, &l)
	before, had := m.links[l.Index]
	device, underlay := named(m.devices, l.Name), named(m.underlay, l.Name)
	// A link that got another name counts once more by the old one.
	device = device || had && named(m.devices, before.name)
	underlay = underlay || had && named(m.underlay, before.name)
	now := stateOf(&l)
	if kind == unix.RTM_DELLINK || !named(m.devices, l.Name) && !named(m.underlay, l.Name) {
		delete(m.links, l.Index)
		now = linkState{}
	} else {
		m.links[l.Index] = now
	}
	_, has := m.links[l.Index]
	m.mu.Unlock()
	if had != has || bridge {
		m.refilter()
	}
	if now == before {
		return
	}
	news.Underlay = news.Underlay || underlay
	if device {
		if had && before.up && !now.up && m.own.linkAsSeen(l.Index).up {
			news.Devices = true
		} else {
			m.pending[l.Index] = struct{}{}
		}
	}
}

// settle compares the devices that changed with what our handles know.
func (m *Monitor) settle(news *Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plugs.settle() {
		m.tellUnplugged()
	}
	for index := range m.pending {
		if m.links[index] != m.own.linkAsSeen(index) {
			news.Devices = true
		}
	}
	clear(m.pending)
}

// isDevice reports whether an interface is a device of ours that is still to
// be there.
func (m *Monitor) isDevice(index int) bool {
	device, _ := m.watched(index)
	return device && !m.own.dropped(index)
}

func (m *Monitor) watched(index int) (device, underlay bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.links[index]
	return ok && named(m.devices, s.name), ok && named(m.underlay, s.name)
}
