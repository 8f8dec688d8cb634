package link_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// host is a namespace with an underlay interface eth0 (its far end is far0)
// and a VXLAN device each for IPv4 and IPv6.
type host struct {
	ns *netns.NS
	h  *link.Handle
}

func newHost(t *testing.T) host {
	ns := netnstest.New(t)
	// Link-local addresses settle at once, not a second later.
	netnstest.Run(t, ns, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
	netnstest.Run(t, ns, "ip", "link", "add", "eth0", "up", "type", "veth", "peer", "name", "far0")
	netnstest.Run(t, ns, "ip", "link", "set", "far0", "up")
	h, err := link.OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return host{ns, h}
}

func (h host) ip(t *testing.T, line string) string {
	t.Helper()
	return netnstest.Run(t, h.ns, "ip", strings.Fields(line)...)
}

func (h host) vxlan(t *testing.T, name string, v link.Vxlan) link.Link {
	t.Helper()
	if err := h.h.AddVxlan(name, link.MAC{2, 0, 0, 0, 0, 1}, 1400, v); err != nil {
		t.Fatal(err)
	}
	l, err := h.h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.h.SetConf(l.Index, link.Conf{IPv6: true, AddrGenMode: link.AddrGenNone}); err != nil {
		t.Fatal(err)
	}
	if err := h.h.SetUp(l.Index); err != nil {
		t.Fatal(err)
	}
	return l
}

func v4(n uint32) netip.Addr {
	var raw [4]byte
	binary.BigEndian.PutUint32(raw[:], n)
	return netip.AddrFrom4(raw)
}

// entries are what n peers need, IPv4 or IPv6.
func entries(dev, n int, v6 bool) (routes []link.Route, neighbours []link.Neighbour, fdbs []link.FDB) {
	for i := range n {
		gw, bits := v4(10<<24|uint32(i)<<8), 24
		if v6 {
			gw, bits = netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(i >> 16), 6: byte(i >> 8), 7: byte(i)}), 64
		}
		mac := link.MAC{0x46, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		routes = append(routes, link.Route{Dst: netip.PrefixFrom(gw, bits), Via: gw, Link: dev, OnLink: true, Metric: uint32(i) + 1, Protocol: link.Protocol})
		neighbours = append(neighbours, link.Neighbour{Addr: gw, MAC: mac, Link: dev, Permanent: true})
		fdbs = append(fdbs, link.FDB{MAC: mac, Dst: v4(172<<24 | uint32(i) + 1), Link: dev, Permanent: true})
	}
	return routes, neighbours, fdbs
}

