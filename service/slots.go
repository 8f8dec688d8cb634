package service

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/rules"
)

const (
	// maxSlots of one frontend.
	maxSlots  = 4096
	maxWeight = 100
)

// On is the number that p has on an endpoint. False: it has no port of that
// name, or none that is a number.
func (p *Port) On(e *endpoint.Endpoint) (port uint16, ok bool) {
	if p.TargetName == "" {
		return cmp.Or(p.Target, p.Port), true
	}
	n, err := strconv.ParseUint(e.Labels[LabelPort+p.TargetName], 10, 16)
	return uint16(n), err == nil && n != 0
}

// weightOf is how many times as many connections e gets. False: its label says
// nothing that could be, and it counts as 1.
func weightOf(e *endpoint.Endpoint) (int, bool) {
	text, there := e.Labels[LabelWeight]
	if !there {
		return 1, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxWeight || strconv.Itoa(n) != text {
		return 1, false
	}
	return n, true
}

// family is of IP addresses.
type family int

const (
	ipv4 family = iota
	ipv6
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// of is the first of a family; of an endpoint with several, the others get no
// connections. It is invalid if there is none.
func (f family) of(list []netip.Addr) netip.Addr {
	for _, a := range list {
		if familyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// leftOut tells why e takes no connections of a service that it is selected by,
// or with nil of a publication; "" if it does.
func (st *State) leftOut(e *endpoint.Endpoint, s *Service) string {
	if why, dead := st.Dead[e.Host]; dead && e.Host != st.Host {
		return cmp.Or(why, e.Host+" is gone")
	}
	if s != nil {
		if why, sick := e.Unhealthy[s.Name]; sick {
			return "unhealthy: " + why
		}
	}
	return ""
}

// filling is what goes into the slots of one port of a taker after the other.
type filling struct {
	state    *State
	taker    *taker
	port     *Port
	selected []*endpoint.Endpoint
	made     [2][]netip.AddrPort // by family; nil: not yet
	list     []netip.AddrPort    // being filled
	problems []error
}

// next goes on with another port.
func (f *filling) next(p *Port) {
	f.port, f.made = p, [2][]netip.AddrPort{}
}

func (f *filling) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.ContainsFunc(f.problems, func(err error) bool { p, ok := errors.AsType[*Problem](err); return ok && p.Text == text }) {
		return // of another family, or another way to count
	}
	f.problems = append(f.problems, &Problem{Service: f.taker.service, Published: f.taker.published, Text: text})
}

// slots of a family, which all frontends of the port share.
func (f *filling) slots(fam family) []netip.AddrPort {
	if f.made[fam] == nil {
		if trouble := f.fill(fam); trouble != "" {
			f.problem("port %d/%s has %s", f.port.Port, f.port.Protocol, trouble)
		}
		f.made[fam] = append(make([]netip.AddrPort, 0, len(f.list)), f.list...)
	}
	return f.made[fam]
}

// fill makes the slots of a family: those of the listed addresses in their
// order, then those of the endpoints by key, so that one that comes or goes
// moves only those after it. trouble is why there are fewer than there should
// be.
func (f *filling) fill(fam family) (trouble string) {
	local := LocalCluster
	if f.taker.service != nil {
		local = cmp.Or(f.taker.service.Local, LocalCluster)
	}
	if local != LocalCluster {
		if trouble = f.fillBounded(fam, true); len(f.list) > 0 || local == LocalOnly {
			return trouble
		}
	}
	return f.fillBounded(fam, false)
}

func (f *filling) fillBounded(fam family, own bool) (trouble string) {
	if f.collect(fam, own, true); len(f.list) <= maxSlots {
		return ""
	}
	if f.collect(fam, own, false); len(f.list) <= maxSlots {
		return fmt.Sprintf("more than %d endpoints if each counts by its weight: all count the same; make the values of %s smaller", maxSlots, LabelWeight)
	}
	f.list = f.list[:maxSlots]
	return fmt.Sprintf("more than %d endpoints: the others get no connections; divide them among several services", maxSlots)
}

// collect stops when there are more than maxSlots.
func (f *filling) collect(fam family, own, weighted bool) {
	f.list = f.list[:0]
	s := f.taker.service
	if s != nil && f.port.TargetName == "" {
		for _, a := range s.Endpoints {
			slot := netip.AddrPortFrom(a, cmp.Or(f.port.Target, f.port.Port))
			if familyOf(a) != fam || own && !within(f.state.Subnets, a) {
				continue
			}
			if why := f.state.forbidden(slot, f.port.Protocol); why != "" {
				f.problem("port %d/%s: the listed address %v is left out: %s", f.port.Port, f.port.Protocol, a, why)
				continue
			}
			f.list = append(f.list, slot)
		}
	}
	listed := len(f.list)
	for _, e := range f.selected {
		if own && e.Host != f.state.Host || f.state.leftOut(e, s) != "" {
			continue
		}
		a := fam.of(e.Addresses)
		port, ok := f.port.On(e)
		slot := netip.AddrPortFrom(a, port)
		if !ok || !a.IsValid() || slices.Contains(f.list[:listed], slot) {
			continue
		}
		n := 1
		if weighted {
			n, _ = weightOf(e)
		}
		for range n {
			f.list = append(f.list, slot)
		}
		if len(f.list) > maxSlots {
			return
		}
	}
}

// forbidden tells why nothing may lead to a listed address; "" if it may.
func (st *State) forbidden(a netip.AddrPort, protocol string) string {
	switch {
	case within(st.Networks, a.Addr()):
		return "it is in the network of services itself; list the addresses of servers"
	case protocol == "tcp" && slices.Contains(st.Guarded, a):
		return "it is etcd's port, which is out of containers' reach"
	}
	return ""
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// protocolNumber is IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
func protocolNumber(name string) uint8 {
	switch name {
	case "udp":
		return 17
	case "sctp":
		return 132
	}
	return 6
}

func protocolName(number uint8) string {
	switch number {
	case 17:
		return "udp"
	case 132:
		return "sctp"
	}
	return "tcp"
}

func (s *Service) balance() rules.Balance {
	switch s.Balance {
	case BalanceRoundRobin:
		return rules.RoundRobin
	case BalanceHash:
		return rules.Hash
	}
	return rules.Random
}
