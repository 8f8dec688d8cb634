package subnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

// TestNothingEverOverlaps plays random lives of clusters and looks at every
// state of the store that can be seen.
func TestNothingEverOverlaps(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { scenario(t, func(t *testing.T) { randomLife(t, seed) }) })
	}
}

func randomLife(t *testing.T, seed uint64) {
	rnd := source(seed)
	confs := []string{
		`{"Network":"10.5.0.0/21","SubnetLen":24}`, `{"Network":"10.5.0.0/21","SubnetLen":25}`, `{"Network":"10.5.0.0/21","SubnetLen":27}`,
		`{"Network":"10.5.0.0/21","SubnetLen":23,"EnableIPv6":true,"IPv6Network":"fd00:5::/60"}`,
		`{"Network":"10.5.0.0/20","SubnetLen":26,"EnableIPv6":true,"IPv6Network":"fd00:5::/60","IPv6SubnetLen":63}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/60"}`,
	}
	st := cluster(t, confs[0])
	stopWatching := watchOverlaps(t, st)
	defer stopWatching()
	var all []*testHost
	for i := range 10 {
		all = append(all, newHost(t, st, fmt.Sprintf("h%d", i), fmt.Sprintf("192.168.7.%d fd00:7::%d", i+1, i+1)))
	}
	for step := range 150 {
		h := all[rnd.IntN(len(all))]
		if h.stop != nil && h.now().ended {
			h.stop()
		}
		switch op := rnd.IntN(12); {
		case op == 0:
			put(t, st, ConfigKey(testPrefix), confs[rnd.IntN(len(confs))])
		case op == 1:
			h.st.Cut(true)
		case op == 2:
			for _, o := range all {
				o.st.Cut(false)
			}
		case op == 3 && h.stop == nil: // a reboot
			h.self.Host.Identity = fmt.Sprintf("id-%d", step)
			h.self.Previous = nil
		case op == 4 && h.stop == nil: // a clone
			h.self.Host.Identity = all[rnd.IntN(len(all))].self.Host.Identity
		case h.stop == nil:
			if held := h.now().held; len(held) > 0 {
				h.self.Previous = held[len(held)-1].Subnets
			}
			h.start()
		case op < 7:
			h.kill()
		case op == 7:
			h.stop()
		}
		switch rnd.IntN(4) {
		case 0: // nothing: at the same time
		case 1:
			settle(time.Duration(rnd.IntN(100)) * time.Millisecond)
		case 2:
			settle(time.Duration(rnd.IntN(20)) * time.Second)
		case 3:
			settle(time.Duration(rnd.IntN(10)) * time.Hour)
		}
	}
	settle(time.Minute)
	disjoint(t, st)
	heldOnce(t, st, all)
	for _, h := range all {
		if p := h.now(); p.err != nil && !errors.Is(p.err, ErrNoSubnet) && !errors.Is(p.err, ErrClone) && !errors.Is(p.err, ErrTaken) {
			if _, ok := errors.AsType[*InUseError](p.err); !ok {
				t.Errorf("%s ended by %v", h.self.Host.Name, p.err)
			}
		}
	}
}

// watchOverlaps fails the test when two leases overlap, whenever it is.
func watchOverlaps(t *testing.T, st *mem.Store) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for snap, err := range st.Watch(ctx, SubnetsPrefix(testPrefix), nil) {
			if err != nil {
				continue
			}
			if a, b, ok := overlapIn(snap); ok {
				t.Errorf("%s and %s overlap", a, b)
			}
		}
	}()
	return func() { cancel(); <-done }
}

func overlapIn(snap store.Snapshot) (a, b string, found bool) {
	type owned struct {
		subnet netip.Prefix
		key    string
	}
	var all []owned
	for _, kv := range snap.KVs {
		subnets, _ := ParseKey(testPrefix, kv.Key)
		for _, s := range subnets {
			if i := slices.IndexFunc(all, func(o owned) bool { return o.subnet.Overlaps(s) }); i >= 0 {
				return all[i].key, kv.Key, true
			}
			all = append(all, owned{s, kv.Key})
		}
	}
	return "", "", false
}

// heldOnce: daemons that are connected believe what the store says.
func heldOnce(t *testing.T, st *mem.Store, all []*testHost) {
	t.Helper()
	for _, h := range all {
		h.st.Cut(false)
	}
	settle(time.Minute)
	for _, h := range all {
		p := h.now()
		if h.stop == nil || p.ended || len(p.held) == 0 {
			continue
		}
		for _, r := range p.reports {
			if strings.Contains(r, "twice in one transaction") {
				t.Errorf("%s: %s", h.self.Host.Name, r)
			}
		}
		l := p.held[len(p.held)-1]
		got, err := st.Get(t.Context(), l.Key)
		if err != nil {
			t.Fatal(err)
		}
		in, err := ParseLease(testPrefix, got)
		if err != nil || in.Identity != h.self.Host.Identity || !sharesAddress(in.PublicIPs, h.self.Host.PublicIPs) {
			t.Errorf("%s believes to hold %s, stored is %s; reports %q", h.self.Host.Name, l.Key, got.Value, p.reports)
		}
	}
}
