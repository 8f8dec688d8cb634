package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Addresses of this host that no interface has: `local ADDRESS dev lo table
// local` with our protocol number. The host takes packets to them on any
// interface. A socket is bound to one with IP_FREEBIND or IPV6_FREEBIND, and
// answers from it; who sends to it from this host sends from it. It is no
// neighbour's on any link: IPv6 does not answer for it, IPv4 does (see
// rules.OffLink).

// loopback is the index of lo in every network namespace.
const loopback = 1

// SyncLocal makes these the addresses that are this host's by routes of ours:
// whole state, idempotent. It returns how many routes it set or removed. The
// rest is done even if one is refused. lo must be up.
func (h *Handle) SyncLocal(addrs []netip.Addr) (writes int, err error) {
	have, err := h.Locals()
	if err != nil {
		return 0, err
	}
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" {
			return 0, fmt.Errorf("%q cannot be an address of this host on no link: it must be of one host, not loopback, without a zone", a)
		}
		want[a] = true
	}
	var errs []error
	change := func(kind, flags uint16, a netip.Addr) {
		b := h.message(kind, flags, localRoute(a))
		addAddr(b, unix.RTA_DST, a)
		add32(b, unix.RTA_OIF, loopback)
		writes++
		err := h.do()
		switch {
		case err == nil || kind == unix.RTM_DELROUTE && errors.Is(err, unix.ESRCH):
		case errors.Is(err, unix.EEXIST):
			errs = append(errs, fmt.Errorf("make %s this host's own: an interface has it, or somebody else's route: take it away (ip route show table local %s)", a, a))
		case kind == unix.RTM_DELROUTE:
			errs = append(errs, fmt.Errorf("make %s no longer this host's own: %w", a, err))
		default:
			errs = append(errs, fmt.Errorf("make %s this host's own: %w", a, err))
		}
	}
	for _, a := range have {
		if !want[a] {
			change(unix.RTM_DELROUTE, 0, a)
		}
		delete(want, a)
	}
	for _, a := range addrs {
		if a = a.Unmap(); want[a] {
			delete(want, a)
			change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
		}
	}
	return writes, errors.Join(errs...)
}

// Locals lists the addresses that are this host's by routes of ours.
func (h *Handle) Locals() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, fam := range families() {
		body := [rtmsgLen]byte{0: fam, 4: unix.RT_TABLE_LOCAL, 5: Protocol, 7: unix.RTN_LOCAL}
		h.message(unix.RTM_GETROUTE, unix.NLM_F_DUMP, body[:])
		start := len(out)
		err := h.dump(func() { out = out[:start] }, func(body []byte) error {
			if a, ok := readLocal(body); ok {
				out = append(out, a)
			}
			return nil
		})
		if err != nil && !noFamily(err) {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
	}
	return out, nil
}

func localRoute(a netip.Addr) []byte {
	return []byte{0: family(a), 1: byte(a.BitLen()), 4: unix.RT_TABLE_LOCAL, 5: Protocol, 6: unix.RT_SCOPE_HOST, 7: unix.RTN_LOCAL, rtmsgLen - 1: 0}
}

// readLocal reads a route; ok is false if it is not one of ours. A kernel
// without strict checking lists all.
func readLocal(body []byte) (a netip.Addr, ok bool) {
	if len(body) < rtmsgLen || body[5] != Protocol || body[7] != unix.RTN_LOCAL || native.Uint32(body[8:])&unix.RTM_F_CLONED != 0 {
		return a, false
	}
	table, link := uint32(body[4]), 0
	for kind, data := range nlbatch.Attrs(body[rtmsgLen:]) {
		switch kind {
		case unix.RTA_DST:
			a = addrOf(data)
		case unix.RTA_TABLE:
			table = u32(data)
		case unix.RTA_OIF:
			link = int(u32(data))
		}
	}
	return a, table == unix.RT_TABLE_LOCAL && link == loopback && a.IsValid() && int(body[1]) == a.BitLen()
}
