package nft

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/kernel/rulestest"
)

// manyServices is n services of five endpoints each.
func manyServices(n int) rules.Services {
	s := rules.Services{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/12")},
		Pods:     []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")},
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.129.19.0/24")},
	}
	for i := range n {
		f := &rules.Frontend{Addr: netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)}), Protocol: unix.IPPROTO_TCP, Port: 80}
		for e := range 5 {
			f.Slots = append(f.Slots, podSlot(5*i+e))
		}
		s.Frontends = append(s.Frontends, f)
	}
	return s
}

func podSlot(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)}), 8080)
}

// with returns the services with frontend i changed.
func with(s rules.Services, i int, change func(*rules.Frontend)) rules.Services {
	f := *s.Frontends[i]
	f.Slots = slices.Clone(f.Slots)
	change(&f)
	s.Frontends = slices.Clone(s.Frontends)
	s.Frontends[i] = &f
	return s
}

func TestOneEndpointAmongThousandsIsTwoElements(t *testing.T) {
	for _, n := range []int{1_000, 10_000} {
		ns := netnstest.New(t)
		err := ns.Do(func() error { return scale(t, ns, n) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

func scale(t *testing.T, ns *netns.NS, n int) error {
	b, err := NewBalancer(nil)
	if err != nil {
		return err
	}
	defer b.Close()
	ctx := context.Background()
	s := manyServices(n)
	timed := func(what string, elements int, f func() error) error {
		before, start := b.elements, time.Now()
		err := f()
		t.Logf("%6d services: %-22s %9v, %d elements", n, what, time.Since(start).Round(time.Microsecond), b.elements-before)
		if wrote := b.elements - before; elements >= 0 && wrote != elements {
			t.Errorf("%d services: %s: %d elements written, want %d", n, what, wrote, elements)
		}
		return err
	}
	sync := func() error { return b.Sync(ctx, s) }
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	errs := []error{timed("loaded", 6*n+pinned, sync), timed("unchanged", 0, sync)}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%6d services: memory %d kB", n, (int(after.HeapAlloc)-int(before.HeapAlloc))>>10)
	s = with(s, n/2, func(f *rules.Frontend) { f.Slots[2] = podSlot(0) })
	errs = append(errs, timed("one endpoint swapped", 2, sync))
	s = with(s, n/2, func(f *rules.Frontend) { slices.SortFunc(f.Slots, netip.AddrPort.Compare) })
	errs = append(errs, timed("in another order", 0, sync))
	s = with(s, n/2, func(f *rules.Frontend) { f.Slots = append(f.Slots[:1], f.Slots[2:]...) })
	errs = append(errs, timed("one endpoint less", 5, sync))
	s = with(s, n/2, func(f *rules.Frontend) { f.Slots = append(f.Slots, podSlot(1)) })
	errs = append(errs, timed("one endpoint more", 3, sync))
	s.Frontends = slices.Delete(slices.Clone(s.Frontends), n/2, n/2+1)
	errs = append(errs, timed("a service less", 6, sync))
	b.known = false
	errs = append(errs, timed("read again", 0, sync))
	other, err := NewBalancer(nil)
	if err != nil {
		return err
	}
	defer other.Close()
	errs = append(errs, timed("looked at", 0, sync))
	writes, start := rulestest.CountWrites(t, ns), time.Now()
	errs = append(errs, other.Sync(ctx, s))
	t.Logf("%6d services: %-22s %9v, %d elements", n, "adopted", time.Since(start).Round(time.Microsecond), other.elements)
	if k := writes(); k != 0 || other.elements != 0 {
		t.Errorf("%d services: %d elements and %d notifications by another that adopts", n, other.elements, k)
	}
	return errors.Join(append(errs, timed("removed", 0, func() error { return b.Remove(ctx) }))...)
}
