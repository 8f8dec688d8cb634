package nft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

// picture is everything that the kernel holds of the table but what clients are
// remembered, as lines in order. Slots are put in order, but where clients are
// spread by their address.
func picture(t *testing.T, ns *netns.NS) (lines []string) {
	t.Helper()
	err := ns.Do(func() error {
		b, err := openBalancer(nil)
		if err != nil {
			return err
		}
		defer b.Close()
		r := reader{b.conn}
		f, err := r.frame()
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprint(f))
		names, chains := map[string]string{}, map[string]string{}
		slots := map[string][]string{}
		for _, s := range []setID{shapes, services, services + 1, endpoints, endpoints + 1, sticky, sticky + 1, nodes, nodes + 1, members, members + 1, hairpins, hairpins + 1, hosts, hosts + 1} {
			v4 := s%2 == 0
			err := r.elements(s, func(key, data []byte) {
				switch s {
				case shapes:
					names[string(key)] = string(data)
					lines = append(lines, fmt.Sprintf("%s %x %q", s.name(), key, data))
				case services, services + 1:
					chains[string(key)] = names[string(data[4:])]
					lines = append(lines, fmt.Sprintf("%s %x %x", s.name(), key, data))
				case endpoints, endpoints + 1:
					_, slot := cutPlace(key, v4)
					f := string(key[:len(key)-len(slot)])
					slots[s.name()+f] = append(slots[s.name()+f], line(chains[f], slot, data))
				case sticky, sticky + 1:
					f := string(key[4:])
					slots[s.name()+f] = append(slots[s.name()+f], line(chains[f], key[:4], data))
				default:
					lines = append(lines, fmt.Sprintf("%s %x", s.name(), key))
				}
			})
			if err != nil {
				return err
			}
		}
		for f, list := range slots {
			slices.Sort(list)
			lines = append(lines, fmt.Sprintf("%x %q", f, list))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func line(chain string, slot, data []byte) string {
	if strings.HasPrefix(chain, "hash") {
		return fmt.Sprintf("%x %x", slot, data)
	}
	return fmt.Sprintf("%x", data)
}

func difference(have, want []string) string {
	added, gone := diff(want, have, strings.Compare)
	return "+ " + strings.Join(added, "\n+ ") + "\n- " + strings.Join(gone, "\n- ")
}

// world makes up services and changes them.
type world struct {
	rules.Services
	r *rand.Rand
}

func (w *world) slots(v4 bool) (out []netip.AddrPort) {
	for range w.r.IntN(6) * w.r.IntN(5) {
		a := netip.AddrFrom4([4]byte{10, 1, 7, byte(w.r.IntN(12))})
		if !v4 {
			a = netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(w.r.IntN(12))})
		}
		out = append(out, netip.AddrPortFrom(a, uint16(8080+w.r.IntN(2))))
	}
	return out
}

func (w *world) frontend() *rules.Frontend {
	f := &rules.Frontend{Protocol: []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP}[w.r.IntN(3)], Port: uint16(80 + w.r.IntN(2))}
	n := byte(w.r.IntN(8))
	switch w.r.IntN(8) {
	case 0:
		f.Addr, f.Node = netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	case 1:
		f.Addr, f.Node = netip.AddrFrom4([4]byte{192, 168, 77, n}), true
	case 2, 3, 4:
		f.Addr = netip.AddrFrom16([16]byte{0xfd, 15: n})
	default:
		f.Addr = netip.AddrFrom4([4]byte{10, 0, 0, n})
	}
	w.vary(f)
	return f
}

func (w *world) vary(f *rules.Frontend) {
	f.Slots = w.slots(f.Addr.Is4())
	f.Balance = rules.Balance(w.r.IntN(3))
	f.Affinity = []time.Duration{0, 0, time.Minute, time.Hour}[w.r.IntN(4)]
}

// step changes something.
func (w *world) step() {
	w.Frontends = slices.Clone(w.Frontends)
	for range 1 + w.r.IntN(4) {
		at := w.r.IntN(len(w.Frontends) + 1)
		switch kind := w.r.IntN(12); {
		case kind == 0:
			w.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/64")}[:1+w.r.IntN(2)]
		case kind == 1:
			w.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.19.0/24"), netip.MustParsePrefix("fd01:0:0:19::/64")}[:w.r.IntN(3)]
		case kind == 2:
			w.Local = nil
			for n := range w.r.IntN(5) {
				w.Local = append(w.Local, netip.AddrFrom4([4]byte{10, 1, 19, byte(n)}))
			}
			w.Hosts = []netip.Addr{netip.MustParseAddr("10.0.9.1"), netip.MustParseAddr("10.0.9.2"), netip.MustParseAddr("fd00::9:1")}[w.r.IntN(4):]
		case kind < 6 || at == len(w.Frontends):
			f := w.frontend()
			if i, there := slices.BinarySearchFunc(w.Frontends, f, (*rules.Frontend).Compare); there {
				w.Frontends[i] = f
			} else {
				w.Frontends = slices.Insert(w.Frontends, i, f)
			}
		case kind == 6:
			w.Frontends = slices.Delete(w.Frontends, at, at+1)
		default:
			f := *w.Frontends[at]
			f.Slots = slices.Clone(f.Slots)
			switch {
			case kind == 7 || len(f.Slots) == 0:
				w.vary(&f)
			case kind == 8:
				w.r.Shuffle(len(f.Slots), func(i, j int) { f.Slots[i], f.Slots[j] = f.Slots[j], f.Slots[i] })
			case kind == 9:
				f.Slots = append(f.Slots, w.slots(f.Addr.Is4())...)
			default:
				i := w.r.IntN(len(f.Slots))
				f.Slots = slices.Delete(f.Slots, i, i+1)
			}
			w.Frontends[at] = &f
		}
	}
}

