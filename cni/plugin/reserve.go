package plugin

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
)

// reserve writes the record, with the addresses unless another IPAM plugin
// chooses them.
func (a *attachment) reserve() error {
	want, err := a.wanted()
	if err != nil {
		return err
	}
	mac, err := a.mac()
	if err != nil {
		return err
	}
	here, err := hostNS()
	if err != nil {
		return fail(codeKernel, err)
	}
	who, err := a.identity()
	if err != nil {
		return err
	}
	r := ipam.Record{
		ContainerID: a.containerID, IfName: a.ifName, NetNS: a.netns, HostNS: here.Ino, Bridge: a.conf.Bridge,
		HostLink: a.key.HostLink(a.conf.Name), Namespace: who.namespace, Names: who.names, Labels: who.labels,
		MTU: a.mtu, Promisc: a.conf.PromiscMode, Hairpin: a.conf.HairpinMode, Isolated: a.conf.PortIsolation,
	}
	q := ipam.Request{Sets: a.space.sets, Stale: a.stale, Fill: func(r *ipam.Record) {
		fillMAC(r, mac)
		a.fillBridge(r)
	}}
	if a.conf.IPAM.Type == ownIPAM {
		q.Want = want
		a.fillMasquerade(&r)
	}
	r.Guarded = a.conf.IPAM.Type != "" && (a.conf.SpoofCheck == nil || *a.conf.SpoofCheck)
	a.held, err = a.pool.Reserve(r, q)
	if errors.Is(err, ipam.ErrExists) {
		if err = a.replace(); err == nil {
			a.held, err = a.pool.Reserve(r, q)
		}
	}
	return reserveError(err)
}

func reserveError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ipam.ErrFull):
		return fail(codeFull, err)
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrOutside):
		return fail(codeTaken, err)
	case errors.Is(err, ipam.ErrBusy):
		return fail(types.ErrTryAgainLater, err)
	default:
		return fail(codeStorage, err)
	}
}

// ask lets another IPAM plugin choose the addresses, and makes the host ready
// for them. The interface is there and up when the plugin is asked: such as
// dhcp work through it.
func (a *attachment) ask(br link.Port) (link.Port, error) {
	if err := a.configure(br); err != nil {
		return br, err
	}
	got, err := a.delegateAdd()
	if err != nil {
		return br, err
	}
	a.delegated = true
	r := a.held.Record
	if err := a.fillAddresses(&r, got.IPs); err != nil {
		return br, err
	}
	a.fillBridge(&r)
	a.fillMasquerade(&r)
	if err := a.held.Rewrite(r); err != nil {
		return br, fail(codeStorage, err)
	}
	a.routes = got.Routes
	if a.dns.IsEmpty() {
		a.dns = got.DNS
	}
	return a.prepare()
}

// fillAddresses notes what another IPAM plugin chose.
func (a *attachment) fillAddresses(r *ipam.Record, ips []*types100.IPConfig) error {
	for _, ip := range ips {
		p, ok := prefix(ip.Address)
		if !ok {
			return failf(codeDelegate, "IPAM plugin %s returned address %s", a.conf.IPAM.Type, ip.Address.String())
		}
		gw := addr(ip.Gateway)
		if !gw.IsValid() && a.conf.IsGateway {
			gw = p.Masked().Addr().Next()
		}
		r.Addresses = append(r.Addresses, p)
		r.Gateways = append(r.Gateways, gw)
		a.space.inside = append(a.space.inside, p.Masked())
	}
	return nil
}

// fillMasquerade notes what is masqueraded.
func (a *attachment) fillMasquerade(r *ipam.Record) {
	if r.Masquerade = a.conf.IPMasq; r.Masquerade {
		r.Inside = a.space.inside
	}
}

// fillMAC derives the container's MAC from its first address: whoever gets
// that address next has the same MAC, and nobody's neighbour table is wrong.
func fillMAC(r *ipam.Record, asked net.HardwareAddr) {
	mac := asked
	if mac == nil && len(r.Addresses) > 0 {
		mac = hostside.MACOf(r.Addresses[0].Addr())
	}
	if mac == nil {
		mac = hostside.HashMAC(r.HostLink + "inside")
	}
	r.MAC = mac.String()
}

// fillBridge notes the gateways' addresses on the bridge.
func (a *attachment) fillBridge(r *ipam.Record) {
	for i, gw := range r.Gateways {
		p := netip.PrefixFrom(gw, r.Addresses[i].Bits())
		if a.conf.IsGateway && gw.IsValid() && !slices.Contains(r.BridgeAddresses, p) {
			r.BridgeAddresses = append(r.BridgeAddresses, p)
		}
	}
}

// replace clears away what an ADD that was killed left of this attachment. An
// attachment that is in use is an error.
func (a *attachment) replace() error {
	h, err := a.pool.Find(a.key)
	if err != nil || h == nil {
		return reserveError(err)
	}
	defer h.Close()
	if h.Record.Attached && h.Intact {
		if _, err := a.ports.Port(h.Record.HostLink); err == nil {
			return failf(codeExists, "container %s is attached to network %s as %s already, with address %v: DEL it first", a.containerID, a.conf.Name, a.ifName, h.Record.Addresses)
		}
	}
	return a.remove(a.ports, h)
}

// stale tells whether the allocation may take a record's addresses, and then
// removes what is left of it.
func (a *attachment) stale(r ipam.Record) bool {
	here, err := hostNS()
	if err != nil || r.HostNS != 0 && r.HostNS != here.Ino {
		return false
	}
	if r.Attached {
		if _, err := a.ports.Port(r.HostLink); !errors.Is(err, link.ErrNoLink) {
			return false
		}
	}
	return a.clear(a.ports, r) == nil
}
