package hostgw

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// TestAnAddressIsOneHosts has two leases tell one address.
func TestAnAddressIsOneHosts(t *testing.T) {
	netnstest.NeedRoot(t)
	h := newHost(t, configOf("10.1.0.0/16"), "192.168.77.1/24")
	lease := func(key, identity string, created int64) *subnet.Lease {
		return &subnet.Lease{Key: key, Type: Type, Identity: identity, Created: created,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.1." + key + ".0/24")}, PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.5")}}
	}
	first, second, other, flannels := lease("9", "x", 1), lease("8", "x", 2), lease("7", "y", 3), lease("6", "", 4)
	sync := func(served string, refused int, leases ...*subnet.Lease) {
		t.Helper()
		var peers []backend.Peer
		for _, l := range leases {
			peers = append(peers, backend.Peer{Lease: l})
		}
		err := h.dev.Sync(t.Context(), &h.own, peers)
		if pe, ok := errors.AsType[*backend.PeerError](err); ok != (refused > 0) || ok && !strings.Contains(pe.Error(), "public IP 192.168.77.5 is that of "+leases[0].Key) || err != nil && strings.Count(err.Error(), "lease ") != refused {
			t.Errorf("got %v, want %d refused", err, refused)
		}
		var got []string
		for _, l := range leases {
			if strings.Contains(h.run(t, "ip route"), l.Subnets[0].String()+" via 192.168.77.5") {
				got = append(got, l.Key)
			}
		}
		if s := strings.Join(got, " "); s != served {
			t.Errorf("served: %s, want %s", s, served)
		}
	}
	sync("9", 1, first, other)
	sync("9 8", 1, first, second, other) // a host that changes its subnet has two
	sync("9 8", 2, first, second, other, flannels)
	sync("8", 1, second, other) // the host has it still
	sync("7", 1, other, flannels)
	sync("6", 0, flannels)
}
