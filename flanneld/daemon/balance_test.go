package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/subnet"
)

// fakeBalancer is a rules.Balancer without a kernel.
type fakeBalancer struct {
	repairs uint64
	err     error
}

func (f *fakeBalancer) Sync(context.Context, rules.Services) error { return f.err }
func (f *fakeBalancer) Repairs() uint64                            { return f.repairs }
func (f *fakeBalancer) Remove(context.Context) error               { return nil }

func TestWhatBeganWhileRulesWereMissingIsLookedAt(t *testing.T) {
	front := func(addr string, slots ...netip.AddrPort) *rules.Frontend {
		return &rules.Frontend{Addr: netip.MustParseAddr(addr), Protocol: unix.IPPROTO_TCP, Port: 80, Slots: slots}
	}
	slot := netip.MustParseAddrPort("10.1.0.2:80")
	fake := &fakeBalancer{repairs: 7}
	b := newBalancer(&kernel{balancer: fake}, slog.New(slog.DiscardHandler))
	b.want = rules.Services{Frontends: []*rules.Frontend{front("10.0.0.20", slot), front("10.0.0.21"), front("10.0.0.22", slot)}}
	for _, step := range []struct {
		what    string
		repairs uint64
		err     error
		want    string
	}{
		{"the first time", 7, nil, "[10.0.0.20 10.0.0.22]"},
		{"nothing new", 7, nil, "[]"},
		{"it failed", 8, errors.New("no"), "[]"},
		{"it is repaired", 8, nil, "[10.0.0.20 10.0.0.22]"},
		{"and stays so", 8, nil, "[]"},
		{"twice", 10, nil, "[10.0.0.20 10.0.0.22]"},
	} {
		fake.repairs, fake.err, b.stale = step.repairs, step.err, nil
		b.sync(t.Context())
		got := []netip.Addr{}
		for _, f := range b.stale {
			got = append(got, f.Addr)
		}
		if fmt.Sprint(got) != step.want {
			t.Errorf("%s: %v, want %s", step.what, got, step.want)
		}
	}
}

func TestHostsInTheServicesNetworkAreNotRoutedPast(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	networks := []netip.Prefix{prefix("10.0.0.0/16"), prefix("fd00:10::/112")}
	leases := []*subnet.Lease{
		{PublicIPs: []netip.Addr{addr("10.0.3.2"), addr("fd77::2")}}, {PublicIPs: []netip.Addr{addr("192.168.7.3")}}, {PublicIPs: []netip.Addr{addr("10.0.3.1")}},
	}
	hosts := map[string]subnet.Host{"a": {PublicIPs: []netip.Addr{addr("10.0.3.2")}}, "b": {PublicIPs: []netip.Addr{addr("10.0.0.1"), addr("10.1.0.1")}}}
	inside := hostsInside(networks, leases, hosts)
	if got := fmt.Sprint(inside); got != "[10.0.0.1 10.0.3.1 10.0.3.2]" {
		t.Errorf("hosts inside: %s", got)
	}
	b := newBalancer(&kernel{}, slog.New(slog.DiscardHandler))
	for want, inside := range map[string][]netip.Addr{
		"[10.0.0.0/16 fd00:10::/112]": nil, "[fd00:10::/112]": inside, "[]": {addr("10.0.0.1"), addr("fd00:10::1")},
	} {
		b.need = needsOf(rules.Services{Networks: networks, Hosts: inside})
		b.ask()
		if needs := <-b.needs; fmt.Sprint(needs.networks) != want {
			t.Errorf("%v inside: routed are %v, want %s", inside, needs.networks, want)
		}
	}
}
