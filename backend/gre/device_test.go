package gre_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/gre"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// hosts are two with devices of the options, not told of each other.
func hosts(t *testing.T, options string, fams backendtest.Families) (a, b *backendtest.Host, c *backendtest.Cluster) {
	t.Helper()
	netnstest.NeedRoot(t)
	needGRE(t)
	s := suite(t)
	s.Options = json.RawMessage(options)
	c = backendtest.NewCluster(t, s, fams, 2)
	return c.Hosts[0], c.Hosts[1], c
}

func TestWhatIsInTheWayIsNamed(t *testing.T) {
	a, _, cluster := hosts(t, "", backendtest.Families{V4: true, V6: true})
	for foreign, want := range map[string]string{
		"theirs type gre external":    "theirs is external already",
		"theirs type ip6gre external": "theirs is external already",
		"flannel.gre type veth":       "interface flannel.gre is of another kind (veth)",
	} {
		args := strings.Fields(foreign)
		netnstest.Run(t, a.NS, "ip", append([]string{"link", "add"}, args...)...)
		err := open(t, a, gre.Driver{}, cluster.Config)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ip link del") {
			t.Errorf("%s: got %v, want %q and the remedy", foreign, err, want)
		}
		netnstest.Run(t, a.NS, "ip", "link", "del", args[0])
		if err := a.NS.Do(func() error { return gre.Driver{}.Cleanup(t.Context()) }); err != nil {
			t.Error(err)
		}
	}

	// Another network's Checksum is not for the device that both have.
	a.Open(t)
	second := cluster.Config
	second.Backend.Raw, second.Ranges = json.RawMessage(`{"Type":"gre","Key":8,"Checksum":true}`), nil
	for _, r := range cluster.Config.Ranges[:1] {
		r.Network = netip.MustParsePrefix("10.2.0.0/16")
		second.Ranges = append(second.Ranges, r)
	}
	err := open(t, a, gre.Driver{Options: routed.Options{KeepOthers: true}}, second)
	if err == nil || !strings.Contains(err.Error(), "the same Checksum") {
		t.Errorf("got %v", err)
	}
}

// open opens a device and closes it again.
func open(t *testing.T, h *backendtest.Host, d gre.Driver, c subnet.Config) error {
	return h.NS.Do(func() error {
		dev, err := d.Open(t.Context(), c, h.Underlay, "identity")
		if err == nil {
			err = dev.Close()
		}
		return err
	})
}

func TestForeignMeshTunnelIsNamedAndOthersAreServed(t *testing.T) {
	a, b, _ := hosts(t, `{"Type":"gre","Mode":"mesh"}`, backendtest.Families{V4: true})
	a.Open(t)
	b.Open(t)
	netnstest.Run(t, a.NS, "ip", "link", "add", "theirs", "type", "gre", "local", "192.168.77.1", "remote", "192.168.77.9")
	stranger := b.Own
	stranger.Key, stranger.Subnets, stranger.PublicIPs = "/subnets/x", []netip.Prefix{netip.MustParsePrefix("10.1.9.0/24")}, []netip.Addr{netip.MustParseAddr("192.168.77.9")}
	own := a.Own
	err := a.Device.Sync(t.Context(), &own, backendtest.Peers(b.Own, stranger))
	if err == nil || !strings.Contains(err.Error(), "ip link del theirs") {
		t.Errorf("got %v", err)
	}
	b.Sync(t, a.Own)
	a.Reach(t, b)
	netnstest.Run(t, a.NS, "ip", "link", "del", "theirs")
	a.Sync(t, b.Own, stranger)
	if n := len(a.Links(t)); n != 2 {
		t.Errorf("%d devices for two peers", n)
	}
}

