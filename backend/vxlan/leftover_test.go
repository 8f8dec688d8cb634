package vxlan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

// names are the VXLAN devices of a host.
func (a *alone) names(t *testing.T) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(a.run(t, "ip -br link show type vxlan")) {
		out = append(out, strings.Fields(line)[0])
	}
	return strings.Join(out, " ")
}

func TestDevicesOfFormerConfigurationsGoAfterTheFirstSync(t *testing.T) {
	a := newAlone(t, "")
	for i, name := range []string{"flannel.77", "flannel.78", "flannel.x", "theirs"} {
		a.run(t, "ip link add "+name+" up type vxlan id 77 local 192.168.77.2 dev eth0 nolearning dstport 478"+string(rune('0'+i)))
	}
	a.run(t, "ip link add flannel-v6.77 up type vxlan id 77 local fd77::2 dev eth0 nolearning dstport 4789")
	a.run(t, "ip link add flannel.79 type bridge")
	// Of flannel's own: neither number nor protocol, and before any of ours.
	a.run(t, "ip route add 10.1.10.0/24 via 10.1.10.0 dev flannel.77 onlink")
	dev := a.mustOpen(t)
	const all = "flannel.77 flannel.78 flannel.x theirs flannel-v6.77 flannel.1 flannel-v6.1"
	if got := a.names(t); got != all {
		t.Fatalf("devices %s before Sync", got)
	}
	bad := leaseOf(11)
	bad.Type = "no-such"
	a.run(t, "ip link del flannel-v6.1")
	a.run(t, "ip link add blocks type vxlan id 1 local fd77::2 dev eth0 dstport 8472 nolearning")
	dev.Forget()
	_ = dev.Sync(t.Context(), &a.own, backendtest.Peers(leaseOf(10), bad))
	if got := a.names(t); !strings.Contains(got, "flannel.77") {
		t.Errorf("devices %s after a Sync that did not succeed", got)
	}
	a.run(t, "ip link del blocks")
	_ = dev.Sync(t.Context(), &a.own, backendtest.Peers(leaseOf(10), bad)) // one peer's fault is its own
	if got := a.names(t); got != "flannel.x theirs flannel.1 flannel-v6.1" {
		t.Errorf("devices %s after Sync", got)
	}
	a.run(t, "ip link show flannel.79")
	if got := a.run(t, "ip route get 10.1.10.1"); !strings.Contains(got, "dev flannel.1 ") {
		t.Errorf("a peer is reached by %s", got)
	}
	if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(leaseOf(10))); err != nil {
		t.Error(err)
	}
}

func TestAFamilyThatIsNoLongerEnabledLeavesNoDevice(t *testing.T) {
	a := newAlone(t, "")
	a.mustOpen(t).Close()
	a.cfg.Ranges = a.cfg.Ranges[:1]
	a.own.Subnets = a.own.Subnets[:1]
	if err := a.mustOpen(t).Sync(t.Context(), &a.own, nil); err != nil {
		t.Fatal(err)
	}
	if got := a.names(t); got != "flannel.1" {
		t.Errorf("devices %s", got)
	}
}

func TestNetworksBesideEachOtherKeepTheirDevices(t *testing.T) {
	a := newAlone(t, "")
	other := *a
	other.cfg = configOf(`{"VNI":2,"Port":8473}`, "10.2.0.0/16")
	other.own.Subnets = []netip.Prefix{netip.MustParsePrefix("10.2.2.0/24")}
	var devs []backend.Device
	for _, host := range []*alone{a, &other} {
		err := host.ns.Do(func() error {
			dev, err := Driver{routed.Options{KeepOthers: true}}.Open(t.Context(), host.cfg, host.u, "identity")
			devs = append(devs, dev)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer devs[len(devs)-1].Close()
	}
	for i, host := range []*alone{a, &other} {
		if err := devs[i].Sync(t.Context(), &host.own, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.names(t); got != "flannel.1 flannel-v6.1 flannel.2" {
		t.Errorf("devices %s", got)
	}
}

func TestARenamedDeviceComesBack(t *testing.T) {
	for name, again := range map[string]bool{"while the daemon runs": false, "while it is down": true} {
		t.Run(name, func(t *testing.T) {
			a := newAlone(t, "")
			dev := a.mustOpen(t)
			peers := []subnet.Lease{leaseOf(10)}
			if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
				t.Fatal(err)
			}
			info := dev.Info()
			for _, line := range []string{"flannel.1 down", "flannel-v6.1 down", "flannel.1 name foo", "flannel-v6.1 name bar", "foo up"} {
				a.run(t, "ip link set "+line)
			}
			a.run(t, "ip link add flannel.1 type bridge") // and something in its place
			if again {
				dev.Close()
				dev = a.mustOpen(t)
			} else {
				dev.Forget()
			}
			if err := dev.Sync(t.Context(), &a.own, backendtest.Peers(peers...)); err != nil {
				t.Fatal(err)
			}
			if got := a.names(t); got != "flannel.1 flannel-v6.1" {
				t.Errorf("devices %s", got)
			}
			if now := dev.Info(); string(now.Data.V4) != string(info.Data.V4) || string(now.Data.V6) != string(info.Data.V6) {
				t.Errorf("peers know %s, the device is %s", info.Data.V4, now.Data.V4)
			}
			if got := a.run(t, "ip route get 10.1.10.1"); !strings.Contains(got, "dev flannel.1 ") {
				t.Errorf("a peer is reached by %s", got)
			}
		})
	}
}