// TestChangesLeaveWhatABalancerWithoutAPastWrites: whatever the sequence of
// changes and restarts.
func TestChangesLeaveWhatABalancerWithoutAPastWrites(t *testing.T) {
	for seed := range uint64(4) {
		w := &world{r: rand.New(rand.NewPCG(seed, seed))}
		w.Pods = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd01::/48")}
		w.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
		ns, fresh := netnstest.New(t), netnstest.New(t)
		var b *Balancer
		open := func() {
			t.Helper()
			if b != nil {
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := ns.Do(func() (err error) { b, err = NewBalancer(nil); return err }); err != nil {
				t.Fatal(err)
			}
		}
		open()
		for step := range 40 {
			w.step()
			if step%4 == 3 {
				open() // a restart, after which much is otherwise
				for range 5 {
					w.step()
				}
			}
			if step%10 == 9 { // somebody's changes that are found by chance only
				_, _ = ns.Run(t.Context(), "nft", "flush", "map", "inet", ServicesTable, []string{"ep4", "svc6", "sticky4", "how"}[w.r.IntN(4)])
				b.gap, b.doubted = 0, time.Now().Add(-patience)
			}
			if err := b.Sync(t.Context(), w.Services); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			if b.refused > 0 {
				t.Fatalf("seed %d, step %d: the kernel refused %d times", seed, step, b.refused)
			}
			got := picture(t, ns)
			writes := rulestest.CountWrites(t, ns)
			if err := b.Sync(t.Context(), w.Services); err != nil {
				t.Fatal(err)
			}
			if n := writes(); n != 0 {
				t.Errorf("seed %d, step %d: a second Sync caused %d notifications", seed, step, n)
			}
			err := fresh.Do(func() error {
				other, err := NewBalancer(nil)
				if err != nil {
					return err
				}
				defer other.Close()
				if err := other.Remove(t.Context()); err != nil {
					return err
				}
				return other.Sync(t.Context(), w.Services)
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := picture(t, fresh); !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d:\n%s", seed, step, difference(got, want))
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFilterAndABalancerDoNotMindEachOther(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		l, err := NewLedger()
		if err != nil {
			return err
		}
		defer l.Close()
		f, err := New(l)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := NewBalancer(l)
		if err != nil {
			return err
		}
		defer b.Close()
		ctx := context.Background()
		if err := f.Sync(ctx, sample()); err != nil {
			return err
		}
		before, err := l.check()
		if err != nil {
			return err
		}
		for n := range 3 {
			if err := b.Sync(ctx, manyServices(n)); err != nil {
				return err
			}
			r := sample()
			r.Tunnel.Peers = r.Tunnel.Peers[n:]
			if err := f.Sync(ctx, r); err != nil {
				return err
			}
		}
		if after, err := l.check(); err != nil || after != before || f.seen != before || b.verified != before {
			t.Errorf("foreign changes %d, then %d (%v); filter saw %d, balancer %d", before, after, err, f.seen, b.verified)
		}
		netnstest.Run(t, ns, "nft", "add", "table", "ip", "other")
		if after, err := l.check(); err != nil || after != before+1 {
			t.Errorf("foreign changes %d after one more (%v), want %d", after, err, before+1)
		}
		netnstest.Run(t, ns, "nft", "flush", "ruleset")
		if err := Cleanup(ctx); err != nil {
			t.Errorf("cleanup of nothing: %v", err)
		}
		if err := f.Sync(ctx, sample()); err != nil {
			return err
		}
		if err := b.Sync(ctx, manyServices(1)); err != nil {
			return err
		}
		return Cleanup(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := netnstest.Run(t, ns, "nft", "list", "ruleset"); got != "" {
		t.Errorf("after cleanup:\n%s", got)
	}
}

// TestAChangeDoesNotWaitForReading: every container that is plugged in changes
// rules of other tables.
func TestAChangeDoesNotWaitForReading(t *testing.T) {
	ns := netnstest.New(t)
	var b *Balancer
	if err := ns.Do(func() (err error) { b, err = NewBalancer(nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s := manyServices(20)
	sync := func(elements int, reads bool) {
		t.Helper()
		before, read := b.elements, b.read
		if err := b.Sync(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if n := b.elements - before; n != elements || b.read.Equal(read) == reads {
			t.Errorf("%d elements written, want %d; everything read %v, want %v", n, elements, !b.read.Equal(read), reads)
		}
	}
	sync(6*20+pinned, true)
	netnstest.Run(t, ns, "nft", "flush", "map", "inet", ServicesTable, "svc4")
	b.gap = 0
	s = with(s, 7, func(f *rules.Frontend) { f.Slots[1] = podSlot(7777) })
	sync(2, false)
	sync(20, true) // with nothing to write, it finds out
	netnstest.Run(t, ns, "nft", "flush", "map", "inet", ServicesTable, "svc4")
	b.gap, b.doubted = 0, time.Now().Add(-patience)
	s = with(s, 7, func(f *rules.Frontend) { f.Slots[1] = podSlot(7778) })
	sync(22, true) // it was put off long enough
	netnstest.Run(t, ns, "nft", "flush", "map", "inet", ServicesTable, "ep4")
	b.gap = 0
	s = with(s, 7, func(f *rules.Frontend) { f.Slots[1] = podSlot(7779) })
	if err := b.Sync(t.Context(), s); err != nil || b.refused != 1 {
		t.Errorf("%v; refused %d times, want once: what it replaces was not there", err, b.refused)
	}
	sync(0, false)
}