// TestModeChangesUnderTraffic restarts the daemons of two hosts one by one with
// the other mode, and back.
func TestModeChangesUnderTraffic(t *testing.T) {
	a, b, c := hosts(t, `{"Type":"gre","Key":7}`, backendtest.Families{V4: true, V6: true})
	for _, h := range c.Hosts {
		h.Open(t)
	}
	for _, h := range c.Hosts {
		h.Sync(t, h.Peers()...)
	}
	a.Reach(t, b)
	var waits []func() error
	for _, n := range b.Own.Subnets {
		waits = append(waits, a.StartPing(t, n, 800))
	}
	for _, mode := range []string{"mesh", "external"} {
		c.Config.Backend.Raw = fmt.Appendf(nil, `{"Type":"gre","Key":7,"Mode":%q}`, mode)
		for _, h := range c.Hosts {
			if err := h.Device.Close(); err != nil {
				t.Fatal(err)
			}
			h.Open(t)
			h.Sync(t, h.Peers()...)
			if h == a && mode == "mesh" && strings.Contains(a.State(t), "flannel.gre") {
				t.Errorf("the device for all peers is still there%s", a.State(t))
			}
		}
	}
	for _, wait := range waits {
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(a.State(t), "fgre-") {
		t.Errorf("devices of mesh mode are still there%s", a.State(t))
	}
}

// TestMonitorsHearOthersOnly is the loop of a daemon: what Sync writes must not
// make it look again, what others do must.
func TestMonitorsHearOthersOnly(t *testing.T) {
	for mode, damages := range map[string][]string{
		"external": {"ip route flush dev flannel.gre proto 102", "ip link del flannel-v6.gre", "ip link set flannel.gre mtu 1300"},
		"mesh":     {"ip route del 10.1.2.0/24", "ip link del DEV", "ip link set DEV down", "ip addr flush dev DEV"},
	} {
		t.Run(mode, func(t *testing.T) {
			a, b, c := hosts(t, fmt.Sprintf(`{"Type":"gre","Mode":%q}`, mode), backendtest.Families{V4: true, V6: true})
			b.Open(t)
			own := &link.Own{}
			var m *link.Monitor
			err := a.NS.Do(func() (err error) {
				a.Device, err = gre.Driver{Options: routed.Options{Own: own}}.Open(t.Context(), c.Config, a.Underlay, "identity")
				if err != nil {
					return err
				}
				info := a.Device.Info()
				m, err = link.NewMonitor(link.Watch{Devices: append([]string{info.Link}, info.MoreLinks...), Underlay: []string{"eth0"}}, own)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.Device.Close() })
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- m.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			quiet := func(what string) {
				t.Helper()
				// While devices are being made one look too many may be asked for.
				for _, most := range []bool{true, false} {
					select {
					case c := <-m.C:
						w := a.Device.(*gre.Device).Writes()
						a.Device.Forget()
						a.Sync(t, b.Own)
						if n := a.Device.(*gre.Device).Writes() - w; n != 0 || !most {
							t.Errorf("%s: told %+v, and %d writes", what, c, n)
						}
					case <-time.After(900 * time.Millisecond):
						return
					}
				}
			}
			a.Sync(t, b.Own)
			quiet("first sync")
			a.Sync(t)
			a.Sync(t, b.Own)
			quiet("a peer gone and back")
			for _, damage := range damages {
				args := strings.Fields(strings.ReplaceAll(damage, "DEV", a.Links(t)[0]))
				netnstest.Run(t, a.NS, args[0], args[1:]...)
				select {
				case c := <-m.C:
					if !c.Devices {
						t.Errorf("%s: told %+v", damage, c)
					}
				case <-time.After(3 * time.Second):
					t.Errorf("%s: told nothing", damage)
				}
				select { // a long damage may be told twice
				case <-m.C:
				case <-time.After(700 * time.Millisecond):
				}
				a.Device.Forget()
				a.Sync(t, b.Own)
				quiet("repair of: " + damage)
			}
		})
	}
}

// TestPacketsThatDoNotFitAreTold sends more than the tunnel takes through a
// router that would have to cut it.
func TestPacketsThatDoNotFitAreTold(t *testing.T) {
	a, b, c := hosts(t, "", backendtest.Families{V4: true, V6: true})
	for _, mode := range []string{"external", "mesh"} {
		c.Config.Backend.Raw = fmt.Appendf(nil, `{"Type":"gre","Mode":%q,"Key":7}`, mode)
		for _, h := range c.Hosts {
			h.Open(t)
		}
		for _, h := range c.Hosts {
			h.Sync(t, h.Peers()...)
			netnstest.Run(t, h.NS, "ip", "link", "set", "pod0", "mtu", "1500")
			netnstest.Run(t, h.Pod, "ip", "link", "set", "eth0", "mtu", "1500")
		}
		a.Reach(t, b)
		for _, n := range b.Own.Subnets {
			to := n.Addr().Next().Next().String()
			out, err := a.Pod.Run(t.Context(), "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1450", to)
			if err == nil {
				t.Errorf("%s, %s: a packet that cannot fit crosses: %s", mode, to, out)
			}
			// The host told the pod what fits.
			out = netnstest.Run(t, a.Pod, "ip", "route", "get", to)
			want := 1500 - 20 - 4 - 4
			if n.Addr().Is6() {
				want = 1500 - 40 - 4 - 4
			}
			if !strings.Contains(out, fmt.Sprintf("mtu %d", want)) {
				t.Errorf("%s: the pod was not told that %d bytes fit: %s", mode, want, out)
			}
			netnstest.Run(t, a.Pod, "ip", "route", "flush", "cache")
			netnstest.Run(t, a.Pod, "ip", "-6", "route", "flush", "cache")
		}
		for _, h := range c.Hosts {
			h.Device.Close()
		}
	}
}

var _ backend.Device = (*gre.Device)(nil)
