package plugin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"golang.org/x/sys/unix"
)

// plug makes the veth pair.
func (a *attachment) plug(br link.Port) error {
	r := a.held.Record
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return fail(codeStorage, err)
	}
	v := link.Veth{
		Name: r.HostLink, MAC: hostside.HashMAC(r.HostLink), Alias: alias(r), Bridge: br.Index, Hairpin: a.conf.HairpinMode, Isolated: a.conf.PortIsolation,
		MTU: a.mtu, Peer: a.ifName, PeerMAC: mac, PeerNS: a.target.FD(),
	}
	err = a.ports.AddVeth(v)
	if errors.Is(err, unix.EEXIST) {
		if err = a.clearWay(v); err == nil {
			err = a.ports.AddVeth(v)
		}
	}
	if err != nil {
		return fail(codeKernel, err)
	}
	return nil
}

// configure brings the inner end up with the record's addresses, which may
// not be known yet. It may be called again.
func (a *attachment) configure(br link.Port) error {
	if err := a.target.Do(a.fillIn); err != nil {
		return fail(codeKernel, fmt.Errorf("container %s, interface %s: %w", a.containerID, a.ifName, err))
	}
	a.awaitBridge(br)
	r := a.held.Record
	if len(r.Addresses) == 0 || !a.conf.IsGateway {
		return nil
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return fail(codeStorage, err)
	}
	var addrs []netip.Addr
	for _, p := range r.Addresses {
		addrs = append(addrs, p.Addr())
	}
	if err := a.ports.Learn(br.Index, addrs, mac); err != nil {
		return fail(codeKernel, err)
	}
	return nil
}

// clearWay is called when one of the two names is taken. A host link of ours
// without a record is a leftover; an interface in the container is not ours
// to take away.
func (a *attachment) clearWay(v link.Veth) error {
	err := a.target.Do(func() error {
		in, err := link.OpenPorts()
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = in.Port(v.Peer)
		return err
	})
	if err == nil {
		return failf(codeExists, "there is an interface %s in the container's network namespace %s already: it was left as it is", v.Peer, a.netns)
	}
	if !errors.Is(err, link.ErrNoLink) {
		return err
	}
	return a.ports.Delete(v.Name)
}

// fillIn runs inside the container's namespace.
func (a *attachment) fillIn() error {
	in, err := link.OpenPorts()
	if err != nil {
		return err
	}
	defer in.Close()
	eth, err := in.Port(a.ifName)
	if err != nil {
		return err
	}
	r := a.held.Record
	if err := a.sysctls(r.Addresses); err != nil {
		return err
	}
	want := link.Inside{Index: eth.Index, Addresses: r.Addresses, DAD: a.conf.EnableDAD}
	for _, cr := range a.allRoutes() {
		to, ok := prefix(cr.Dst)
		if !ok {
			return fmt.Errorf("route to %s is not understood", cr.Dst.String())
		}
		route := link.Inroute{To: to, Gateway: addr(cr.GW), MTU: cr.MTU, AdvMSS: cr.AdvMSS, Priority: cr.Priority}
		if cr.Table != nil {
			route.Table = *cr.Table
		}
		if cr.Scope != nil {
			route.Scope = *cr.Scope
		}
		if !route.Gateway.IsValid() && route.Scope != unix.RT_SCOPE_LINK {
			route.Gateway = a.gatewayFor(to)
		}
		want.Routes = append(want.Routes, route)
	}
	if err := in.FillIn(want); err != nil {
		return err
	}
	if err := a.awaitPort(); err != nil || len(r.Addresses) == 0 {
		return err
	}
	if !a.conf.EnableDAD {
		if err := hostside.AwaitAddresses(in, r.Addresses); err != nil {
			return err
		}
	}
	return in.Announce(eth.Index, eth.MAC)
}

// awaitPort returns when the host's end passes packets.
func (a *attachment) awaitPort() error {
	return hostside.Await("host link "+a.held.Record.HostLink+" does not come up", func() (bool, error) {
		port, err := a.ports.Port(a.held.Record.HostLink)
		return port.Operational, err
	})
}

// awaitBridge returns when the host's packets leave by a bridge whose first port
// this is: until the kernel has acted on its carrier, it drops them. On a bridge
// with spanning tree that may take longer than is waited for.
func (a *attachment) awaitBridge(br link.Port) {
	if br.Operational {
		return
	}
	_ = hostside.Await("bridge "+br.Name+" does not come up", func() (bool, error) {
		br, err := a.ports.Port(br.Name)
		return br.Operational, err
	})
}

// gatewayFor is the gateway of the family of a route that names none.
func (a *attachment) gatewayFor(to netip.Prefix) netip.Addr {
	for _, gw := range a.held.Record.Gateways {
		if gw.IsValid() && gw.Is4() == to.Addr().Is4() {
			return gw
		}
	}
	return netip.Addr{}
}

// sysctls of the container's interface: no router advertisements are
// believed, an address is usable at once, the link-local one is the one that
// the guard knows, and neighbours are told.
func (a *attachment) sysctls(addrs []netip.Prefix) error {
	v6 := false
	for _, p := range addrs {
		v6 = v6 || !p.Addr().Is4()
	}
	dad := "0"
	if a.conf.EnableDAD {
		dad = "1"
	}
	for _, s := range []struct {
		family, key, value string
	}{{"ipv6", "accept_ra", "0"}, {"ipv6", "accept_dad", dad}, {"ipv6", "addr_gen_mode", "0"}, {"ipv4", "arp_notify", "1"}} {
		if err := hostside.SetSysctl(s.family, a.ifName, s.key, s.value); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	return errors.Join(hostside.SetSysctl("ipv6", a.ifName, "disable_ipv6", "0"), hostside.SetSysctl("ipv6", a.ifName, "ndisc_notify", "1"),
		hostside.SetSysctl("ipv6", "lo", "disable_ipv6", "0"))
}

// inside calls f with a socket in the namespace.
func inside(target *netns.NS, f func(*link.Ports) error) error {
	return target.Do(func() error {
		in, err := link.OpenPorts()
		if err != nil {
			return err
		}
		defer in.Close()
		return f(in)
	})
}
