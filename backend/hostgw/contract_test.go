package hostgw_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/hostgw"
	"github.com/flanneld/flanneld/subnet"
)

// eachSide makes command lines for every family of a peer.
func eachSide(lines func(sub netip.Prefix, public netip.Addr) []string) func(*backendtest.Host, subnet.Lease) []string {
	return func(_ *backendtest.Host, peer subnet.Lease) (out []string) {
		for i, sub := range peer.Subnets {
			out = append(out, lines(sub, peer.PublicIPs[i])...)
		}
		return out
	}
}

// once makes one command line.
func once(line string) func(*backendtest.Host, subnet.Lease) []string {
	return func(*backendtest.Host, subnet.Lease) []string { return []string{line} }
}

func TestContract(t *testing.T) {
	backendtest.Run(t, backendtest.Suite{
		Driver: func() backend.Driver { return hostgw.Driver{} },
		Type:   "host-gw",
		Wrong: map[string]string{
			"Backend.VNI":           `{"VNI":1}`,
			"Backend.DirectRouting": `{"DirectRouting":true}`,
			"Backend.MTU":           `{"MTU":500}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route": eachSide(func(sub netip.Prefix, public netip.Addr) []string {
				return []string{fmt.Sprintf("ip route del %s via %s", sub, public)}
			}),
			"route changed": eachSide(func(sub netip.Prefix, public netip.Addr) []string {
				return []string{fmt.Sprintf("ip route del %s via %s", sub, public), fmt.Sprintf("ip route add %s via %s metric 7 proto 0x66", sub, public.Next().Next())}
			}),
			"somebody's route": eachSide(func(sub netip.Prefix, public netip.Addr) []string {
				return []string{fmt.Sprintf("ip route del %s via %s", sub, public), fmt.Sprintf("ip route add %s dev flannel.host-gw", sub)}
			}),
			"address": once("ip addr flush dev flannel.host-gw"),
			"another address": eachSide(func(sub netip.Prefix, _ netip.Addr) []string {
				return []string{fmt.Sprintf("ip addr add %s dev flannel.host-gw", netip.PrefixFrom(sub.Addr(), sub.Addr().BitLen()))}
			}),
			"down":   once("ip link set flannel.host-gw down"),
			"MTU":    once("ip link set flannel.host-gw mtu 1300"),
			"device": once("ip link del flannel.host-gw"),
		},
		MostWrites: 1, Near: true,
	})
}
