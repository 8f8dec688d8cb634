package vxlan

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
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

func manyPeers(n int, dual bool) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		mac := fmt.Sprintf("46:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255)
		out[i] = subnet.Lease{
			Subnets:   []netip.Prefix{netip.PrefixFrom(a, 24)},
			PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)})},
			Type:      "vxlan", Key: fmt.Sprintf("/subnets/%06d", i), Revision: int64(i),
			Data: subnet.BackendData{V4: []byte(`{"VNI":1,"VtepMAC":"` + mac + `"}`)},
		}
	}
	return out
}

func TestScale(t *testing.T) {
	sizes := []int{5000}
	if s := os.Getenv("FLANNELD_SCALE"); s != "" {
		n, _ := strconv.Atoi(s)
		sizes = []int{n}
	}
	for _, n := range sizes {
		ns := netnstest.New(t)
		u := underlayOf(t, ns, "192.168.77.2/24")
		cfg := subnet.Config{Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24}}}
		var dev backend.Device
		if err := ns.Do(func() (err error) { dev, err = Driver{}.Open(t.Context(), cfg, u, "id"); return err }); err != nil {
			t.Fatal(err)
		}
		own := subnet.Lease{Subnets: []netip.Prefix{netip.MustParsePrefix("10.255.255.0/24")}, PublicIPs: u.PublicIPs}
		peers := manyPeers(n+1, false)
		step := func(what string, f func()) {
			w, c, b := time.Now(), cpu(), dev.(*Device).Writes()
			f()
			t.Logf("%d peers, %s: wall %v cpu %v writes %d", n, what, time.Since(w), cpu()-c, dev.(*Device).Writes()-b)
		}
		sync := func(p []subnet.Lease) func() {
			return func() {
				if err := dev.Sync(t.Context(), own, p); err != nil {
					t.Fatal(err)
				}
			}
		}
		step("first sync", sync(peers[:n]))
		step("second sync", sync(peers[:n]))
		step("one added", sync(peers))
		step("one removed", sync(peers[:n]))
		step("second sync", sync(peers[:n]))
		dev.Forget()
		step("after forget", sync(peers[:n]))
		dev.Close()
	}
}
