package rulestest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Scene is a host with a real tunnel, seen from somebody on the underlay who
// forges packets: a driver's test says how its tunnel wraps them. It is of one
// family.
type Scene struct {
	Host *netns.NS        // with the rules
	MAC  net.HardwareAddr // of its underlay interface
	Pod  *netns.NS        // of Host, attacked
	// Stranger is on the underlay with the interface Link, and no peer.
	Stranger *netns.NS
	Link     string
	// Addresses on the underlay.
	HostAddr, StrangerAddr, PeerAddr netip.Addr
	// Addresses of the pod network: of Pod, another pod of Host, a pod of the
	// peer.
	PodAddr, Neighbour, PeerPod netip.Addr
	// Wrap makes the tunnel's IP packet; nil: none that can be forged, or no
	// tunnel.
	Wrap func(src, dst netip.Addr, inner []byte) []byte
	// OnlyPeers: the tunnel itself takes packets of peers alone.
	OnlyPeers bool
}

// forgery is one attack on a scene.
type forgery struct {
	packet        func(payload []byte) []byte
	without, with bool // does it work without rules, with them?
}

func (s Scene) forgeries(plain bool) map[string]forgery {
	datagram := func(from netip.Addr, payload []byte) []byte {
		return UDP(at(from, 1234), at(s.PodAddr, victimPort), payload)
	}
	plainly := func(from netip.Addr) func([]byte) []byte {
		return func(payload []byte) []byte { return datagram(from, payload) }
	}
	out := map[string]forgery{
		"without the tunnel, as a pod of this host":  {plainly(s.Neighbour), true, false},
		"without the tunnel, as a pod of a peer":     {plainly(s.PeerPod), true, plain},
		"without the tunnel, as itself (no forgery)": {plainly(s.StrangerAddr), true, true},
	}
	if s.Wrap == nil {
		return out
	}
	tunnelled := func(outer, inner netip.Addr) func([]byte) []byte {
		return func(payload []byte) []byte { return s.Wrap(outer, s.HostAddr, datagram(inner, payload)) }
	}
	maps.Copy(out, map[string]forgery{
		"a stranger's tunnel packet":                            {tunnelled(s.StrangerAddr, s.PeerPod), !s.OnlyPeers, false},
		"a peer's tunnel packet with a pod of this host inside": {tunnelled(s.PeerAddr, s.Neighbour), true, false},
		"a peer's tunnel packet with a host inside":             {tunnelled(s.PeerAddr, s.StrangerAddr), true, false},
		"a peer's tunnel packet with its pod (no forgery)":      {tunnelled(s.PeerAddr, s.PeerPod), true, true},
	})
	return out
}

// Test forges packets before and after the rules r are on the host, and
// expects the ones that are forgeries to arrive before and not after. open
// returns a filter for the calling thread's network namespace; it is removed
// again.
func (s Scene) Test(t *testing.T, open func() (rules.Filter, error), r rules.Rules) {
	t.Helper()
	v := Listen(t, s.Pod, victimPort)
	defer v.Close()
	all := s.forgeries(r.Tunnel.Plain)
	names := slices.Sorted(maps.Keys(all))
	expect := func(when string, want func(forgery) bool) {
		t.Helper()
		missing := names // those that must arrive and have not: they get some tries
		for range 5 {
			got := s.try(t, v, all, missing)
			missing = slices.DeleteFunc(slices.Clone(missing), func(n string) bool {
				if got[n] && !want(all[n]) {
					t.Errorf("%s rules: %s gets in", when, n)
				}
				return got[n] || !want(all[n])
			})
			if len(missing) == 0 {
				return
			}
		}
		t.Errorf("%s rules: %q do not arrive", when, missing)
	}
	expect("without", func(f forgery) bool { return f.without })
	var f rules.Filter
	err := s.Host.Do(func() (err error) {
		if f, err = open(); err == nil {
			err = f.Sync(t.Context(), r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close(t, f)
	expect("with", func(f forgery) bool { return f.with })
}

// try sends forgeries and tells which arrive.
func (s Scene) try(t *testing.T, v *Victim, all map[string]forgery, names []string) map[string]bool {
	t.Helper()
	payloads := map[string]string{}
	var sent []string
	for i, n := range names {
		p := fmt.Sprintf("forgery %d of %d", i, time.Now().UnixNano())
		payloads[n], sent = p, append(sent, p)
		Inject(t, s.Stranger, s.Link, s.MAC, all[n].packet([]byte(p)))
	}
	arrived, got := v.Gets(sent...), map[string]bool{}
	for n, p := range payloads {
		got[n] = arrived[p]
	}
	return got
}

func (s Scene) close(t *testing.T, f rules.Filter) {
	t.Helper()
	err := s.Host.Do(func() error { return f.Remove(context.WithoutCancel(t.Context())) })
	if c, ok := f.(interface{ Close() error }); ok {
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		t.Error(err)
	}
}
