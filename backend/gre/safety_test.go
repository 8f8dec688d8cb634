package gre_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
	"golang.org/x/sys/unix"
)

// TestForgedPacketsDoNotArrive has somebody on the underlay forge packets.
func TestForgedPacketsDoNotArrive(t *testing.T) {
	for _, mode := range []string{"external", "mesh"} {
		for name, fams := range map[string]backendtest.Families{"IPv4": {V4: true}, "IPv6": {V6: true}} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				const key = 7
				netnstest.NeedRoot(t)
				needGRE(t)
				s := suite(t)
				s.Options = fmt.Appendf(nil, `{"Type":"gre","Key":%d,"Mode":%q,"DirectRouting":false}`, key, mode)
				c := backendtest.NewCluster(t, s, fams, 3)
				a, b, stranger := c.Hosts[0], c.Hosts[1], c.Hosts[2]
				a.Open(t)
				b.Open(t)
				a.Sync(t, b.Own)
				b.Sync(t, a.Own)
				a.Reach(t, b)
				b.Reach(t, a)
				sub, peer := a.Own.Subnets[0], b.Own.Subnets[0]
				pod := func(s netip.Prefix) netip.Addr { return s.Addr().Next().Next() }
				info := a.Device.Info()
				scene := rulestest.Scene{
					Host: a.NS, MAC: rulestest.MAC(t, a.NS, "eth0"), Pod: a.Pod,
					Stranger: stranger.NS, Link: "eth0",
					HostAddr: a.Underlay.Addrs[0], PeerAddr: b.Underlay.Addrs[0], StrangerAddr: stranger.Underlay.Addrs[0],
					PodAddr: pod(sub), Neighbour: pod(sub).Next(), PeerPod: pod(peer),
					OnlyPeers: mode == "mesh",
				}
				scene.Wrap = func(src, dst netip.Addr, inner []byte) []byte {
					k := uint32(key)
					return rulestest.IP(unix.IPPROTO_GRE, src, dst, rulestest.GRE(&k, inner))
				}
				r := rules.Rules{Subnets: a.Own.Subnets, Tunnel: rules.Tunnel{
					Link: info.Link, MoreLinks: info.MoreLinks, Underlay: a.Underlay.Link, Local: a.Underlay.Addrs,
					Protocol: info.Protocol, Ports: info.Ports, Plain: info.Plain, Peers: b.Underlay.Addrs,
				}}
				for _, n := range c.Config.Ranges {
					r.Networks = append(r.Networks, n.Network)
				}
				scene.Test(t, func() (rules.Filter, error) { return nft.New() }, r)
			})
		}
	}
}
