package backendtest

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/subnet"
)

// testBeside gives two hosts a second network, whose devices must neither
// disturb those of the first nor carry its packets.
func testBeside(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	c.up(t)
	a, b := c.Hosts[0], c.Hosts[1]
	second := c.Config
	second.Backend.Raw, second.Ranges = s.Beside, nil
	for _, r := range c.Config.Ranges {
		r.Network, r.SubnetMin, r.SubnetMax = netip.MustParsePrefix("10.2.0.0/16"), netip.Addr{}, netip.Addr{}
		if r.SubnetLen > 32 {
			r.Network = netip.MustParsePrefix("fd00:2::/48")
		}
		second.Ranges = append(second.Ranges, r)
	}
	var devs []backend.Device
	var leases []subnet.Lease
	for _, h := range c.Hosts {
		var dev backend.Device
		err := h.NS.Do(func() (err error) {
			dev, err = s.Second().Open(t.Context(), second, h.Underlay, fmt.Sprintf("identity-%d", h.number))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() })
		own := h.Own
		own.Data, own.Subnets = dev.Info().Data, nil
		for _, r := range second.Ranges {
			own.Subnets = append(own.Subnets, subnetOf(r, h.number))
			h.addPod(t, subnetOf(r, h.number))
		}
		devs, leases = append(devs, dev), append(leases, own)
	}
	for i, dev := range devs {
		if err := dev.Sync(t.Context(), &leases[i], Peers(leases[1-i])); err != nil {
			t.Fatal(err)
		}
	}
	other := *b
	other.Own = leases[1]
	for range 2 {
		a.Reach(t, b)
		b.Reach(t, a)
		a.Reach(t, &other)
		for _, h := range c.Hosts {
			h.Device.Forget()
			h.Sync(t, h.Peers()...)
		}
	}
	if err := devs[0].Sync(t.Context(), &leases[0], nil); err != nil {
		t.Fatal(err)
	}
	a.Reach(t, b)
	for _, n := range leases[1].Subnets {
		if a.ping(t.Context(), n, "-c", "1") == nil {
			t.Errorf("%s of the second network is reached through the first", n)
		}
	}
}
