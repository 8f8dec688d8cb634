// Package hostside is what a container's attachment has on the host: its
// bridge, its port there and its part of the packet filter.
//
// All three follow from the attachment's record, so that the plugin that
// makes them and the daemon that repairs them cannot disagree.
package hostside

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// Filter is what the packet filter must know of an attachment.
func Filter(r ipam.Record) cnitable.Attachment {
	mac, _ := net.ParseMAC(r.MAC)
	f := cnitable.Attachment{
		Network: r.Network, Link: r.HostLink, MAC: mac, Masquerade: r.Masquerade, Guard: r.Guarded && mac != nil, Inside: r.Inside,
	}
	for _, p := range r.Addresses {
		f.Addresses = append(f.Addresses, p.Addr())
	}
	return f
}

// Bridge is the bridge that an attachment needs.
func Bridge(r ipam.Record) link.Bridge {
	b := link.Bridge{Name: r.Bridge, MTU: r.MTU, Promisc: r.Promisc, Addresses: r.BridgeAddresses}
	if i := slices.IndexFunc(r.Gateways, netip.Addr.IsValid); i >= 0 {
		b.MAC = MACOf(r.Gateways[i])
	}
	return b
}

// MACOf is a locally administered MAC made of an address.
func MACOf(a netip.Addr) net.HardwareAddr {
	if a.Is4() {
		return append(net.HardwareAddr{0x0a, 0x58}, a.AsSlice()...)
	}
	return HashMAC(a.String())
}

// HashMAC is a locally administered MAC made of a text.
func HashMAC(s string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(s))
	return append(net.HardwareAddr{0x0e}, sum[:5]...)
}

// MakeBridge makes the bridge be as described, its addresses usable, and the
// host forward for them.
func MakeBridge(ports *link.Ports, want link.Bridge) (link.Port, error) {
	if want.MAC == nil {
		want.MAC = make(net.HardwareAddr, 6)
		_, _ = rand.Read(want.MAC)
		want.MAC[0] = 0x0a
	}
	if slices.ContainsFunc(want.Addresses, func(p netip.Prefix) bool { return !p.Addr().Is4() }) {
		// Where IPv6 is off by default the bridge could not take its address.
		bare := want
		bare.Addresses = nil
		if _, err := ports.Bridge(bare); err != nil {
			return link.Port{}, err
		}
		if err := SetSysctl("ipv6", want.Name, "disable_ipv6", "0"); err != nil {
			return link.Port{}, err
		}
	}
	br, err := ports.Bridge(want)
	if err != nil {
		return br, err
	}
	if err := AwaitAddresses(ports, want.Addresses); err != nil {
		return br, err
	}
	return br, prepareHost(want.Name, want.Addresses)
}

// prepareHost lets the host forward for the bridge's families, and keeps it
// from believing router advertisements of containers.
func prepareHost(bridge string, gateways []netip.Prefix) error {
	if err := SetSysctl("ipv6", bridge, "accept_ra", "0"); err != nil {
		return err
	}
	for _, p := range gateways {
		var err error
		if p.Addr().Is4() {
			err = writeSysctl("/proc/sys/net/ipv4/ip_forward", "1")
		} else {
			err = forwardIPv6(bridge)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forwardIPv6 switches forwarding on. The kernel would then stop believing
// router advertisements, and the underlay would lose its default route:
// interfaces that believe them go on doing so.
func forwardIPv6(bridge string) error {
	const all = "/proc/sys/net/ipv6/conf/all/forwarding"
	b, err := os.ReadFile(all)
	if errors.Is(err, os.ErrNotExist) || strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	if err != nil {
		return err
	}
	paths, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range paths {
		name := filepath.Base(filepath.Dir(path))
		if name == "all" || name == "default" || name == "lo" || name == bridge {
			continue
		}
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == "1" {
			if err := writeSysctl(path, "2"); err != nil {
				return err
			}
		}
	}
	return writeSysctl(all, "1")
}

// SetSysctl sets a value of a link in the calling thread's namespace unless it
// is so already; a kernel without the key needs no setting.
func SetSysctl(family, link, key, value string) error {
	return writeSysctl("/proc/sys/net/"+family+"/conf/"+link+"/"+key, value)
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		// Read-only /proc/sys is fine where the value is right.
		if b, e := os.ReadFile(path); e == nil && strings.TrimSpace(string(b)) == value {
			return nil
		}
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	defer f.Close()
	have := make([]byte, 16)
	n, _ := f.Read(have)
	if strings.TrimSpace(string(have[:n])) == value {
		return nil
	}
	if _, err := f.WriteAt([]byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}

// settleTimeout bounds the wait for the kernel to make a new port or address
// work. As a rule it has done so when it is asked; old kernels take up to a
// second.
const settleTimeout = 3 * time.Second

// AwaitAddresses returns when packets to the IPv6 addresses, of the namespace
// that ports is in, arrive.
func AwaitAddresses(ports *link.Ports, addrs []netip.Prefix) error {
	for _, p := range addrs {
		if p.Addr().Is4() {
			continue
		}
		if err := Await("address "+p.Addr().String()+" stays unusable", func() (bool, error) { return ports.Settled(p.Addr()) }); err != nil {
			return err
		}
	}
	return nil
}

// Await asks until the answer is yes.
func Await(problem string, done func() (bool, error)) error {
	end := time.After(settleTimeout)
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if ok, err := done(); err != nil || ok {
			return err
		}
		select {
		case <-end:
			return errors.New(problem + " for " + settleTimeout.String())
		case <-time.After(wait):
		}
	}
}
