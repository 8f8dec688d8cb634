package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// The networks of virtual addresses of services: `NETWORK dev eth0 metric
// 1717986918` with our protocol number, so that what this host itself sends to
// one is routed at all, without a default route too, and comes to the output
// hook, where the packet filter puts the endpoint in its place and has it routed
// anew. What the filter does not translate it refuses, in the hooks output and
// forward. So the route must lead somewhere: unreachable, blackhole, throw and,
// with IPv6, lo refuse before these hooks, in words of their own and seldom
// (RFC 4443, 2.4 (f)). With IPv4 and lo the packets count as this host's own: it
// is not told of a refusal over UDP, and its own servers answer where there is
// no filter. Over the containers' bridge containers would be told to ask there
// for the address themselves (RFC 792, redirect).

// serviceMetric lets any other route to the same network come first, and is none
// of a lease's.
const serviceMetric = 0x66666666

// service is one such route.
type service struct {
	dst  netip.Prefix
	link int
	src  netip.Addr // zero: the kernel chooses
}

// SyncServices makes these the networks of services that are routed: whole
// state, idempotent. The routes lead over the first of links, by index, that
// takes them: one that is down or lacks the family does not. The host's own
// packets to them come from the first of sources that is of the family and is
// this host's by now; while none is, from the one that the kernel chooses. It
// returns how many routes it set or removed. The rest is done even if one is
// refused.
//
// These routes are not among those of Routes, so that they are nobody's who
// syncs others.
func (h *Handle) SyncServices(networks []netip.Prefix, links []int, sources []netip.Addr) (writes int, err error) {
	have, err := h.services()
	if err != nil {
		return 0, err
	}
	want := map[netip.Prefix]netip.Addr{}
	for _, n := range networks {
		if !n.IsValid() || n.Bits() == 0 || n != n.Masked() || n.Addr().Is4In6() || n.Addr().IsMulticast() || n.Addr().IsLoopback() {
			return 0, fmt.Errorf("%q cannot be a network of services: it must be the first address of one, not loopback or multicast", n)
		}
		want[n] = h.source(n.Addr().Is4(), sources)
	}
	var errs []error
	note := func(err error) {
		if writes++; err != nil {
			errs = append(errs, err)
		}
	}
	for _, s := range have {
		src, ok := want[s.dst]
		if ok = ok && slices.Contains(links, s.link); ok {
			delete(want, s.dst)
		}
		switch {
		case !ok:
			note(h.writeService(unix.RTM_DELROUTE, 0, s))
		case src != s.src:
			note(h.writeService(unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, service{s.dst, s.link, src}))
		}
	}
	for _, n := range networks {
		if src, ok := want[n]; ok {
			delete(want, n)
			note(h.addService(n, links, src))
		}
	}
	return writes, errors.Join(errs...)
}

// addService routes a network over the first link that takes it.
func (h *Handle) addService(dst netip.Prefix, links []int, src netip.Addr) error {
	err := fmt.Errorf("route services' network %s: there is no link to lead it over", dst)
	for i, l := range links {
		e := h.writeService(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, service{dst, l, src})
		if e == nil {
			return nil
		}
		if i == 0 {
			err = e
		}
	}
	return err
}

// source is the first of these that the kernel takes as a source now.
func (h *Handle) source(v4 bool, sources []netip.Addr) netip.Addr {
	for _, a := range sources {
		if a = a.Unmap(); a.IsValid() && a.Is4() == v4 {
			if p, err := h.RouteTo(a); err == nil && p.Local {
				return a
			}
		}
	}
	return netip.Addr{}
}

// writeService sets or deletes a route. A source that is refused (it went
// meanwhile, or IPv6 still asks whether somebody else has it) is left out.
func (h *Handle) writeService(kind, flags uint16, s service) error {
	body := [rtmsgLen]byte{
		0: family(s.dst.Addr()), 1: byte(s.dst.Bits()),
		4: unix.RT_TABLE_MAIN, 5: Protocol, 6: unix.RT_SCOPE_LINK, 7: unix.RTN_UNICAST,
	}
	b := h.message(kind, flags, body[:])
	addAddr(b, unix.RTA_DST, s.dst.Addr())
	add32(b, unix.RTA_OIF, uint32(s.link))
	add32(b, unix.RTA_PRIORITY, serviceMetric)
	if s.src.IsValid() && kind == unix.RTM_NEWROUTE {
		addAddr(b, unix.RTA_PREFSRC, s.src)
	}
	err := h.do()
	switch {
	case err == nil || kind == unix.RTM_DELROUTE && errors.Is(err, unix.ESRCH):
		return nil
	case s.src.IsValid() && errors.Is(err, unix.EINVAL):
		return h.writeService(kind, flags, service{dst: s.dst, link: s.link})
	case kind == unix.RTM_DELROUTE:
		return fmt.Errorf("remove route to services' network %s: %w", s.dst, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("route services' network %s: somebody else's route has metric %d: take it away (ip route show %s)", s.dst, serviceMetric, s.dst)
	default:
		return fmt.Errorf("route services' network %s: %w", s.dst, err)
	}
}

// services lists the routes of SyncServices.
func (h *Handle) services() ([]service, error) {
	var out []service
	for _, fam := range families() {
		body := [rtmsgLen]byte{0: fam, 4: unix.RT_TABLE_MAIN, 5: Protocol}
		h.message(unix.RTM_GETROUTE, unix.NLM_F_DUMP, body[:])
		start := len(out)
		err := h.dump(func() { out = out[:start] }, func(body []byte) error {
			var r Route
			if len(body) > 0 && body[0] == fam && readRoute(body, &r) && r.ofServices() {
				s := service{dst: r.Dst, link: r.Link}
				for kind, data := range nlbatch.Attrs(body[rtmsgLen:]) {
					if kind == unix.RTA_PREFSRC {
						s.src = addrOf(data)
					}
				}
				out = append(out, s)
			}
			return nil
		})
		if err != nil && !noFamily(err) {
			return nil, fmt.Errorf("list routes of services: %w", err)
		}
	}
	return out, nil
}

// ofServices tells whether r is one of SyncServices.
func (r *Route) ofServices() bool {
	return r.Protocol == Protocol && r.Metric == serviceMetric && !r.Via.IsValid()
}
