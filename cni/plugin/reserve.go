package plugin

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
)

// reserve takes the addresses and writes the record.
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
	names, labels := a.names()
	r := ipam.Record{
		ContainerID: a.containerID, IfName: a.ifName, NetNS: a.netns, HostNS: here.Ino, Bridge: a.conf.Bridge,
		HostLink: a.key.HostLink(a.conf.Name), Masquerade: a.conf.IPMasq, Names: names, Labels: labels,
		MTU: a.mtu, Promisc: a.conf.PromiscMode, Hairpin: a.conf.HairpinMode, Isolated: a.conf.PortIsolation,
	}
	q := ipam.Request{Sets: a.space.sets, Want: want, Stale: a.stale, Fill: func(r *ipam.Record) {
		fillMAC(r, mac)
		a.fillBridge(r)
	}}
	if t := a.conf.IPAM.Type; t != "" && t != ownIPAM {
		// What an earlier ADD left must go before the other plugin is asked.
		if err := a.replace(); err != nil {
			return err
		}
		if err := a.addressesOfOther(&r); err != nil {
			return err
		}
		q.Want = nil
	} else if t == "" {
		q.Want = nil
	}
	if r.Masquerade {
		r.Inside = a.space.inside
	}
	r.Guarded = len(r.Addresses)+len(q.Sets) > 0 && (a.conf.SpoofCheck == nil || *a.conf.SpoofCheck)
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

// addressesOfOther runs another IPAM plugin.
func (a *attachment) addressesOfOther(r *ipam.Record) error {
	got, err := a.delegateAdd()
	if err != nil {
		return err
	}
	a.delegated = true
	for _, ip := range got.IPs {
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
	a.routes = got.Routes
	if a.dns.IsEmpty() {
		a.dns = got.DNS
	}
	return nil
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
	return removeAttachment(a.ports, h)
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
	return clearAttachment(a.ports, r) == nil
}

// names and labels that the engine gives the container.
func (c *call) names() (names []string, labels map[string]string) {
	if n := c.args["K8S_POD_NAME"]; n != "" {
		names = append(names, n)
	}
	for _, n := range c.conf.RuntimeConfig.Aliases[c.conf.Name] {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	labels = map[string]string{}
	if ns := c.args["K8S_POD_NAMESPACE"]; ns != "" {
		labels["io.kubernetes.pod.namespace"] = ns
	}
	for _, l := range c.conf.Args.CNI.Labels {
		labels[l.Key] = l.Value
	}
	return names, labels
}
