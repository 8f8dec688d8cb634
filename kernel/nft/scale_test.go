package nft_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

// asked is what a dual-stack host with n peers asks for.
func asked(n int) rules.Rules {
	r := rules.Rules{
		Networks:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9"), netip.MustParsePrefix("fd00:1::/48")},
		Subnets:    []netip.Prefix{netip.MustParsePrefix("10.1.19.0/24"), netip.MustParsePrefix("fd00:1:0:19::/64")},
		Masquerade: true,
		Tunnel:     rules.Tunnel{Link: "flannel.1", MoreLinks: []string{"flannel-v6.1"}, Underlay: "eth0", Protocol: 17, Ports: []uint16{8472}},
		Guard:      []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2379"), netip.MustParseAddrPort("[fd07::9]:2379")},
	}
	for i := range n {
		r.Tunnel.Peers = append(r.Tunnel.Peers, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}))
	}
	return r
}

func TestManyPeersLoadAtOnceAndOneMoreIsOneElement(t *testing.T) {
	for _, n := range []int{5_000, 50_000} {
		ns := netnstest.New(t)
		err := ns.Do(func() error {
			timed := func(what string, f func() error) error {
				start := time.Now()
				err := f()
				t.Logf("%6d peers: %-10s %v", n, what, time.Since(start))
				return err
			}
			var f *nft.Filter
			err := timed("New", func() (err error) {
				f, err = nft.New(nil)
				return err
			})
			if err != nil {
				return err
			}
			defer f.Close()
			sync := func(r rules.Rules) func() error { return func() error { return f.Sync(t.Context(), r) } }
			r := asked(n)
			err = errors.Join(timed("first", sync(r)), timed("unchanged", sync(r)))
			r.Tunnel.Peers = append(r.Tunnel.Peers, netip.MustParseAddr("192.168.7.3"))
			writes := rulestest.CountWrites(t, ns)
			err = errors.Join(err, timed("one added", sync(r)))
			if k := writes(); k != 2 { // the element and the end of the transaction
				t.Errorf("%d peers, one added: %d notifications, want 2", n, k)
			}
			netnstest.Run(t, ns, "nft", "add", "table", "ip", "other") // so that the table is looked at
			writes = rulestest.CountWrites(t, ns)
			err = errors.Join(err, timed("verified", sync(r)))
			if k := writes(); k != 0 {
				t.Errorf("%d peers, verified: %d notifications, want none", n, k)
			}
			r.Tunnel.Peers = r.Tunnel.Peers[:1]
			return errors.Join(err, timed("one left", sync(r)), timed("removed", func() error { return f.Remove(t.Context()) }))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkSyncUnchanged(b *testing.B) {
	ns := netnstest.New(b)
	err := ns.Do(func() error {
		f, err := nft.New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		r := asked(5_000)
		if err := f.Sync(b.Context(), r); err != nil {
			return err
		}
		b.ReportAllocs()
		for b.Loop() {
			if err := f.Sync(b.Context(), r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOnePeerChanges moves one host among 5,000 to another address.
func BenchmarkOnePeerChanges(b *testing.B) {
	ns := netnstest.New(b)
	err := ns.Do(func() error {
		f, err := nft.New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		r := asked(5_000)
		if err := f.Sync(b.Context(), r); err != nil {
			return err
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r.Tunnel.Peers[i*37%5000] = netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)})
			if err := f.Sync(b.Context(), r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
