package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/gre"
	"github.com/flanneld/flanneld/backend/hostgw"
	"github.com/flanneld/flanneld/backend/ipip"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/backend/vxlan"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// path is a way from the pods of one host to those of another.
type path struct {
	name string
	up   func(ctx context.Context, p *pair) error
}

// driver is one of ours as it is compared.
type driver struct {
	name, options string
	// of makes the driver of a host.
	of func(p *pair, host int) (backend.Driver, error)
}

// drivers are all of ours that carry packets.
func drivers() []driver {
	return []driver{
		{"vxlan", `{"Type":"vxlan","DirectRouting":false}`, each(vxlan.Driver{})},
		{"vxlan, direct routing", `{"Type":"vxlan","DirectRouting":true}`, each(vxlan.Driver{})},
		{"host-gw", `{"Type":"host-gw"}`, each(hostgw.Driver{})},
		{"udp", `{"Type":"udp"}`, each(udp.Driver{})},
		{"wireguard, userspace", `{"Type":"wireguard"}`, wireguardIn("userspace")},
		{"wireguard, kernel", `{"Type":"wireguard"}`, wireguardIn("kernel")},
		{"gre", `{"Type":"gre","DirectRouting":false}`, each(gre.Driver{})},
		{"ipip", `{"Type":"ipip","DirectRouting":false}`, each(ipip.Driver{})},
	}
}

// paths are what is compared, the peers that ours are to beat first.
func paths() []path {
	all := []path{
		{"flannel's VXLAN objects, no rules", func(ctx context.Context, p *pair) error { return flannelObjects(ctx, p, false) }},
		{"flannel's VXLAN objects and rules", func(ctx context.Context, p *pair) error { return flannelObjects(ctx, p, true) }},
		{"VXLAN objects with collected metadata, no rules", metadataObjects},
		{"flannel's host-gw routes and rules", flannelRoutes},
		{"flannel's udp loop, no rules", flannelUDP},
	}
	for _, d := range drivers() {
		all = append(all, path{d.name, d.up})
	}
	return all
}

// network is the pods' address space.
func network() netip.Prefix { return netip.MustParsePrefix("10.1.0.0/16") }

// each gives both hosts the same driver.
func each(d backend.Driver) func(*pair, int) (backend.Driver, error) {
	return func(*pair, int) (backend.Driver, error) { return d, nil }
}

// wireguardIn gives hosts keys of their own, and the kernel's WireGuard or not.
func wireguardIn(where string) func(*pair, int) (backend.Driver, error) {
	return func(p *pair, _ int) (backend.Driver, error) {
		dir, err := os.MkdirTemp("", "bench-wg-")
		if err != nil {
			return nil, err
		}
		p.later(func() error { return os.RemoveAll(dir) })
		if _, err := os.Stat("/sys/module/wireguard"); err != nil && where == "kernel" {
			return nil, fmt.Errorf("wireguard: %w", unix.EOPNOTSUPP)
		}
		return wireguard.Driver{KeyFile: filepath.Join(dir, "key"), Sockets: dir, Userspace: where == "userspace"}, nil
	}
}

// configOf is the configuration of a network with this Backend.
func configOf(options string) subnet.Config {
	var kind struct{ Type string }
	_ = json.Unmarshal([]byte(options), &kind) // the driver refuses what is wrong
	return subnet.Config{
		Ranges:  []subnet.Range{{Network: network(), SubnetLen: 24}},
		Backend: subnet.Backend{Type: kind.Type, Raw: json.RawMessage(options)},
	}
}

// open opens the device of a host, which goes with the pair.
func (d driver) open(ctx context.Context, p *pair, i int, c subnet.Config) (dev backend.Device, err error) {
	drv, err := d.of(p, i)
	if err != nil {
		return nil, err
	}
	u := backend.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{hostAddr(i)}, PublicIPs: []netip.Addr{hostAddr(i)}}
	err = p.hosts[i].Do(func() error {
		l, err := net.InterfaceByName(u.Link)
		if err != nil {
			return err
		}
		u.Index = l.Index
		dev, err = drv.Open(ctx, c, u, fmt.Sprintf("bench-%d", i))
		return err
	})
	if err != nil {
		return nil, err
	}
	p.later(func() error {
		ctx := context.WithoutCancel(ctx)
		return p.hosts[i].Do(func() error {
			return errors.Join(dev.Close(), drv.Cleanup(ctx), routed.RemoveRoutes(ctx, nil))
		})
	})
	return dev, nil
}

// up makes the driver carry the pods' packets, with everything that the daemon
// sets beside it.
func (d driver) up(ctx context.Context, p *pair) error {
	c := configOf(d.options)
	var devs [2]backend.Device
	var leases [2]subnet.Lease
	for i := range 2 {
		var err error
		if devs[i], err = d.open(ctx, p, i, c); err != nil {
			return err
		}
		leases[i] = subnet.Lease{Key: fmt.Sprint(i), Type: c.Backend.Type, PublicIPs: []netip.Addr{hostAddr(i)}, Subnets: []netip.Prefix{subnetOf(i)}, Data: devs[i].Info().Data}
	}
	for i, dev := range devs {
		err := p.hosts[i].Do(func() error { return dev.Sync(ctx, &leases[i], []backend.Peer{{Lease: &leases[1-i]}}) })
		if err == nil {
			err = p.filter(ctx, i, dev.Info())
		}
		if err != nil {
			return err
		}
		mtu := fmt.Sprint(dev.Info().MTU)
		if err := errors.Join(p.lines(ctx, i, "ip link set cni0 mtu "+mtu+"\nip link set veth0 mtu "+mtu), run(ctx, p.pods[i], "ip link set eth0 mtu "+mtu)); err != nil {
			return err
		}
	}
	return nil
}

// filter sets the rules of a host that masquerades.
func (p *pair) filter(ctx context.Context, i int, info backend.Info) error {
	var f *nft.Filter
	err := p.hosts[i].Do(func() (err error) { f, err = nft.New(nil); return err })
	if err != nil {
		return err
	}
	p.later(f.Close)
	return f.Sync(ctx, rules.Rules{
		Networks: []netip.Prefix{network()}, Subnets: []netip.Prefix{subnetOf(i)}, Masquerade: true,
		Bridges: []string{"cni0", "docker0", "br-*"}, Checked: []string{"cni0"},
		Tunnel: rules.Tunnel{
			Link: info.Link, MoreLinks: info.MoreLinks, Underlay: "eth0", Local: []netip.Addr{hostAddr(i)},
			Protocol: info.Protocol, Ports: info.Ports, Plain: info.Plain, Peers: []netip.Addr{hostAddr(1 - i)},
		},
	})
}

// lines runs command lines on host i, the names of addresses filled in.
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

// metadataObjects are the other layout that speaks to flannel's: one device
// whose routes tell the outer destination, without forwarding entries.
func metadataObjects(ctx context.Context, p *pair) error {
	for i := range 2 {
		err := p.lines(ctx, i, `
			ip link add flannel.1 up mtu 1450 address OURMAC type vxlan external vnifilter dstport 8472 nolearning
			bridge vni add vni 1 dev flannel.1
			ip addr add OWN/32 dev flannel.1
			ip neigh add PEER lladdr THEIRMAC dev flannel.1 nud permanent
			ip route add PEERNET encap ip id 1 src HERE dst THERE via PEER dev flannel.1 onlink
			ip link set cni0 mtu 1450
			ip link set veth0 mtu 1450`)
		if err == nil {
			err = run(ctx, p.pods[i], "ip link set eth0 mtu 1450")
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
