package rules

import (
	"fmt"
	"net"
	"net/netip"
)

// Local returns a test for the addresses that this host has now: those of the
// calling thread's network namespace.
func Local() (func(netip.Addr) bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	have := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			have[p.Addr()] = true
		}
	}
	return func(a netip.Addr) bool { return have[a] }, nil
}

// Here tells whether a guarded port is guarded on every address of this host.
func Here(guarded netip.Addr, local func(netip.Addr) bool) bool {
	a := guarded.Unmap().WithZone("")
	return a.IsUnspecified() || a.IsLoopback() || local(a)
}
