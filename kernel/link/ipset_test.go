package link

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestIPSetHoldsExactlyTheAddressesAskedFor(t *testing.T) {
	n := netnstest.New(t)
	err := n.Do(func() error {
		sets, err := OpenIPSets()
		if err != nil {
			return err
		}
		defer sets.Close()
		if _, err := sets.List("fl-x"); !errors.Is(err, unix.ENOENT) {
			t.Errorf("list of a missing set: %v, want ENOENT", err)
		}
		steps := map[bool][][]string{
			true:  {{"10.0.0.1", "10.0.0.2"}, {"10.0.0.2", "10.0.0.3"}, {}},
			false: {{"fd00::1"}, {"fd00::2", "fd00::3"}, {}},
		}
		for v4, wants := range steps {
			name := "fl-6"
			if v4 {
				name = "fl-4"
			}
			for _, want := range wants {
				var addrs []netip.Addr
				for _, w := range want {
					addrs = append(addrs, netip.MustParseAddr(w))
				}
				if err := sets.Sync(name, v4, addrs); err != nil {
					return err
				}
				have, err := sets.List(name)
				slices.SortFunc(have, netip.Addr.Compare)
				if err != nil || !slices.Equal(have, addrs) {
					t.Errorf("set %s holds %v (%v), want %v", name, have, err, addrs)
				}
			}
			if err := sets.Destroy(name); err != nil {
				return err
			}
		}
		return sets.Destroy("fl-never-there")
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIPSetTakesManyAddresses(t *testing.T) {
	n := netnstest.New(t)
	var addrs []netip.Addr
	for i := range 70_000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	err := n.Do(func() error {
		sets, err := OpenIPSets()
		if err != nil {
			return err
		}
		defer sets.Close()
		if err := sets.Sync("fl-many", true, addrs); err != nil {
			return err
		}
		have, err := sets.List("fl-many")
		if len(have) != len(addrs) {
			t.Errorf("%d addresses in the set, want %d", len(have), len(addrs))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := netnstest.Run(t, n, "ipset", "list", "-t", "fl-many"); !strings.Contains(out, "hash:ip") {
		t.Errorf("ipset does not show the set: %s", out)
	}
}
