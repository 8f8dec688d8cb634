package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Route is a route of the main table.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // gateway; zero: none
	Link     int
	Metric   uint32
	OnLink   bool // Via counts as reachable on Link whatever the table says
	Protocol uint8
	Encap    Encap // what Link, an external tunnel device, is told; zero: nothing
	// Special: it has something that this type does not tell (not unicast,
	// several next hops, an encapsulation of another kind, a source address,
	// metrics), so that it equals no route of ours.
	Special bool
}

const (
	rtmsgLen     = 12 // struct rtmsg
	rtaNexthopID = 30 // RTA_NH_ID, which x/sys lacks
)

// addRoute appends the message that sets or deletes a route.
func addRoute(b *nlbatch.Batch, kind, flags uint16, r *Route) {
	body := [rtmsgLen]byte{
		0: family(r.Dst.Addr()),
		1: byte(r.Dst.Bits()),
		4: unix.RT_TABLE_MAIN,
		5: r.Protocol,
		7: unix.RTN_UNICAST,
	}
	switch {
	case kind == unix.RTM_DELROUTE:
		body[6] = unix.RT_SCOPE_NOWHERE // any
		if r.Special {
			body[7] = unix.RTN_UNSPEC // any
		}
	case !r.Via.IsValid() && r.Dst.Addr().Is4():
		body[6] = unix.RT_SCOPE_LINK
	}
	if r.OnLink && kind == unix.RTM_NEWROUTE {
		native.PutUint32(body[8:], unix.RTNH_F_ONLINK)
	}
	b.Message(kind, flags, body[:])
	addAddr(b, unix.RTA_DST, r.Dst.Addr())
	if r.Via.IsValid() {
		addAddr(b, unix.RTA_GATEWAY, r.Via)
	}
	if r.Link != 0 {
		add32(b, unix.RTA_OIF, uint32(r.Link))
	}
	if r.Metric != 0 {
		add32(b, unix.RTA_PRIORITY, r.Metric)
	}
	if r.Encap != (Encap{}) && kind == unix.RTM_NEWROUTE {
		addEncap(b, &r.Encap)
	}
}

// readRoute reads a route message; ok is false for what is not a route of
// the main table (a cached one).
func readRoute(body []byte, r *Route) (ok bool) {
	if len(body) < rtmsgLen {
		return false
	}
	*r = Route{Protocol: body[5], Special: body[7] != unix.RTN_UNICAST || body[2] != 0 || body[3] != 0}
	flags := native.Uint32(body[8:])
	if flags&unix.RTM_F_CLONED != 0 {
		return false
	}
	r.OnLink = flags&unix.RTNH_F_ONLINK != 0
	dst := netip.IPv4Unspecified()
	if body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	table := uint32(body[4])
	var encap []byte
	var encapKind uint16
	for kind, data := range nlbatch.Attrs(body[rtmsgLen:]) {
		switch kind {
		case unix.RTA_DST:
			dst = addrOf(data)
		case unix.RTA_GATEWAY:
			r.Via = addrOf(data)
		case unix.RTA_OIF:
			r.Link = int(u32(data))
		case unix.RTA_PRIORITY:
			r.Metric = u32(data)
		case unix.RTA_TABLE:
			table = u32(data)
		case unix.RTA_MULTIPATH:
			r.Special = true
			if len(data) >= 8 { // struct rtnexthop: the first one stands for all
				r.Link = int(u32(data[4:]))
			}
		case unix.RTA_ENCAP:
			encap = data
		case unix.RTA_ENCAP_TYPE:
			encapKind = u16(data)
		case unix.RTA_PREFSRC, unix.RTA_METRICS, unix.RTA_VIA, rtaNexthopID:
			r.Special = true
		}
	}
	if encap != nil && !readEncap(encapKind, encap, &r.Encap) {
		r.Special = true
	}
	r.Dst = netip.PrefixFrom(dst, int(body[1]))
	return table == unix.RT_TABLE_MAIN && r.Dst.IsValid()
}

// RouteFilter says which routes to list; the kernel does the selecting.
type RouteFilter struct {
	Link     int   // 0: of every interface
	Protocol uint8 // 0: any
}

// Routes lists the routes of both families in the main table that fit, but
// those of SyncServices.
func (h *Handle) Routes(f RouteFilter) ([]Route, error) {
	var out []Route
	for _, fam := range families() {
		body := [rtmsgLen]byte{0: fam, 4: unix.RT_TABLE_MAIN, 5: f.Protocol}
		b := h.message(unix.RTM_GETROUTE, unix.NLM_F_DUMP, body[:])
		if f.Link != 0 {
			add32(b, unix.RTA_OIF, uint32(f.Link))
		}
		start := len(out)
		err := h.dump(func() { out = out[:start] }, func(body []byte) error {
			var r Route
			// Filtered again: a kernel without strict checking lists all.
			if len(body) > 0 && body[0] == fam && readRoute(body, &r) &&
				(f.Link == 0 || r.Link == f.Link) && (f.Protocol == 0 || r.Protocol == f.Protocol) && !r.ofServices() {
				out = append(out, r)
			}
			return nil
		})
		if err != nil && !noFamily(err) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	return out, nil
}

// noFamily reports whether an error says that the kernel lacks an address
// family (IPv6 switched off at boot).
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Path is how the kernel would send a packet.
type Path struct {
	Link int
	Via  netip.Addr // zero: the destination is on the link itself
	Src  netip.Addr
	// Local: the destination is this host.
	Local bool
}

// RouteTo asks the kernel where it would send a packet for dst. Where it
// would not send it at all the error is the kernel's (unix.ENETUNREACH, …).
func (h *Handle) RouteTo(dst netip.Addr) (Path, error) {
	body := [rtmsgLen]byte{0: family(dst), 1: byte(dst.BitLen())}
	b := h.message(unix.RTM_GETROUTE, 0, body[:])
	addAddr(b, unix.RTA_DST, dst)
	var p Path
	err := h.get(func(body []byte) error {
		if len(body) < rtmsgLen {
			return ErrNotFound
		}
		p.Local = body[7] == unix.RTN_LOCAL
		if body[7] != unix.RTN_UNICAST && !p.Local {
			return ErrNotFound
		}
		for kind, data := range nlbatch.Attrs(body[rtmsgLen:]) {
			switch kind {
			case unix.RTA_OIF:
				p.Link = int(u32(data))
			case unix.RTA_GATEWAY:
				p.Via = addrOf(data)
			case unix.RTA_VIA:
				if len(data) > 2 { // struct rtvia: a gateway of the other family
					p.Via = addrOf(data[2:])
				}
			case unix.RTA_PREFSRC:
				p.Src = addrOf(data)
			}
		}
		return nil
	})
	if err != nil {
		return Path{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	return p, nil
}
