package daemon

import (
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/probe"
	"github.com/flanneld/flanneld/subnet"
)

// TestWhatFollowsPeersIsThatOfTheLastOnes compares ways and addresses after
// many changes with those of somebody who sees the peers for the first time.
func TestWhatFollowsPeersIsThatOfTheLastOnes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	p := newProbes(slog.New(slog.DiscardHandler))
	p.said.Plain = true
	var addrs publics
	var told []backend.Peer
	leases := map[int]*subnet.Lease{}
	for step := range 3000 {
		n := rnd.IntN(9)
		switch rnd.IntN(6) {
		case 0:
			delete(leases, n)
		case 1, 2:
			leases[n] = probeLease(n)
			for range rnd.IntN(3) {
				leases[n].PublicIPs = append(leases[n].PublicIPs, netip.AddrFrom4([4]byte{10, 9, byte(step), byte(n)}))
			}
		case 3:
			if rnd.IntN(20) == 0 {
				leases = map[int]*subnet.Lease{}
			}
		default:
			how := []probe.Plain{probe.PlainPasses, probe.PlainFails, probe.PlainUnknown}[rnd.IntN(3)]
			p.take(probe.Result{Key: probeLease(n).Key, Paths: []probe.Path{{Plain: how}}}, time.Now())
		}
		now := slices.SortedFunc(maps.Values(leases), func(a, b *subnet.Lease) int { return strings.Compare(a.Key, b.Key) })
		if rnd.IntN(2) == 0 { // the prober hears of it later
			p.update(now, true, func(l *subnet.Lease) (facts, bool) { return facts{plain: true}, rnd.IntN(9) > 0 })
		}
		var wantAddrs []netip.Addr
		want := []backend.Peer{}
		for _, l := range now {
			wantAddrs = append(wantAddrs, l.PublicIPs...)
			way := backend.WayUnknown
			if x := p.of(l.Key); x != nil {
				way = x.way
			}
			want = append(want, backend.Peer{Lease: l, Way: way})
		}
		if told = p.ways(told, now); !slices.Equal(told, want) {
			t.Fatalf("step %d: ways %v, want %v", step, told, want)
		}
		if got := addrs.of(now); !slices.Equal(got, wantAddrs) {
			t.Fatalf("step %d: addresses %v, want %v", step, got, wantAddrs)
		}
	}
}
