package routed

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/subnet"
)

// TestChangesLeadFromEachStateToTheNext keeps a copy by the changes alone, over
// random lists of peers, some of them out of order or with a key twice.
func TestChangesLeadFromEachStateToTheNext(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d := &Device[struct{}]{}
	copied := map[string]backend.Peer{}
	var now []backend.Peer
	for step := range 5000 {
		key := fmt.Sprint(rnd.IntN(10))
		at, there := slices.BinarySearchFunc(now, backend.Peer{Lease: &subnet.Lease{Key: key}}, byKey)
		switch op := rnd.IntN(5); {
		case op == 0 && there:
			now = slices.Delete(slices.Clone(now), at, at+1)
		case op == 1 && there: // renewed
			l := *now[at].Lease
			now = slices.Clone(now)
			now[at].Lease = &l
		case op == 2 && there:
			now = slices.Clone(now)
			now[at].Way = backend.Way(rnd.IntN(3))
		case there:
			now = slices.Clone(now)
			now[at].Lease = &subnet.Lease{Key: key, Created: int64(step)}
		default:
			now = slices.Insert(slices.Clone(now), at, backend.Peer{Lease: &subnet.Lease{Key: key, Created: int64(step)}})
		}
		told := now
		switch rnd.IntN(10) {
		case 0:
			told = slices.Clone(now)
			rnd.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
		case 1:
			for range 2 {
				at := rnd.IntN(len(now) + 1)
				if at < len(now) {
					told = slices.Insert(slices.Clone(now), at, now[at])
				}
			}
		}
		for _, c := range d.update(told) {
			if c.old != nil {
				delete(copied, c.old.lease.Key)
			}
			if c.new != nil {
				copied[c.new.lease.Key] = backend.Peer{Lease: c.new.lease, Way: c.new.way}
			}
		}
		if len(d.peers) != len(now) || len(copied) != len(now) {
			t.Fatalf("step %d: %d peers, %d by changes, want %d", step, len(d.peers), len(copied), len(now))
		}
		for i, p := range now {
			if c := copied[p.Lease.Key]; !same(c.Lease, p.Lease) || c.Way != p.Way || d.peers[i].lease != p.Lease || d.peers[i].way != p.Way {
				t.Fatalf("step %d: %s is %+v by changes and %+v in place", step, p.Lease.Key, c, d.peers[i])
			}
		}
		if d.update(told) != nil {
			t.Fatalf("step %d: changes where there are none", step)
		}
	}
}