func TestBatchedEntriesAreDumpedAsTheyWereSet(t *testing.T) {
	h := newHost(t)
	dev := h.vxlan(t, "flannel.1", link.Vxlan{VNI: 1, Port: 8472}).Index
	other := h.vxlan(t, "flannel.2", link.Vxlan{VNI: 2, Port: 8472}).Index
	b := h.h.Batch(func(i int, err error) { t.Errorf("change %d refused: %v", i, err) })
	r4, n4, fdbs := entries(dev, 3000, false)
	r6, n6, _ := entries(dev, 3000, true)
	routes, neighbours := slices.Concat(r4, r6), slices.Concat(n4, n6)
	ro, no, fo := entries(other, 10, false)
	for range 2 { // the second time all is there already
		for _, n := range append(neighbours, no...) {
			b.SetNeighbour(n)
		}
		for _, f := range append(fdbs, fo...) {
			b.SetFDB(f)
		}
		for _, r := range append(routes, ro...) {
			b.SetRoute(r)
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if want := 2 * (2*6010 + 3010); b.Len() != want || h.h.Writes() < uint64(want) {
		t.Errorf("%d changes, %d writes, want %d", b.Len(), h.h.Writes(), want)
	}
	// The routes and neighbours of the other device have the keys of the
	// first one's, of which the routes were replaced.
	gotR, err := h.h.Routes(link.RouteFilter{Link: dev, Protocol: link.Protocol})
	if err != nil {
		t.Fatal(err)
	}
	sameSet(t, "routes", gotR, routes[10:])
	gotN, err := h.h.Neighbours(dev)
	if err != nil {
		t.Fatal(err)
	}
	sameSet(t, "neighbours", gotN, neighbours)
	gotF, err := h.h.FDBs(dev)
	if err != nil {
		t.Fatal(err)
	}
	sameSet(t, "forwarding entries", gotF, fdbs)

	for range 2 { // the second time all is gone already
		for i := range routes {
			b.DelRoute(routes[i])
			b.DelNeighbour(neighbours[i])
		}
		for _, f := range fdbs {
			b.DelFDB(f)
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	gotR, _ = h.h.Routes(link.RouteFilter{Link: dev, Protocol: link.Protocol})
	gotN, _ = h.h.Neighbours(dev)
	gotF, _ = h.h.FDBs(dev)
	if len(gotR)+len(gotN)+len(gotF) != 0 {
		t.Errorf("left: %d routes, %d neighbours, %d forwarding entries", len(gotR), len(gotN), len(gotF))
	}
}

func sameSet[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	have := map[T]bool{}
	for _, x := range got {
		have[x] = true
	}
	missing := 0
	for _, x := range want {
		if !have[x] {
			if missing++; missing == 1 {
				t.Errorf("%s: %+v is missing, there is e.g. %+v", what, x, got[:min(len(got), 1)])
			}
		}
	}
	if len(got) != len(want) || missing > 0 {
		t.Errorf("%s: got %d, want %d, %d missing", what, len(got), len(want), missing)
	}
}

// TestRefusalsAreTiedToTheirChange has more refusals than fit into a socket's
// memory at once.
func TestRefusalsAreTiedToTheirChange(t *testing.T) {
	h := newHost(t)
	dev := h.vxlan(t, "flannel.1", link.Vxlan{VNI: 1, Port: 8472}).Index
	const n = 20000
	refused := map[int]error{}
	b := h.h.Batch(func(i int, err error) { refused[i] = err })
	routes, _, _ := entries(dev, n, false)
	for i, r := range routes {
		if i%100 != 0 {
			r.Link = 9999
		}
		b.SetRoute(r)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := refused[i]; (i%100 == 0) != (err == nil) || err != nil && !errors.Is(err, unix.ENODEV) {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	if got, err := h.h.Routes(link.RouteFilter{Link: dev, Protocol: link.Protocol}); err != nil || len(got) != n/100 {
		t.Errorf("%d routes, %v", len(got), err)
	}
}

func TestRouteThatTellsMoreEqualsNone(t *testing.T) {
	h := newHost(t)
	h.ip(t, "addr add 192.168.7.1/24 dev eth0")
	h.ip(t, "route add 10.1.1.0/24 via 192.168.7.2 proto 102 metric 5")
	h.ip(t, "route add 10.1.2.0/24 via 192.168.7.2 proto 102 metric 5 src 192.168.7.1")
	h.ip(t, "route add 10.1.3.0/24 proto 102 metric 5 nexthop via 192.168.7.2 nexthop via 192.168.7.3")
	h.ip(t, "route add blackhole 10.1.4.0/24 proto 102 metric 5")
	h.ip(t, "route add 10.1.5.0/24 via 192.168.7.2 proto 102 metric 5 mtu 1000")
	h.ip(t, "route add 10.1.6.0/24 via 192.168.7.2 proto 102 metric 5 table 7")
	got, err := h.h.Routes(link.RouteFilter{Protocol: link.Protocol})
	if err != nil || len(got) != 5 {
		t.Fatalf("%v, %v", got, err)
	}
	eth0, err := h.h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range got {
		want := link.Route{Dst: r.Dst, Via: netip.MustParseAddr("192.168.7.2"), Link: eth0.Index, Metric: 5, Protocol: link.Protocol}
		if (r == want) != (r.Dst.Addr() == netip.MustParseAddr("10.1.1.0")) || r != want && !r.Special {
			t.Errorf("%+v", r)
		}
	}
	b := h.h.Batch(func(i int, err error) { t.Errorf("%+v: %v", got[i], err) })
	for _, r := range got {
		b.DelRoute(r)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, err := h.h.Routes(link.RouteFilter{Protocol: link.Protocol}); err != nil || len(got) > 1 {
		t.Errorf("left: %+v, %v", got, err) // the one of two next hops may stay
	}
}

func TestRouteTo(t *testing.T) {
	h := newHost(t)
	h.ip(t, "addr add 192.168.7.1/24 dev eth0")
	h.ip(t, "addr add fd07::1/64 dev eth0 nodad")
	h.ip(t, "route add default via 192.168.7.254")
	eth0, err := h.h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]link.Path{
		"192.168.7.9": {Link: eth0.Index, Src: netip.MustParseAddr("192.168.7.1")},
		"8.8.8.8":     {Link: eth0.Index, Src: netip.MustParseAddr("192.168.7.1"), Via: netip.MustParseAddr("192.168.7.254")},
		"fd07::9":     {Link: eth0.Index, Src: netip.MustParseAddr("fd07::1")},
		"192.168.7.1": {Link: 1, Src: netip.MustParseAddr("192.168.7.1"), Local: true},
	} {
		if got, err := h.h.RouteTo(netip.MustParseAddr(dst)); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", dst, got, err, want)
		}
	}
	if _, err := h.h.RouteTo(netip.MustParseAddr("2001:db8::1")); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("got %v", err)
	}
}

func TestLinks(t *testing.T) {
	h := newHost(t)
	if _, err := h.h.LinkByName("none"); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("got %v", err)
	}
	if _, err := h.h.LinkByIndex(999); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("got %v", err)
	}
	eth0, err := h.h.LinkByName("eth0")
	if err != nil || eth0.Kind != "veth" || !eth0.Up || eth0.MTU != 1500 || eth0.MAC == (link.MAC{}) || eth0.Parent == 0 || !eth0.Conf.IPv6 {
		t.Errorf("%+v, %v", eth0, err)
	}
	want := link.Vxlan{VNI: 7, Port: 4789, Local: netip.MustParseAddr("192.168.7.1"), Link: eth0.Index, GBP: true}
	l := h.vxlan(t, "flannel.7", want)
	if l.Vxlan == nil || *l.Vxlan != want || l.Kind != "vxlan" || l.MTU != 1400 {
		t.Errorf("%+v %+v", l, l.Vxlan)
	}
	six := link.Vxlan{VNI: 7, Port: 4789, Local: netip.MustParseAddr("fd07::1"), Link: eth0.Index, Learning: true}
	if l6 := h.vxlan(t, "flannel-v6.7", six); *l6.Vxlan != six {
		t.Errorf("%+v", l6.Vxlan)
	}
	if err := h.h.AddVxlan("again", l.MAC, 1400, want); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "again") {
		t.Errorf("got %v", err)
	}
	if all, err := h.h.Links("vxlan"); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	mac := link.MAC{2, 2, 2, 2, 2, 2}
	for _, err := range []error{h.h.SetMTU(l.Index, 1300), h.h.SetMAC(l.Index, mac),
		h.h.SetConf(l.Index, link.Conf{RPFilter: 2, ARPIgnore: 8, IPv6: true, AddrGenMode: link.AddrGenNone}),
		h.h.SetSysctl("0", "net", "ipv6", "conf", "flannel.7", "accept_ra")} {
		if err != nil {
			t.Error(err)
		}
	}
	got, err := h.h.LinkByIndex(l.Index)
	if err != nil || got.MTU != 1300 || got.MAC != mac || got.Conf != (link.Conf{RPFilter: 2, ARPIgnore: 8, IPv6: true, AddrGenMode: link.AddrGenNone}) {
		t.Errorf("%+v, %v", got, err)
	}
	if v, err := h.h.Sysctl("net", "ipv4", "conf", "flannel.7", "rp_filter"); err != nil || v != "2" {
		t.Errorf("rp_filter %q, %v", v, err)
	}
	for range 2 {
		if err := h.h.DeleteLink(l.Index); err != nil {
			t.Error(err)
		}
	}
}

func TestSysctlNamesCannotEscape(t *testing.T) {
	h := newHost(t)
	for _, e := range []string{"..", "a/b", "", "."} {
		if _, err := h.h.Sysctl("net", "ipv4", "conf", e, "rp_filter"); err == nil {
			t.Errorf("%q was taken", e)
		}
	}
	if _, err := h.h.Sysctl("net", "ipv4", "no-such"); !errors.Is(err, link.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestAddresses(t *testing.T) {
	h := newHost(t)
	eth0, err := h.h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.1.2.0/32"), netip.MustParsePrefix("10.1.3.1/24"), netip.MustParsePrefix("fd00:1:0:2::/128")}
	for range 2 {
		for _, p := range want {
			if err := h.h.AddAddress(eth0.Index, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	list := func() (out []netip.Prefix) {
		all, err := h.h.Addresses(eth0.Index)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if !a.Prefix.Addr().IsLinkLocalUnicast() {
				if out = append(out, a.Prefix); !a.Settled || a.Link != eth0.Index {
					t.Errorf("%+v", a)
				}
			}
		}
		return out
	}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range 2 {
		for _, p := range want[:2] {
			if err := h.h.DelAddress(eth0.Index, p); err != nil {
				t.Error(err)
			}
		}
	}
	if got := list(); !slices.Equal(got, want[2:]) {
		t.Errorf("got %v, want %v", got, want[2:])
	}
}

func TestMAC(t *testing.T) {
	for in, want := range map[string]link.MAC{
		"46:0a:5c:00:00:01": {0x46, 0x0a, 0x5c, 0, 0, 1}, "46-0A-5C-00-00-01": {0x46, 0x0a, 0x5c, 0, 0, 1},
		"": {}, "46:0a": {}, "46:00:00:00:00:00:00:01": {}, "x6:0a:5c:00:00:01": {},
	} {
		got, err := link.ParseMAC(in)
		if got != want || (err == nil) != (want != link.MAC{}) {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
	for mac, want := range map[link.MAC]bool{{}: false, {2, 0, 0, 0, 0, 1}: true, {1, 0, 0x5e, 0, 0, 1}: false, {255, 255, 255, 255, 255, 255}: false} {
		if mac.IsUnicast() != want {
			t.Error(mac)
		}
	}
}

func fields(s string) []string { return strings.Fields(s) }
