package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/backend/vxlan"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/subnet"
)

// path is a way from the pods of one host to those of another.
type path struct {
	name string
	up   func(ctx context.Context, p *pair) error
}

// paths are what is compared, ours after the peers that they are to beat.
func paths() []path {
	return []path{
		{"flannel's VXLAN objects, no rules", func(ctx context.Context, p *pair) error { return flannelObjects(ctx, p, false) }},
		{"flannel's VXLAN objects and rules", func(ctx context.Context, p *pair) error { return flannelObjects(ctx, p, true) }},
		{"flannel's host-gw routes and rules", flannelRoutes},
		{"vxlan", ours(vxlan.Driver{}, `{"Type":"vxlan","DirectRouting":false}`)},
		{"vxlan, direct routing", ours(vxlan.Driver{}, `{"Type":"vxlan","DirectRouting":true}`)},
		{"flannel's udp loop, no rules", flannelUDP},
		{"udp", ours(udp.Driver{}, `{"Type":"udp"}`)},
	}
}

// network is the pods' address space.
func network() netip.Prefix { return netip.MustParsePrefix("10.1.0.0/16") }

// ours is a driver with everything that the daemon sets beside it.
func ours(drv backend.Driver, options string) func(context.Context, *pair) error {
	return func(ctx context.Context, p *pair) error {
		c := subnet.Config{Ranges: []subnet.Range{{Network: network(), SubnetLen: 24}}, Backend: subnet.Backend{Raw: json.RawMessage(options)}}
		var kind struct{ Type string }
		if err := json.Unmarshal(c.Backend.Raw, &kind); err != nil {
			return err
		}
		c.Backend.Type = kind.Type
		var devs [2]backend.Device
		var leases [2]subnet.Lease
		for i := range 2 {
			u := backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{hostAddr(i)}, PublicIPs: []netip.Addr{hostAddr(i)}}
			err := p.hosts[i].Do(func() (err error) {
				l, err := linkIndex("eth0")
				if err != nil {
					return err
				}
				u.Index = l
				devs[i], err = drv.Open(ctx, c, u, fmt.Sprintf("bench-%d", i))
				return err
			})
			if err != nil {
				return err
			}
			p.later(func() error {
				return p.hosts[i].Do(func() error {
					return errors.Join(devs[i].Close(), drv.Cleanup(ctx), routed.RemoveRoutes(context.WithoutCancel(ctx), nil))
				})
			})
			leases[i] = subnet.Lease{Key: fmt.Sprint(i), Type: kind.Type, PublicIPs: u.PublicIPs, Subnets: []netip.Prefix{subnetOf(i)}, Data: devs[i].Info().Data}
		}
		for i, d := range devs {
			if err := p.hosts[i].Do(func() error { return d.Sync(ctx, &leases[i], []backend.Peer{{Lease: &leases[1-i]}}) }); err != nil {
				return err
			}
			if err := p.filter(ctx, i, d.Info()); err != nil {
				return err
			}
			for _, ns := range []string{"cni0", "veth0"} {
				if err := run(ctx, p.hosts[i], fmt.Sprintf("ip link set %s mtu %d", ns, d.Info().MTU)); err != nil {
					return err
				}
			}
			if err := run(ctx, p.pods[i], fmt.Sprintf("ip link set eth0 mtu %d", d.Info().MTU)); err != nil {
				return err
			}
		}
		return nil
	}
}

// filter sets the rules of a host that masquerades.
func (p *pair) filter(ctx context.Context, i int, info backend.Info) error {
	var f *nft.Filter
	err := p.hosts[i].Do(func() (err error) { f, err = nft.New(); return err })
	if err != nil {
		return err
	}
	p.later(f.Close)
	return f.Sync(ctx, rules.Rules{
		Networks: []netip.Prefix{network()}, Subnets: []netip.Prefix{subnetOf(i)}, Masquerade: true,
		Bridges: []string{"cni0", "docker0", "br-*"},
		Tunnel: rules.Tunnel{
			Link: info.Link, MoreLinks: info.MoreLinks, Underlay: "eth0", Local: []netip.Addr{hostAddr(i)},
			Protocol: info.Protocol, Ports: info.Ports, Plain: info.Plain, Peers: []netip.Addr{hostAddr(1 - i)},
		},
	})
}

// lines runs command lines on host i, %-verbs filled in.
func (p *pair) lines(ctx context.Context, i int, lines string) error {
	o := 1 - i
	r := strings.NewReplacer("OWNNET", subnetOf(i).String(), "OWN", subnetOf(i).Addr().String(), "PEERNET", subnetOf(o).String(), "PEER", subnetOf(o).Addr().String(),
		"HERE", hostAddr(i).String(), "THERE", hostAddr(o).String(), "NETWORK", network().String(),
		"OURMAC", fmt.Sprintf("02:00:00:00:00:%02x", i), "THEIRMAC", fmt.Sprintf("02:00:00:00:00:%02x", o))
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := run(ctx, p.hosts[i], r.Replace(line)); err != nil {
			return err
		}
	}
	return nil
}

// flannelObjects are the kernel objects of flannel's vxlan backend, made by
// hand.
func flannelObjects(ctx context.Context, p *pair, withRules bool) error {
	for i := range 2 {
		err := p.lines(ctx, i, `
			ip link add flannel.1 up mtu 1450 address OURMAC type vxlan id 1 local HERE dev eth0 dstport 8472 nolearning
			ip addr add OWN/32 dev flannel.1
			ip neigh add PEER lladdr THEIRMAC dev flannel.1 nud permanent
			bridge fdb add THEIRMAC dev flannel.1 dst THERE self permanent
			ip route add PEERNET via PEER dev flannel.1 onlink
			ip link set cni0 mtu 1450
			ip link set veth0 mtu 1450`)
		if err == nil {
			err = run(ctx, p.pods[i], "ip link set eth0 mtu 1450")
		}
		if err == nil && withRules {
			err = p.flannelRules(ctx, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// flannelRoutes are those of flannel's host-gw backend.
func flannelRoutes(ctx context.Context, p *pair) error {
	for i := range 2 {
		if err := errors.Join(p.lines(ctx, i, "ip route add PEERNET via THERE dev eth0"), p.flannelRules(ctx, i)); err != nil {
			return err
		}
	}
	return nil
}

// flannelRules are its iptables rules with --ip-masq.
func (p *pair) flannelRules(ctx context.Context, i int) error {
	return p.lines(ctx, i, `
		iptables -t nat -N FLANNEL-POSTRTG
		iptables -t nat -A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG
		iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
		iptables -t nat -A FLANNEL-POSTRTG -s OWNNET -d NETWORK -j RETURN
		iptables -t nat -A FLANNEL-POSTRTG -s NETWORK -d OWNNET -j RETURN
		iptables -t nat -A FLANNEL-POSTRTG ! -s NETWORK -d OWNNET -j RETURN
		iptables -t nat -A FLANNEL-POSTRTG -s NETWORK ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
		iptables -t nat -A FLANNEL-POSTRTG ! -s NETWORK -d NETWORK -j MASQUERADE --random-fully
		iptables -N FLANNEL-FWD
		iptables -A FORWARD -m comment --comment flanneld -j FLANNEL-FWD
		iptables -A FLANNEL-FWD -s NETWORK -j ACCEPT
		iptables -A FLANNEL-FWD -d NETWORK -j ACCEPT`)
}
