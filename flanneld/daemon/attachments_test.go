package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// keeper is an attachments in a namespace of its own, with the records of one
// container, plugged into a bridge.
type keeper struct {
	*attachments
	t  *testing.T
	ns *netns.NS
}

func newKeeper(t *testing.T, bridge string) *keeper {
	t.Helper()
	k := &keeper{t: t, ns: netnstest.New(t)}
	dir := t.TempDir()
	var m *link.Monitor
	if err := k.ns.Do(func() (err error) {
		if m, err = link.NewMonitor(link.Watch{}, nil); err == nil {
			k.attachments, err = openAttachments(dir, m, slog.New(slog.DiscardHandler))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.close()
	})
	pool, err := ipam.Open(dir, "podnet")
	if err != nil {
		t.Fatal(err)
	}
	r := ipam.Record{
		ContainerID: "a", IfName: "eth0", HostLink: "fl0", Bridge: bridge, MAC: net.HardwareAddr{0x0a, 0x58, 10, 1, 2, 2}.String(),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.2/24")}, BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.1/24")},
		Masquerade: true, Inside: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Guarded: true,
	}
	held, err := pool.Reserve(r, ipam.Request{})
	if err == nil {
		err = held.Attached()
	}
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
	netnstest.Run(t, k.ns, "ip", "link", "add", "fl0", "up", "type", "veth", "peer", "name", "eth0")
	k.beat()
	k.right()
	k.beat()
	return k
}

func (k *keeper) beat() {
	k.t.Helper()
	if err := k.ns.Do(func() error { k.attachments.beat(); return k.trouble() }); err != nil {
		k.t.Error(err)
	}
}

// right fails the test unless all is there.
func (k *keeper) right() {
	k.t.Helper()
	out := netnstest.Run(k.t, k.ns, "sh", "-c", "nft list ruleset; ip addr")
	for _, want := range []string{"10.1.2.2", "iifname vmap @ports", "fl0", "10.1.2.1/24"} {
		if !strings.Contains(out, want) {
			k.t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestQuietBeatReadsNothing(t *testing.T) {
	k := newKeeper(t, "cni0")
	if k.again || len(k.monitor.Unplugged) > 0 {
		time.Sleep(100 * time.Millisecond) // until what the repair did itself was heard
		k.beat()
	}
	// Whoever looks into this directory fails.
	bad := filepath.Join(k.dir, "podnet")
	if err := os.RemoveAll(bad); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.dir = "/proc/self/cmdline"
	for range 3 {
		k.beat()
	}
	netnstest.Run(t, k.ns, "nft", "add", "table", "ip", "somebodys")
	if err := k.ns.Do(func() error { k.attachments.beat(); return nil }); err != nil {
		t.Fatal(err)
	}
	if k.trouble() == nil {
		t.Error("a change of the ruleset was not noticed")
	}
}

func TestBeatRepairsWhatWasNoticed(t *testing.T) {
	for _, bridge := range []string{"cni0", "other0"} {
		t.Run(bridge, func(t *testing.T) {
			k := newKeeper(t, bridge)
			for _, damage := range []string{
				"nft flush ruleset", "ip addr del 10.1.2.1/24 dev " + bridge, "ip link del " + bridge,
			} {
				time.Sleep(150 * time.Millisecond)
				k.beat()
				netnstest.Run(t, k.ns, "sh", "-c", damage)
				time.Sleep(150 * time.Millisecond) // a beat is longer than what the monitor waits
				k.beat()
				k.right()
			}
		})
	}
}
