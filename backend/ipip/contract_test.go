package ipip_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/ipip"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// needIPIP skips the test where the kernel has no IPIP. Where it has, all
// modules are loaded after it, so that new namespaces have what they bring.
func needIPIP(t *testing.T) {
	t.Helper()
	netnstest.NeedRoot(t)
	h, err := link.OpenAt(netnstest.New(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for name, spec := range map[string]link.IPIP{"probe4": {Local: netip.MustParseAddr("192.168.77.1")}, "probe6": {V6: true, External: true}} {
		switch err := h.AddIPIP(name, 1400, spec); {
		case errors.Is(err, unix.EOPNOTSUPP):
			t.Skip("this kernel has no IPIP (CONFIG_NET_IPIP, CONFIG_IPV6_TUNNEL)")
		case err != nil:
			t.Fatal(err)
		}
	}
}

// each makes one command line for every device of a host.
func each(format string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, _ subnet.Lease) (out []string) {
		info := h.Device.Info()
		for _, name := range append([]string{info.Link}, info.MoreLinks...) {
			out = append(out, fmt.Sprintf(format, name))
		}
		return out
	}
}

// eachSide makes command lines for every family of a peer.
func eachSide(lines func(dev string, sub netip.Prefix, public netip.Addr) []string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, peer subnet.Lease) (out []string) {
		info := h.Device.Info()
		devs := append([]string{info.Link}, info.MoreLinks...)
		for i, sub := range peer.Subnets {
			out = append(out, lines(devs[i], sub, peer.PublicIPs[i])...)
		}
		return out
	}
}

func suite() backendtest.Suite {
	return backendtest.Suite{
		Driver: func() backend.Driver { return ipip.Driver{} },
		Type:   "ipip",
		Wrong: map[string]string{
			"Backend.VNI":           `{"VNI":1}`,
			"Backend.DirectRouting": `{"DirectRouting":"yes"}`,
			"Backend.MTU":           `{"MTU":590}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route": eachSide(func(dev string, sub netip.Prefix, _ netip.Addr) []string {
				return []string{fmt.Sprintf("ip route del %s dev %s", sub, dev)}
			}),
			"route changed": eachSide(func(dev string, sub netip.Prefix, public netip.Addr) []string {
				how := fmt.Sprintf("via %s dev %s onlink", public.Next(), dev)
				if sub.Addr().Is6() {
					how = fmt.Sprintf("encap ip6 dst %s dev %s", public.Next(), dev)
				}
				return []string{fmt.Sprintf("ip route del %s dev %s", sub, dev), fmt.Sprintf("ip route add %s %s metric 7 proto 0x66", sub, how)}
			}),
			"address": each("ip addr flush dev %s"),
			"down":    each("ip link set %s down"),
			"MTU":     each("ip link set %s mtu 1300"),
			"device":  each("ip link del %s"),
			"another of the name": eachSide(func(dev string, _ netip.Prefix, public netip.Addr) []string {
				kind := "ipip"
				if public.Is6() {
					kind = "ip6tnl"
				}
				return []string{"ip link del " + dev, fmt.Sprintf("ip link add %s type %s remote %s", dev, kind, public)}
			}),
		},
		MostWrites: 1,
	}
}

func TestContract(t *testing.T) {
	needIPIP(t)
	backendtest.Run(t, suite())
}

func TestContractWithDirectRouting(t *testing.T) {
	needIPIP(t)
	s := suite()
	s.Options = json.RawMessage(`{"Type":"ipip","DirectRouting":true}`)
	s.Damage = nil // other objects
	backendtest.Run(t, s)
}
