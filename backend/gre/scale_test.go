package gre_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/gre"
	"github.com/flanneld/flanneld/subnet"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// manyPeersOf makes leases of hosts that do not exist, sorted by key: subnets
// of 16 addresses of IPv4, of 64 bits of IPv6.
func manyPeersOf(c subnet.Config, n int) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		data := json.RawMessage(`{"Key":7}`)
		out[i] = subnet.Lease{Type: gre.Type, Key: fmt.Sprintf("/subnets/%06d", i), Revision: int64(i), Data: subnet.BackendData{V4: data, V6: data}}
		for _, r := range c.Ranges {
			raw := r.Network.Addr().AsSlice()
			public, bits := netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)}), 64
			if at := i + 64; len(raw) == 4 { // beyond the host's own
				raw[1], raw[2], raw[3], bits = raw[1]|byte(at>>12), raw[2]|byte(at>>4), byte(at<<4), 28
			} else {
				raw[5], raw[6], raw[7] = raw[5]|byte(at>>16), byte(at>>8), byte(at)
				public = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x78, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
			}
			a, _ := netip.AddrFromSlice(raw)
			out[i].Subnets = append(out[i].Subnets, netip.PrefixFrom(a, bits))
			out[i].PublicIPs = append(out[i].PublicIPs, public)
		}
	}
	return out
}

// TestScale prints what a number of peers costs; FLANNELD_SCALE sets it. The
// only limits that fail are counts.
func TestScale(t *testing.T) {
	for name, c := range map[string]struct {
		options, many string
		fams          backendtest.Families
		each          int // writes for a peer and family
	}{
		"IPv4": {`{"Type":"gre","Key":7}`, "5000", backendtest.Families{V4: true}, 1},
		"Dual": {`{"Type":"gre","Key":7}`, "5000", backendtest.Families{V4: true, V6: true}, 1},
		"Mesh": {`{"Type":"gre","Key":7,"Mode":"mesh"}`, "100", backendtest.Families{V4: true}, 7},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := strconv.Atoi(cmp.Or(os.Getenv("FLANNELD_SCALE"), c.many))
			a, _, cluster := hosts(t, c.options, c.fams)
			cluster.Config.Ranges[0].Network, cluster.Config.Ranges[0].SubnetLen = netip.MustParsePrefix("10.0.0.0/8"), 28
			own := a.Own
			own.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}
			if c.fams.V6 {
				cluster.Config.Ranges[1].Network = netip.MustParsePrefix("fd00::/32")
				own.Subnets = append(own.Subnets, netip.MustParsePrefix("fd00::/64"))
			}
			a.Open(t)
			peers := manyPeersOf(cluster.Config, n+1)
			dev := a.Device.(*gre.Device)
			step := func(what string, peers []subnet.Lease, most int) {
				told := backendtest.Peers(peers...)
				w, u, b := time.Now(), cpu(), dev.Writes()
				if err := dev.Sync(t.Context(), &own, told); err != nil {
					t.Fatal(err)
				}
				wall, used, writes := time.Since(w), cpu()-u, int(dev.Writes()-b)
				t.Logf("%d peers, %s: wall %v, CPU %v, %d writes", n, what, wall.Round(time.Microsecond), used.Round(time.Microsecond), writes)
				if most *= len(own.Subnets); writes > most {
					t.Errorf("%s: %d writes, want at most %d", what, writes, most)
				}
			}
			step("first sync", peers[:n], c.each*n+1)
			step("second sync", peers[:n], 0)
			step("one added", peers, c.each)
			step("one removed", peers[:n], c.each)
			dev.Forget()
			step("sync after Forget", peers[:n], 0)
		})
	}
}
