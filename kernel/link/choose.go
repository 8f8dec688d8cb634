package link

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Choice says which interface carries the tunnels, with flannel's meanings.
// The first of these that is set decides, in this order.
type Choice struct {
	// Ifaces are names or addresses (--iface); the first that fits is taken.
	Ifaces []string
	// Regexes match an address or else a name (--iface-regex).
	Regexes []string
	// CanReach takes the interface that the host would use for it
	// (--iface-can-reach).
	CanReach netip.Addr
	// With none of these it is the interface of the default route.

	// PublicIPs replace what others are told, one per family or none
	// (--public-ip, --public-ipv6).
	PublicIPs []netip.Addr
	// IPv4 and IPv6 say which families the interface must have an address of.
	IPv4, IPv6 bool
	// Avoid are address spaces that are never the underlay's: the pod
	// network's own.
	Avoid []netip.Prefix
}

// Chosen is the interface that Choose found. It converts to backend.Underlay.
type Chosen struct {
	Link      string
	Index     int
	MTU       int
	Addrs     []netip.Addr
	PublicIPs []netip.Addr
}

// host is what there is to choose from.
type host struct {
	c     Choice
	links []Link
	addrs []Address
}

// Choose picks the underlay's interface. Its errors say what there is and
// which flag to set.
func Choose(h *Handle, c Choice) (Chosen, error) {
	if !c.IPv4 && !c.IPv6 {
		return Chosen{}, errors.New("choose the underlay: no address family is enabled")
	}
	links, err := h.Links("")
	if err != nil {
		return Chosen{}, err
	}
	addrs, err := h.Addresses(0)
	if err != nil {
		return Chosen{}, err
	}
	there := host{c, links, addrs}
	switch {
	case len(c.Ifaces) > 0 || len(c.Regexes) > 0:
		return there.named()
	case c.CanReach.IsValid():
		return there.reaching(h)
	default:
		return there.defaultRoute(h)
	}
}

// named takes the first of --iface, then of --iface-regex, that fits.
func (h *host) named() (Chosen, error) {
	var errs []error
	for _, want := range h.c.Ifaces {
		ch, err := h.iface(want)
		if err == nil {
			return ch, nil
		}
		errs = append(errs, err)
	}
	for _, want := range h.c.Regexes {
		ch, err := h.regex(want)
		if err == nil {
			return ch, nil
		}
		errs = append(errs, err)
	}
	return Chosen{}, fmt.Errorf("%w; there are: %s", errors.Join(errs...), h)
}

// iface finds an interface by its name or one of its addresses.
func (h *host) iface(want string) (Chosen, error) {
	if ip, err := netip.ParseAddr(want); err == nil {
		ip = ip.Unmap()
		for _, a := range h.addrs {
			if a.Prefix.Addr() == ip.WithZone("") {
				return h.take(a.Link, ip)
			}
		}
		return Chosen{}, fmt.Errorf("--iface=%s: no interface has this address", want)
	}
	for _, l := range h.links {
		if l.Name == want {
			ch, err := h.take(l.Index)
			if err != nil {
				err = fmt.Errorf("--iface=%s: %w", want, err)
			}
			return ch, err
		}
	}
	return Chosen{}, fmt.Errorf("--iface=%s: no such interface", want)
}

// regex finds the first interface with a matching address of each family,
// else the first with a matching name. Those without a usable address do not
// count.
func (h *host) regex(want string) (Chosen, error) {
	re, err := regexp.Compile(want)
	if err != nil {
		return Chosen{}, fmt.Errorf("--iface-regex=%s: %w", want, err)
	}
	for _, l := range h.links {
		var hits []netip.Addr
		for _, v4 := range h.families() {
			for _, a := range h.usable(l.Index, v4) {
				if re.MatchString(a.String()) {
					hits = append(hits, a)
					break
				}
			}
		}
		if len(hits) == len(h.families()) {
			return h.take(l.Index, hits...)
		}
	}
	for _, l := range h.links {
		if re.MatchString(l.Name) {
			if ch, err := h.take(l.Index); err == nil {
				return ch, nil
			}
		}
	}
	return Chosen{}, fmt.Errorf("--iface-regex=%s: matches no address and no name of an interface with the needed addresses", want)
}

func (h *host) reaching(k *Handle) (Chosen, error) {
	p, err := k.RouteTo(h.c.CanReach)
	if err == nil && p.Local {
		err = errors.New("this is an address of this host")
	}
	if err != nil {
		return Chosen{}, fmt.Errorf("--iface-can-reach=%s: %w; name the interface with --iface; there are: %s", h.c.CanReach, err, h)
	}
	ch, err := h.take(p.Link, p.Src)
	if err != nil {
		err = fmt.Errorf("--iface-can-reach=%s: %w; there are: %s", h.c.CanReach, err, h)
	}
	return ch, err
}

