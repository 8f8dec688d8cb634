package link_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// needGRE skips the test where the kernel has no GRE.
func needGRE(t *testing.T, h *link.Handle) {
	t.Helper()
	for _, g := range []link.GRE{{External: true}, {V6: true, External: true}} {
		err := h.AddGRE("probe", 1400, g)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("this kernel has no GRE (CONFIG_NET_IPGRE, CONFIG_IPV6_GRE)")
		}
		if err != nil {
			t.Fatal(err)
		}
		l, err := h.LinkByName("probe")
		if err == nil {
			err = h.DeleteLink(l.Index)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestGREDeviceIsReadBackAsItWasMade(t *testing.T) {
	h := newHost(t)
	needGRE(t, h.h)
	a4, b4 := netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("192.168.77.2")
	a6, b6 := netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd77::2")
	for i, g := range []link.GRE{
		{External: true}, {External: true, Checksum: true},
		{External: true, V6: true}, {External: true, V6: true, Checksum: true},
		{Local: a4, Remote: b4, TTL: 64},
		{Local: a4, Remote: b4, TTL: 64, Keyed: true},
		{Local: a4, Remote: b4, Keyed: true, Key: 0x81020304, Checksum: true, Sequence: true},
		{V6: true, Local: a6, Remote: b6, TTL: 64},
		{V6: true, Local: a6, Remote: b6, TTL: 64, Keyed: true, Key: 7, Checksum: true, Sequence: true},
	} {
		name := fmt.Sprintf("gre-%d", i)
		if err := h.h.AddGRE(name, 1300, g); err != nil {
			t.Fatalf("%+v: %v", g, err)
		}
		l, err := h.h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if l.GRE == nil || *l.GRE != g || l.MTU != 1300 || l.Kind != g.Kind() || l.Up {
			t.Errorf("made %+v, read %+v of %+v", g, l.GRE, l)
		}
		if err := h.h.AddGRE(name+"x", 1300, g); !errors.Is(err, unix.EEXIST) {
			t.Errorf("the same tunnel twice: %v", err)
		}
		if err := h.h.DeleteLink(l.Index); err != nil {
			t.Error(err)
		}
	}
}

func TestForeignGREDeviceIsSpecial(t *testing.T) {
	h := newHost(t)
	needGRE(t, h.h)
	for i, args := range []string{
		"gre local 192.168.77.1 remote 192.168.77.2", // don't fragment
		"gre local 192.168.77.1 remote 192.168.77.2 nopmtudisc ikey 1 okey 2",
		"gre local 192.168.77.1 remote 192.168.77.2 nopmtudisc seq",
		"gre local 192.168.77.1 remote 192.168.77.2 nopmtudisc dev eth0",
		"gre local 192.168.77.1 remote 192.168.77.2 nopmtudisc tos 4",
		"ip6gre local fd77::1 remote fd77::2", // an option that limits nesting
	} {
		name := fmt.Sprintf("gre-%d", i)
		h.ip(t, "link add "+name+" type "+args)
		l, err := h.h.LinkByName(name)
		if err != nil || l.GRE == nil || !l.GRE.Special {
			t.Errorf("%s: %+v %v", args, l.GRE, err)
		}
		h.ip(t, "link del "+name)
	}
}

// greHosts are two namespaces on one link, 192.168.77.n and fd77::n, each with
// both external devices.
func greHosts(t *testing.T, g link.GRE) (hosts [2]*netns.NS, handles [2]*link.Handle, index [2][2]int) {
	hosts[0], hosts[1] = netnstest.New(t), netnstest.New(t)
	netnstest.Run(t, hosts[0], "ip", "link", "add", "eth0", "up", "type", "veth", "peer", "name", "eth0", "netns", hosts[1].Path())
	for i, ns := range hosts {
		h, err := link.OpenAt(ns.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		needGRE(t, h)
		handles[i] = h
		netnstest.Run(t, ns, "ip", "link", "set", "eth0", "up")
		netnstest.Run(t, ns, "ip", "addr", "add", fmt.Sprintf("192.168.77.%d/24", i+1), "dev", "eth0")
		netnstest.Run(t, ns, "ip", "addr", "add", fmt.Sprintf("fd77::%d/64", i+1), "dev", "eth0", "nodad")
		for f, name := range []string{"gre-ext4", "gre-ext6"} {
			g.External, g.V6 = true, f == 1
			if err := h.AddGRE(name, 1400, g); err != nil {
				t.Fatal(err)
			}
			l, err := h.LinkByName(name)
			if err == nil {
				err = h.SetUp(l.Index)
			}
			if err != nil {
				t.Fatal(err)
			}
			index[i][f] = l.Index
		}
		netnstest.Run(t, ns, "ip", "addr", "add", fmt.Sprintf("10.1.%d.0/32", i+1), "dev", "gre-ext4")
		netnstest.Run(t, ns, "ip", "addr", "add", fmt.Sprintf("fd00:1:0:%d::/128", i+1), "dev", "gre-ext6", "nodad")
	}
	return hosts, handles, index
}

func TestEncapsulatingRoutesCarryTraffic(t *testing.T) {
	for name, c := range map[string]struct {
		dev   link.GRE
		flags link.EncapFlags
	}{
		"Plain":       {},
		"Key":         {flags: link.EncapKey},
		"Checksum":    {dev: link.GRE{Checksum: true}, flags: link.EncapKey | link.EncapChecksum},
		"Sequence":    {flags: link.EncapKey | link.EncapSequence},
		"Everything":  {dev: link.GRE{Checksum: true}, flags: link.EncapKey | link.EncapChecksum | link.EncapSequence},
		"OnlyCounted": {flags: link.EncapSequence},
	} {
		t.Run(name, func(t *testing.T) {
			hosts, handles, index := greHosts(t, c.dev)
			for i, h := range handles {
				o := 2 - i
				var want []link.Route
				for f := range 2 {
					r := link.Route{Link: index[i][f], Metric: 77, Protocol: link.Protocol, Encap: link.Encap{ID: 0xfedcba98, TTL: 64, Flags: c.flags}}
					if f == 0 {
						r.Dst = netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", o))
						r.Encap.Src, r.Encap.Dst = netip.MustParseAddr(fmt.Sprintf("192.168.77.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("192.168.77.%d", o))
					} else {
						r.Dst = netip.MustParsePrefix(fmt.Sprintf("fd00:1:0:%d::/64", o))
						r.Encap.Src, r.Encap.Dst = netip.MustParseAddr(fmt.Sprintf("fd77::%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd77::%d", o))
					}
					want = append(want, r)
				}
				b := h.Batch(func(_ int, err error) { t.Error(err) })
				for _, r := range want {
					b.SetRoute(r)
					b.SetRoute(r) // replaces
				}
				if err := b.Flush(); err != nil {
					t.Fatal(err)
				}
				got, err := h.Routes(link.RouteFilter{Protocol: link.Protocol})
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("set %+v, read %+v %v", want, got, err)
				}
				for f := range got {
					if got[f] != want[f] {
						t.Errorf("set %+v, read %+v", want[f], got[f])
					}
				}
			}
			for _, to := range []string{"10.1.2.0", "fd00:1:0:2::"} {
				netnstest.Run(t, hosts[0], "ping", "-n", "-q", "-c", "2", "-i", "0.1", "-W", "1", to)
			}
		})
	}
}

func TestForeignEncapsulationIsSpecial(t *testing.T) {
	hosts, handles, index := greHosts(t, link.GRE{})
	for _, args := range []string{
		"encap ip id 7 dst 192.168.77.2 tos 4 key",
		"encap ip id 0x100000007 dst 192.168.77.2 key",
		"encap ip id 7 dst 192.168.77.2 vxlan_opts 5",
		"src 10.1.1.0",
	} {
		netnstest.Run(t, hosts[0], "ip", append([]string{"route", "replace", "10.1.2.0/24", "dev", "gre-ext4"}, strings.Fields(args)...)...)
		routes, err := handles[0].Routes(link.RouteFilter{Link: index[0][0]})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range routes {
			if r.Dst.String() == "10.1.2.0/24" {
				found = true
				if !r.Special {
					t.Errorf("%s: %+v", args, r)
				}
			}
		}
		if !found {
			t.Errorf("%s: no route: %+v", args, routes)
		}
	}
}
