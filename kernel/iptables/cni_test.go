package iptables_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/iptables/cnichain"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

func TestWatchSeesWhatThePluginsChainsBecomeAndCleanupRemovesThem(t *testing.T) {
	n := netnstest.New(t)
	var w *iptables.NATWatch
	if err := n.Do(func() (err error) { w, err = iptables.WatchNAT(); return err }); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last := uint64(0)
	changed := func() bool {
		t.Helper()
		var now uint64
		if err := n.Do(func() (err error) { now, err = w.Digest(); return err }); err != nil {
			t.Fatal(err)
		}
		defer func() { last = now }()
		return now != last
	}
	if changed() {
		t.Error("no table, and yet a digest")
	}
	for _, kind := range []string{"legacy", "nft"} {
		c := &cnichain.Chains{IPTables: "iptables-" + kind, IP6Tables: "ip6tables-" + kind}
		a := cnitable.Attachment{
			Network: "podnet", Link: "fl0", Masquerade: true,
			Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")},
			Inside:    []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")},
		}
		netnstest.Run(t, n, "iptables-"+kind, "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.0/24", "-j", "ACCEPT")
		changed()
		for range 2 {
			if err := n.Do(func() error { return c.Add(a, nil) }); err != nil {
				t.Fatal(err)
			}
		}
		if changed() != (kind == "legacy") || changed() {
			t.Errorf("%s: what the watch sees is not what was done: digest %x", kind, last)
		}
		if err := n.Do(func() error {
			if what, err := c.Missing(a); err != nil || what != "" {
				t.Errorf("%s: missing %q, %v", kind, what, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := n.Do(func() error { return iptables.CleanupCNI(t.Context()) }); err != nil {
				t.Fatal(err)
			}
		}
		left := netnstest.Run(t, n, "iptables-"+kind+"-save", "-t", "nat") + netnstest.Run(t, n, "ip6tables-"+kind+"-save", "-t", "nat")
		if strings.Contains(left, "FLCNI") || strings.Contains(left, cnitable.Name) || !strings.Contains(left, "192.0.2.0/24") {
			t.Errorf("%s: left:\n%s", kind, left)
		}
	}
}
