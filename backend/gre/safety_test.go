package gre_test

import (
	"errors"
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
	netnstest.NeedRoot(t)
	needGRE(t)
	for name, fams := range map[string]backendtest.Families{"IPv4": {V4: true}, "IPv6": {V6: true}} {
		t.Run(name, func(t *testing.T) {
			c := backendtest.NewCluster(t, suite(t), fams, 3)
			for _, mode := range []string{"external", "mesh"} {
				forge(t, c, mode)
			}
		})
	}
}

func forge(t *testing.T, c *backendtest.Cluster, mode string) {
	key := uint32(7)
	c.Config.Backend.Raw = fmt.Appendf(nil, `{"Type":"gre","Key":%d,"Mode":%q,"DirectRouting":false}`, key, mode)
	a, b, stranger := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	a.Open(t)
	b.Open(t)
	a.Sync(t, b.Own)
	b.Sync(t, a.Own)
	a.Reach(t, b)
	b.Reach(t, a)
	open := func() (rules.Filter, error) { return nft.New(nil) }
	err := a.NS.Do(func() error {
		f, err := nft.New(nil)
		if err == nil {
			err = f.Close()
		}
		return err
	})
	if errors.Is(err, rules.ErrNotSupported) {
		t.Skip(err)
	}
	pod := func(s netip.Prefix) netip.Addr { return s.Addr().Next().Next() }
	scene := rulestest.Scene{
		Host: a.NS, MAC: rulestest.MAC(t, a.NS, "eth0"), Pod: a.Pod,
		Stranger: stranger.NS, Link: "eth0",
		HostAddr: a.Underlay.Addrs[0], PeerAddr: b.Underlay.Addrs[0], StrangerAddr: stranger.Underlay.Addrs[0],
		PodAddr: pod(a.Own.Subnets[0]), Neighbour: pod(a.Own.Subnets[0]).Next(), PeerPod: pod(b.Own.Subnets[0]),
		Wrap: func(src, dst netip.Addr, inner []byte) []byte {
			return rulestest.IP(unix.IPPROTO_GRE, src, dst, rulestest.GRE(&key, inner))
		},
		OnlyPeers: mode == "mesh",
	}
	info := a.Device.Info()
	scene.Test(t, open, rules.Rules{
		Networks: []netip.Prefix{c.Config.Ranges[0].Network}, Subnets: a.Own.Subnets,
		Tunnel: rules.Tunnel{
			Link: info.Link, MoreLinks: info.MoreLinks, Underlay: a.Underlay.Link, Local: a.Underlay.Addrs,
			Protocol: info.Protocol, Ports: info.Ports, Plain: info.Plain, Peers: b.Underlay.Addrs,
		},
	})
	a.Device.Close()
	b.Device.Close()
}
