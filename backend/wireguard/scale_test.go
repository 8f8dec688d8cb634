package wireguard_test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/subnet"
)

// invented makes leases of hosts that do not exist.
func invented(n int) []subnet.Lease {
	out := make([]subnet.Lease, n)
	for i := range out {
		raw := binary.BigEndian.AppendUint32(nil, 10<<24|1<<16|uint32(i+4096)<<2)
		out[i] = subnet.Lease{
			Type: "wireguard", Key: fmt.Sprintf("/subnets/%06d", i), Revision: int64(i), Data: subnet.BackendData{V4: inventedData(i)},
			Subnets:   []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte(raw)), 30)},
			PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})},
		}
	}
	return out
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestScale prints what a number of peers costs; FLANNELD_SCALE sets it. Only
// counts can fail.
func TestScale(t *testing.T) {
	n, _ := strconv.Atoi(cmp.Or(os.Getenv("FLANNELD_SCALE"), strconv.Itoa(many(t))))
	c, p := cluster(t, "", ipv4, 1)
	h := c.Hosts[0]
	h.Open(t)
	peers := invented(n + 1)
	step := func(what string, peers []subnet.Lease, most int) {
		t.Helper()
		told := backendtest.Peers(peers...)
		writes := h.Device.(interface{ Writes() uint64 }).Writes
		began, used, before := time.Now(), cpu(), writes()
		if err := h.Device.Sync(t.Context(), &h.Own, told); err != nil {
			t.Fatal(err)
		}
		wall, spent, wrote := time.Since(began), cpu()-used, int(writes()-before)
		t.Logf("%d peers, %s: wall %v, CPU %v, %d writes", n, what, wall.Round(time.Microsecond), spent.Round(time.Microsecond), wrote)
		if wrote > most {
			t.Errorf("%s: %d writes, want at most %d", what, wrote, most)
		}
	}
	step("first sync", peers[:n], 2*n+1) // a peer, a route, the address
	step("second sync", peers[:n], 0)
	step("one added", peers, 2)
	step("one removed", peers[:n], 2)
	h.Device.Forget()
	step("sync after Forget", peers[:n], 0)
	if pid := p.keeper(t, h, "flannel-wg"); pid != 0 {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, "VmRSS") {
				t.Logf("the process has %s", strings.Join(strings.Fields(line), " "))
			}
		}
	}
}
