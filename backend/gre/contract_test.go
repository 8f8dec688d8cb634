package gre_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/gre"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// needGRE skips the test where the kernel has no GRE. Where it has, all
// modules are loaded after it, so that new namespaces have what they bring.
func needGRE(t *testing.T) {
	t.Helper()
	h, err := link.OpenAt(netnstest.New(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for i, g := range []link.GRE{{External: true}, {V6: true, External: true}} {
		switch err := h.AddGRE(fmt.Sprintf("probe%d", i), 1400, g); {
		case errors.Is(err, unix.EOPNOTSUPP):
			t.Skip("this kernel has no GRE (CONFIG_NET_IPGRE, CONFIG_IPV6_GRE)")
		case err != nil:
			t.Fatal(err)
		}
	}
}

// each makes one command line for every device of a host.
func each(t *testing.T, format string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, _ subnet.Lease) (out []string) {
		for _, name := range h.Links(t) {
			out = append(out, fmt.Sprintf(format, name))
		}
		return out
	}
}

// routes makes a command line for each subnet of a peer.
func routes(format string) func(*backendtest.Host, subnet.Lease) []string {
	return func(_ *backendtest.Host, peer subnet.Lease) (out []string) {
		for _, s := range peer.Subnets {
			out = append(out, fmt.Sprintf(format, s))
		}
		return out
	}
}

// encaps replaces the route to each subnet of a peer by one with another
// encapsulation.
func encaps(format string) func(*backendtest.Host, subnet.Lease) []string {
	return func(_ *backendtest.Host, peer subnet.Lease) (out []string) {
		for i, s := range peer.Subnets {
			kind, dev := "ip", "flannel.gre"
			if s.Addr().Is6() {
				kind, dev = "ip6", "flannel-v6.gre"
			}
			out = append(out, fmt.Sprintf("ip route del %s", s),
				fmt.Sprintf("ip route add %s encap %s dst %s %s proto 0x66 dev %s", s, kind, peer.PublicIPs[i], format, dev))
		}
		return out
	}
}

func suite(t *testing.T) backendtest.Suite {
	return backendtest.Suite{
		Driver: func() backend.Driver { return gre.Driver{} },
		Type:   "gre",
		Wrong: map[string]string{
			"Backend.Kye":           `{"Kye":1}`,
			"Backend.Key":           `{"Key":4294967296}`,
			"Backend.key":           `{"key":-1}`,
			"Backend.KEY":           `{"KEY":"seven"}`,
			"Backend.Checksum":      `{"Checksum":"yes"}`,
			"Backend.Sequence":      `{"Sequence":1}`,
			"Backend.Mode":          `{"Mode":"star"}`,
			"Backend.mode":          `{"mode":true}`,
			"Backend.MTU":           `{"MTU":599,"Key":1}`,
			"Backend.mtu":           `{"mtu":65536}`,
			"Backend.DirectRouting": `{"DirectRouting":"always"}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route":   routes("ip route del %s"),
			"address": each(t, "ip addr flush dev %s"),
			"down":    each(t, "ip link set %s down"),
			"MTU":     each(t, "ip link set %s mtu 1300"),
			"device":  each(t, "ip link del %s"),
			"sysctl":  each(t, "sysctl -qw net/ipv4/conf/%s/arp_ignore=0"),
		},
		Hostile: map[string]string{
			"another key":  `{"Key":8}`,
			"negative key": `{"Key":-1}`,
			"long key":     `{"Key":4294967303}`,
			"checksum":     `{"Key":7,"Checksum":true}`,
			"an array":     `[{}]`,
		},
		Data:  func(int) json.RawMessage { return json.RawMessage(`{}`) },
		Alike: true,
	}
}

// The contract as a whole takes its time in a VM, so each way to use the driver
// has some of the families.
func TestContract(t *testing.T) {
	netnstest.NeedRoot(t)
	needGRE(t)
	s := suite(t)
	s.Only = []string{"Dual"}
	s.Damage["encapsulation to elsewhere"] = encaps("id 9 key")
	s.Damage["another metric"] = encaps("id 0")
	s.Damage["no encapsulation"] = func(_ *backendtest.Host, peer subnet.Lease) (out []string) {
		for _, sub := range peer.Subnets {
			dev := "flannel.gre"
			if sub.Addr().Is6() {
				dev = "flannel-v6.gre"
			}
			out = append(out, fmt.Sprintf("ip route del %s", sub), fmt.Sprintf("ip route add %s dev %s proto 0x66", sub, dev))
		}
		return out
	}
	backendtest.Run(t, s)
}

// Everything that a header can have, and the device shared with another
// network.
func TestContractWithKeyChecksumAndSequence(t *testing.T) {
	netnstest.NeedRoot(t)
	needGRE(t)
	s := suite(t)
	s.Only = []string{"IPv4", "IPv6"}
	s.Driver = func() backend.Driver { return gre.Driver{Options: routed.Options{KeepOthers: true}} }
	s.Second = s.Driver
	s.Options = json.RawMessage(`{"Type":"gre","Key":7,"Checksum":true,"Sequence":true,"DirectRouting":false}`)
	s.Beside = json.RawMessage(`{"Type":"gre","Key":4294967295,"Checksum":true}`)
	s.Data = func(int) json.RawMessage { return json.RawMessage(`{"Key":7,"Checksum":true}`) }
	s.Hostile = map[string]string{"no key": `{"Checksum":true}`, "no checksum": `{"Key":7}`}
	s.Damage = map[string]func(*backendtest.Host, subnet.Lease) []string{
		"another key": encaps("id 9 key csum seq"),
		"no checksum": encaps("id 7 key seq"),
	}
	backendtest.Run(t, s)
}

func TestContractInMeshMode(t *testing.T) {
	netnstest.NeedRoot(t)
	needGRE(t)
	s := suite(t)
	s.Only = []string{"Dual"}
	s.Options = json.RawMessage(`{"Type":"gre","Mode":"mesh","Key":7,"Sequence":true}`)
	s.Damage["route changed"] = routes("ip route replace %s dev lo metric 7 proto 0x66")
	s.Former = json.RawMessage(`{"Type":"gre"}`)
	s.Data = func(int) json.RawMessage { return json.RawMessage(`{"Key":7}`) }
	s.Beside = json.RawMessage(`{"Type":"gre","Mode":"mesh","Key":8}`)
	s.Second = func() backend.Driver { return gre.Driver{Options: routed.Options{KeepOthers: true}} }
	s.MostWrites = 8
	s.Many = 100
	backendtest.Run(t, s)
}
