package vxlan

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func underlayOf(t testing.TB, ns *netns.NS, addrs ...string) backend.Underlay {
	netnstest.Run(t, ns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	netnstest.Run(t, ns, "ip", "link", "set", "eth0", "up")
	netnstest.Run(t, ns, "ip", "link", "set", "far0", "up")
	u := backend.Underlay{Link: "eth0", MTU: 1500}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		args := []string{"addr", "add", a, "dev", "eth0"}
		if p.Addr().Is6() {
			args = append(args, "nodad")
		}
		netnstest.Run(t, ns, "ip", args...)
		u.Addrs = append(u.Addrs, p.Addr())
	}
	u.PublicIPs = u.Addrs
	return u
}

// manyPeersOf makes leases of hosts that do not exist, sorted by key: subnets of
// 16 addresses of IPv4, of 64 bits of IPv6.
func manyPeersOf(c subnet.Config, n int) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		data := fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"46:00:00:%02x:%02x:%02x"}`, i>>16, i>>8&255, i&255)
		out[i] = subnet.Lease{Type: Type, Key: fmt.Sprintf("/subnets/%06d", i), Revision: int64(i), Data: subnet.BackendData{V4: data, V6: data}}
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
	n, _ := strconv.Atoi(cmp.Or(os.Getenv("FLANNELD_SCALE"), "5000"))
	for name, networks := range map[string][]string{"IPv4": {"10.0.0.0/8"}, "Dual": {"10.0.0.0/8", "fd00::/32"}} {
		t.Run(name, func(t *testing.T) {
			ns := netnstest.New(t)
			u := underlayOf(t, ns, "192.168.77.2/24", "fd77::2/64")
			cfg := configOf("", networks...)
			cfg.Ranges[0].SubnetLen = 28
			own := subnet.Lease{Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}, PublicIPs: u.PublicIPs}
			if name == "Dual" {
				cfg.Ranges[1].SubnetLen = 64
				own.Subnets = append(own.Subnets, netip.MustParsePrefix("fd00::/64"))
			}
			var dev backend.Device
			if err := ns.Do(func() (err error) { dev, err = Driver{}.Open(t.Context(), cfg, u, "id"); return err }); err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			peers := manyPeersOf(cfg, n+1)
			step := func(what string, peers []subnet.Lease, most int) {
				told := backendtest.Peers(peers...)
				w, c, b := time.Now(), cpu(), dev.(*Device).Writes()
				if err := dev.Sync(t.Context(), &own, told); err != nil {
					t.Fatal(err)
				}
				wall, used, writes := time.Since(w), cpu()-c, int(dev.(*Device).Writes()-b)
				t.Logf("%d peers, %s: wall %v, CPU %v, %d writes", n, what, wall.Round(time.Microsecond), used.Round(time.Microsecond), writes)
				if writes > most*len(networks) {
					t.Errorf("%s: %d writes, want at most %d", what, writes, most*len(networks))
				}
			}
			step("first sync", peers[:n], 3*n+1)
			step("second sync", peers[:n], 0)
			step("one added", peers, 3)
			step("one removed", peers[:n], 3)
			dev.Forget()
			step("sync after Forget", peers[:n], 0)
		})
	}
}
