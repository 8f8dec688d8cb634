package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Kernel is a device of the kernel's. It is not safe for concurrent use.
type Kernel struct {
	name string
	c    *wgctrl.Client
}

// OpenKernel returns the handle of a device in the calling thread's network
// namespace, whichever thread uses it. It does not look for the device; close
// it after use.
func OpenKernel(name string) (*Kernel, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard of %s: %w", name, err)
	}
	return &Kernel{name: name, c: c}, nil
}

// Read returns what the device has; fs.ErrNotExist if there is none, or only
// one of a userspace process.
func (k *Kernel) Read(ctx context.Context) (State, error) {
	if err := ctx.Err(); err != nil {
		return State{}, err
	}
	d, err := k.c.Device(k.name)
	if err == nil && d.Type != wgtypes.LinuxKernel {
		err = fs.ErrNotExist
	}
	if err != nil {
		return State{}, fmt.Errorf("read WireGuard device %s: %w", k.name, err)
	}
	s := State{Private: Secret(d.PrivateKey), Port: uint16(d.ListenPort), Mark: uint32(d.FirewallMark)}
	s.Peers = make([]Status, 0, len(d.Peers))
	for i := range d.Peers {
		p := &d.Peers[i]
		st := Status{Peer: Peer{
			Key: Key(p.PublicKey), Preshared: Secret(p.PresharedKey), Keepalive: p.PersistentKeepaliveInterval,
			Allowed: make([]netip.Prefix, 0, len(p.AllowedIPs)),
		}}
		if p.Endpoint != nil {
			a := p.Endpoint.AddrPort()
			st.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		if p.LastHandshakeTime.Unix() != 0 && !p.LastHandshakeTime.IsZero() {
			st.Handshake = p.LastHandshakeTime
		}
		for _, n := range p.AllowedIPs {
			a, _ := netip.AddrFromSlice(n.IP)
			ones, _ := n.Mask.Size()
			st.Allowed = append(st.Allowed, netip.PrefixFrom(a.Unmap(), ones))
		}
		s.Peers = append(s.Peers, st)
	}
	return s, nil
}

// peersPerMessage is how many peers fit into one message to the kernel.
const peersPerMessage = 32

// Write applies a change. On an error part of it may have been applied.
func (k *Kernel) Write(ctx context.Context, c Change) error {
	var first wgtypes.Config
	first.PrivateKey = (*wgtypes.Key)(c.Private)
	first.ListenPort, first.FirewallMark = number(c.Port), number(c.Mark)
	var peers []wgtypes.PeerConfig
	for i := range c.Set {
		peers = append(peers, peerConfig(&c.Set[i]))
	}
	for _, key := range c.Remove {
		peers = append(peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true, UpdateOnly: true})
	}
	if c.Private != nil || c.Port != nil || c.Mark != nil {
		if err := k.configure(ctx, first); err != nil {
			return err
		}
	}
	for chunk := range slices.Chunk(peers, peersPerMessage) {
		if err := k.configure(ctx, wgtypes.Config{Peers: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) configure(ctx context.Context, c wgtypes.Config) error {
	err := ctx.Err()
	if err == nil {
		err = k.c.ConfigureDevice(k.name, c)
	}
	if err != nil {
		return fmt.Errorf("configure WireGuard device %s: %w", k.name, err)
	}
	return nil
}

// Close frees the socket. The device stays as it is.
func (k *Kernel) Close() error { return errors.Join(k.c.Close()) }

func number[T uint16 | uint32](n *T) *int {
	if n == nil {
		return nil
	}
	i := int(*n)
	return &i
}

func peerConfig(p *Peer) wgtypes.PeerConfig {
	out := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.Key), PresharedKey: (*wgtypes.Key)(&p.Preshared),
		PersistentKeepaliveInterval: new(time.Duration), ReplaceAllowedIPs: true,
	}
	*out.PersistentKeepaliveInterval = p.Keepalive
	if p.Endpoint.IsValid() {
		out.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
	}
	for _, n := range p.Allowed {
		out.AllowedIPs = append(out.AllowedIPs, net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())})
	}
	return out
}
