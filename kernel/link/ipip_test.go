package link_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

func TestIPIPDeviceIsReadBackAsItWasMade(t *testing.T) {
	h := newHost(t)
	for name, spec := range map[string]link.IPIP{
		"tun4": {Local: netip.MustParseAddr("192.168.77.1")}, "ext4": {External: true},
		"tun6": {V6: true, Local: netip.MustParseAddr("fd77::1")}, "ext6": {V6: true, External: true},
	} {
		err := h.h.AddIPIP(name, 1300, spec)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("this kernel has no IPIP (CONFIG_NET_IPIP, CONFIG_IPV6_TUNNEL)")
		}
		if err != nil {
			t.Fatalf("%+v: %v", spec, err)
		}
		l, err := h.h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if l.IPIP == nil || *l.IPIP != spec || l.MTU != 1300 || l.Kind != spec.Kind() || l.Up {
			t.Errorf("made %+v, read %+v of %+v", spec, l.IPIP, l)
		}
		if err := h.h.AddIPIP(name+"b", 1300, spec); !errors.Is(err, unix.EEXIST) {
			t.Errorf("%+v twice: %v", spec, err)
		}
		all, err := h.h.Links(spec.Kind())
		if err != nil || len(all) == 0 {
			t.Errorf("%v %v", all, err)
		}
	}
	for _, args := range [][]string{
		{"sixin4", "type", "ip6tnl", "local", "fd77::2", "mode", "ipip6"},
		{"limit", "type", "ip6tnl", "local", "fd77::3", "mode", "ip6ip6", "encaplimit", "4"},
		{"one", "type", "ipip", "local", "192.168.77.1", "remote", "192.168.77.2"},
		{"bound", "type", "ipip", "local", "192.168.77.2", "dev", "lo"},
	} {
		netnstest.Run(t, h.ns, "ip", append([]string{"link", "add"}, args...)...)
		l, err := h.h.LinkByName(args[0])
		if err != nil {
			t.Fatal(err)
		}
		if l.IPIP == nil || !l.IPIP.Special {
			t.Errorf("%v is taken for an ordinary one: %+v", args, l.IPIP)
		}
	}
	netnstest.Run(t, h.ns, "ip", "link", "add", "flannels", "type", "ipip", "local", "192.168.77.9", "nopmtudisc")
	if l, err := h.h.LinkByName("flannels"); err != nil || l.IPIP == nil || *l.IPIP != (link.IPIP{Local: netip.MustParseAddr("192.168.77.9")}) {
		t.Errorf("%+v %v", l.IPIP, err)
	}
}

func TestAnchorHoldsAddressesAndIsAlwaysTheSame(t *testing.T) {
	h := newHost(t)
	var before link.Link
	for i := range 2 {
		if err := h.h.AddAnchor("anchor", 1400); err != nil {
			t.Fatal(err)
		}
		l, err := h.h.LinkByName("anchor")
		if err != nil {
			t.Fatal(err)
		}
		if l.Kind != link.KindAnchor || l.MTU != 1400 || !l.MAC.IsUnicast() || i > 0 && l.MAC != before.MAC {
			t.Errorf("got %+v, before %+v", l, before)
		}
		if err := h.h.AddAnchor("anchor", 1400); !errors.Is(err, unix.EEXIST) {
			t.Errorf("made twice: %v", err)
		}
		if err := h.h.SetUp(l.Index); err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"10.1.2.0/32", "fd00:1:2::/128"} {
			if err := h.h.AddAddress(l.Index, netip.MustParsePrefix(a)); err != nil {
				t.Fatal(err)
			}
			p, err := h.h.RouteTo(netip.MustParsePrefix(a).Addr())
			for i := 0; i < 100 && err == nil && !p.Local; i++ { // IPv6 has a worker for it
				time.Sleep(10 * time.Millisecond)
				p, err = h.h.RouteTo(netip.MustParsePrefix(a).Addr())
			}
			if err != nil || !p.Local {
				t.Errorf("%s: %+v %v", a, p, err)
			}
		}
		if err := h.h.DeleteLink(l.Index); err != nil {
			t.Fatal(err)
		}
		before = l
	}
}
