package dns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// answering is who answers whom at one place. It is immutable.
type answering struct {
	views []answeringView // at least one
	own   *ownAddrs       // of the namespace; nil: only addrs and loopback are known
	addrs []netip.Addr    // of the views
}

type answeringView struct {
	sources  []netip.Prefix
	zone     Zone
	counters *counters
}

// admit returns the view that answers a source, nil if none does.
func (a *answering) admit(source netip.Addr) *answeringView {
	for i := range a.views {
		for _, p := range a.views[i].sources {
			if p.Contains(source) {
				return &a.views[i]
			}
		}
	}
	if a.hosts(source) {
		return &a.views[0]
	}
	return nil
}

// hosts reports whether a source is this host itself.
func (a *answering) hosts(source netip.Addr) bool {
	if source.IsLoopback() {
		return true
	}
	for _, addr := range a.addrs {
		if addr == source {
			return true
		}
	}
	return a.own != nil && a.own.has(source)
}

// ownAddrs are the addresses of this network namespace. They are looked up
// anew when somebody unknown asks, at most once a second; the query that was
// the reason is not answered, but with IPv4, the host asks an address of its
// own from that same address, which needs no look.
type ownAddrs struct {
	addrs atomic.Pointer[map[netip.Addr]bool]
	ask   chan struct{} // holds one value if a look is due
}

func (o *ownAddrs) has(addr netip.Addr) bool {
	if m := o.addrs.Load(); m != nil && (*m)[addr] {
		return true
	}
	select {
	case o.ask <- struct{}{}:
	default:
	}
	return false
}

// run looks when asked to, until ctx ends.
func (o *ownAddrs) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.ask:
			o.refresh()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// refresh looks. What cannot be read leaves what was known.
func (o *ownAddrs) refresh() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	m := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				m[addr.Unmap()] = true
			}
		}
	}
	o.addrs.Store(&m)
}
