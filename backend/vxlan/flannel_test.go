package vxlan_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// TestTakesOverFromFlannelWithoutLoss finds what flannel leaves behind: its
// device, and routes of no metric and no protocol number, to a peer that is
// still there and to one that is not.
func TestTakesOverFromFlannelWithoutLoss(t *testing.T) {
	netnstest.NeedRoot(t)
	c := backendtest.NewCluster(t, suite(), backendtest.Families{V4: true, V6: true}, 2)
	a, b := c.Hosts[0], c.Hosts[1]
	b.Open(t)
	ip := func(format string, args ...any) {
		t.Helper()
		line := strings.Fields(fmt.Sprintf(format, args...))
		netnstest.Run(t, a.NS, line[0], line[1:]...)
	}
	for i, dev := range []string{"flannel.1", "flannel-v6.1"} {
		ip("ip link add %s address 46:00:00:00:00:0%d mtu 1430 type vxlan id 1 local %s dev eth0 dstport 8472 nolearning", dev, i, a.Underlay.Addrs[i])
		bits := a.Own.Subnets[i].Addr().BitLen()
		ip("ip addr add %s/%d dev %s", a.Own.Subnets[i].Addr(), bits, dev)
		ip("ip link set %s up", dev)
		raw := b.Own.Data.V4
		if i == 1 {
			raw = b.Own.Data.V6
		}
		var data struct{ VtepMAC string }
		if err := json.Unmarshal(raw, &data); err != nil {
			t.Fatal(err)
		}
		for _, peer := range []struct{ subnet, gateway, mac, public string }{
			{b.Own.Subnets[i].String(), b.Own.Subnets[i].Addr().String(), data.VtepMAC, b.Own.PublicIPs[i].String()},
			{[]string{"10.1.99.0/24", "fd00:1:0:99::/64"}[i], []string{"10.1.99.0", "fd00:1:0:99::"}[i], "46:00:00:00:00:99", []string{"192.168.77.99", "fd77::99"}[i]},
		} {
			ip("ip neigh replace %s lladdr %s dev %s nud permanent", peer.gateway, peer.mac, dev)
			ip("bridge fdb replace %s dst %s dev %s", peer.mac, peer.public, dev)
			ip("ip route replace %s via %s dev %s onlink", peer.subnet, peer.gateway, dev)
		}
	}
	a.Open(t) // adopts
	b.Sync(t, a.Own)
	a.Reach(t, b)
	var waits []func() error
	for _, n := range b.Own.Subnets {
		waits = append(waits, a.StartPing(t, n, 100))
	}
	a.Sync(t, b.Own)
	for _, wait := range waits {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
	state := a.State(t)
	for _, leftover := range []string{"10.1.99", "fd00:1:0:99", "46:00:00:00:00:99"} {
		if strings.Contains(state, leftover) {
			t.Errorf("%q is still there:\n%s", leftover, state)
		}
	}
	for line := range strings.Lines(state) {
		if strings.Contains(line, "onlink") && !strings.Contains(line, "proto 102") {
			t.Errorf("a route of flannel's is still there: %s", line)
		}
	}
}
