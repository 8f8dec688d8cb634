package vxlan_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/vxlan"
	"github.com/flanneld/flanneld/subnet"
)

// each makes one command line for every device of a host.
func each(format string) func(h *backendtest.Host, peer subnet.Lease) []string {
	return func(h *backendtest.Host, peer subnet.Lease) (out []string) {
		info := h.Device.Info()
		for _, name := range append([]string{info.Link}, info.MoreLinks...) {
			out = append(out, fmt.Sprintf(format, name))
		}
		return out
	}
}

// eachSide makes command lines for every family of a peer: its subnet, public
// IP and MAC.
func eachSide(lines func(dev string, sub netip.Prefix, public netip.Addr, mac string) []string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, peer subnet.Lease) (out []string) {
		info := h.Device.Info()
		devs := append([]string{info.Link}, info.MoreLinks...)
		for i, sub := range peer.Subnets {
			raw := peer.Data.V4
			if sub.Addr().Is6() {
				raw = peer.Data.V6
			}
			var data struct{ VtepMAC string }
			_ = json.Unmarshal(raw, &data)
			out = append(out, lines(devs[i], sub, peer.PublicIPs[i], data.VtepMAC)...)
		}
		return out
	}
}

func suite() backendtest.Suite {
	return backendtest.Suite{
		Driver: func() backend.Driver { return vxlan.Driver{} },
		Type:   "vxlan",
		Second: func() backend.Driver { return vxlan.Driver{Options: routed.Options{KeepOthers: true}} },
		Beside: json.RawMessage(`{"Type":"vxlan","VNI":2}`),
		Former: json.RawMessage(`{"Type":"vxlan","VNI":77,"Port":4789}`),
		Wrong: map[string]string{
			"Backend.VIN":  `{"VIN":1}`,
			"Backend.VNI":  `{"VNI":16777216}`,
			"Backend.Port": `{"Port":65536}`,
			"Backend.MTU":  `{"MTU":600}`,
			"Backend.GBP":  `{"GBP":"yes"}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route": eachSide(func(dev string, sub netip.Prefix, _ netip.Addr, _ string) []string {
				return []string{fmt.Sprintf("ip route del %s dev %s", sub, dev)}
			}),
			"route changed": eachSide(func(dev string, sub netip.Prefix, _ netip.Addr, _ string) []string {
				return []string{fmt.Sprintf("ip route del %s dev %s", sub, dev), fmt.Sprintf("ip route add %s dev %s metric 7 proto 0x66", sub, dev)}
			}),
			"neighbour": eachSide(func(dev string, sub netip.Prefix, _ netip.Addr, _ string) []string {
				return []string{fmt.Sprintf("ip neigh del %s dev %s", sub.Addr(), dev)}
			}),
			"neighbour changed": eachSide(func(dev string, sub netip.Prefix, _ netip.Addr, _ string) []string {
				return []string{fmt.Sprintf("ip neigh replace %s lladdr 02:00:00:00:00:99 dev %s nud permanent", sub.Addr(), dev)}
			}),
			"forwarding entry": eachSide(func(dev string, _ netip.Prefix, public netip.Addr, mac string) []string {
				return []string{fmt.Sprintf("bridge fdb del %s dev %s dst %s", mac, dev, public)}
			}),
			"forwarding entry changed": eachSide(func(dev string, _ netip.Prefix, public netip.Addr, mac string) []string {
				return []string{fmt.Sprintf("bridge fdb replace %s dev %s dst %s", mac, dev, public.Next())}
			}),
			"flooding": eachSide(func(dev string, _ netip.Prefix, public netip.Addr, _ string) []string {
				return []string{fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev %s dst %s", dev, public)}
			}),
			"address": func(h *backendtest.Host, peer subnet.Lease) []string { return each("ip addr flush dev %s")(h, peer) },
			"down":    each("ip link set %s down"),
			"MTU":     each("ip link set %s mtu 1300"),
			"MAC":     each("ip link set %s address 02:00:00:00:00:98"),
			"device":  each("ip link del %s"),
			"sysctl":  each("sysctl -qw net/ipv4/conf/%s/arp_ignore=0"),
		},
		Hostile: map[string]string{
			"multicast MAC": `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`,
			"no MAC":        `{"VNI":1}`,
			"zero MAC":      `{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}`,
			"short MAC":     `{"VNI":1,"VtepMAC":"46:00"}`,
			"long MAC":      `{"VNI":1,"VtepMAC":"46:00:00:00:00:00:00:01"}`,
			"another VNI":   `{"VNI":2,"VtepMAC":"46:00:00:00:00:01"}`,
			"negative VNI":  `{"VNI":-1,"VtepMAC":"46:00:00:00:00:01"}`,
		},
		Data: func(n int) json.RawMessage {
			return fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"46:00:00:00:%02x:%02x"}`, n>>8, n&255)
		},
		MostWrites: 3,
	}
}

func TestContract(t *testing.T) { backendtest.Run(t, suite()) }

func TestContractWithDirectRouting(t *testing.T) {
	s := suite()
	s.Options = json.RawMessage(`{"Type":"vxlan","DirectRouting":true}`)
	s.Damage = nil // other objects, see TestDirect…
	backendtest.Run(t, s)
}