// defaultRoute takes the interface of the first family's default route. The
// other family's must not disagree.
func (h *host) defaultRoute(k *Handle) (Chosen, error) {
	routes, err := k.defaultRoutes()
	if err != nil {
		return Chosen{}, err
	}
	link := 0
	for _, v4 := range h.families() {
		for _, r := range routes {
			if r.Dst.Addr().Is4() != v4 {
				continue
			}
			if link != 0 && r.Link != link {
				return Chosen{}, fmt.Errorf("the default routes of IPv4 and IPv6 leave by %s and %s: name one with --iface; there are: %s",
					h.name(link), h.name(r.Link), h)
			}
			link = r.Link
			break
		}
	}
	if link == 0 {
		return Chosen{}, fmt.Errorf("there is no default route to tell the underlay by: name its interface with --iface; there are: %s", h)
	}
	ch, err := h.take(link)
	if err != nil {
		err = fmt.Errorf("interface of the default route: %w; name another with --iface; there are: %s", err, h)
	}
	return ch, err
}

// defaultRoutes lists them, best metric first.
func (h *Handle) defaultRoutes() ([]Route, error) {
	all, err := h.Routes(RouteFilter{})
	all = slices.DeleteFunc(all, func(r Route) bool { return r.Dst.Bits() != 0 || r.Link == 0 })
	slices.SortStableFunc(all, func(a, b Route) int { return int(min(a.Metric, 1<<30)) - int(min(b.Metric, 1<<30)) })
	return all, err
}

// take makes the choice of an interface complete: the preferred addresses
// where they are given and allowed, else the first usable of each family.
func (h *host) take(index int, preferred ...netip.Addr) (Chosen, error) {
	i := slices.IndexFunc(h.links, func(l Link) bool { return l.Index == index })
	if i < 0 {
		return Chosen{}, fmt.Errorf("interface with index %d: %w", index, ErrNoLink)
	}
	l := h.links[i]
	ch := Chosen{Link: l.Name, Index: l.Index, MTU: l.MTU}
	for _, v4 := range h.families() {
		same := func(a netip.Addr) bool { return a.IsValid() && a.Is4() == v4 }
		var addr netip.Addr
		if i := slices.IndexFunc(preferred, same); i >= 0 {
			addr = preferred[i]
		} else if all := h.usable(index, v4); len(all) > 0 {
			addr = all[0]
		} else {
			return Chosen{}, fmt.Errorf("interface %s has no usable %s address", l.Name, familyName(v4))
		}
		public := addr
		if i := slices.IndexFunc(h.c.PublicIPs, same); i >= 0 {
			public = h.c.PublicIPs[i]
		}
		ch.Addrs = append(ch.Addrs, addr)
		ch.PublicIPs = append(ch.PublicIPs, public)
	}
	if l.MTU == 0 {
		return Chosen{}, fmt.Errorf("interface %s has MTU 0: set it with ip link set %s mtu", l.Name, l.Name)
	}
	return ch, nil
}

// usable lists the addresses of an interface and family that others can
// reach: global ones first, then IPv4 link-local ones. (An IPv6 one means
// nothing without naming the link, which a lease cannot.)
func (h *host) usable(index int, v4 bool) []netip.Addr {
	var global, local []netip.Addr
	for _, a := range h.addrs {
		ip := a.Prefix.Addr()
		avoid := slices.ContainsFunc(h.c.Avoid, func(p netip.Prefix) bool { return p.Contains(ip) })
		switch {
		case a.Link != index || ip.Is4() != v4 || !a.Settled || avoid:
		case ip.IsGlobalUnicast():
			global = append(global, ip)
		case ip.IsLinkLocalUnicast() && v4:
			local = append(local, ip)
		}
	}
	return append(global, local...)
}

// families yields "is IPv4" of the enabled ones, IPv4 first.
func (h *host) families() []bool {
	switch {
	case h.c.IPv4 && h.c.IPv6:
		return []bool{true, false}
	case h.c.IPv4:
		return []bool{true}
	default:
		return []bool{false}
	}
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

func (h *host) name(index int) string {
	for _, l := range h.links {
		if l.Index == index {
			return l.Name
		}
	}
	return fmt.Sprintf("interface %d", index)
}

// String lists the interfaces with their addresses, as errors show them.
func (h *host) String() string {
	const most = 20
	var out []string
	for _, l := range h.links {
		if l.Loopback {
			continue
		}
		if len(out) == most {
			out = append(out, fmt.Sprintf("and %d more", len(h.links)-most))
			break
		}
		s := l.Name
		for _, a := range h.addrs {
			if a.Link == l.Index && !a.Prefix.Addr().IsLinkLocalUnicast() {
				s += " " + a.Prefix.Addr().String()
			}
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return "none besides lo"
	}
	return strings.Join(out, ", ")
}
