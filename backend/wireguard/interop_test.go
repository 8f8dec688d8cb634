package wireguard_test

import (
	"os"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/subnet"
)

func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	_, err := netnstest.New(t).Run(t.Context(), "ip", "link", "add", "wg0", "type", "wireguard")
	return err == nil
}

// needKernel skips the test if the kernel has no WireGuard.
func needKernel(t *testing.T) {
	t.Helper()
	if !kernelHasWireGuard(t) {
		t.Skip("this kernel has no WireGuard (CONFIG_WIREGUARD)")
	}
}

func TestKernelAndUserspaceUnderstandEachOther(t *testing.T) {
	needKernel(t)
	s := suite(t, wireguard.Driver{})
	of := s.Driver().(perHost)
	hosts := 0
	s.Driver = func() backend.Driver {
		p := of
		p.Userspace = hosts%2 == 1
		hosts++
		return p
	}
	s.Options = []byte(`{"Type":"wireguard","PSK":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}`)
	c := backendtest.NewCluster(t, s, dual, 3)
	up(t, c)
	for i, h := range c.Hosts {
		if note := h.Device.Info().Note; (note == "userspace") != (i == 1) {
			t.Errorf("host %d: %q", i+1, note)
		}
		for _, o := range c.Hosts {
			if o != h {
				h.Reach(t, o)
			}
		}
	}
}

// A host is given its WireGuard by hand, as flannel does it: that is a peer.
// Then ours takes it over.
func TestFlannelsHostIsAPeerAndIsTakenOver(t *testing.T) {
	needKernel(t)
	c, p := cluster(t, "", ipv4, 2)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Open(t)
	key := wg.NewSecret()
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	ownKey, err := wg.ParseKey(strings.Split(string(a.Device.Info().Data.V4), `"`)[3])
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ip link add flannel-wg mtu 1420 type wireguard", "ip addr add 10.1.2.0/32 dev flannel-wg",
		"ip link set flannel-wg up", "ip route add 10.1.0.0/16 dev flannel-wg scope link",
	} {
		args := strings.Fields(line)
		netnstest.Run(t, b.NS, args[0], args[1:]...)
	}
	port := uint16(51820)
	err = b.NS.Do(func() error {
		k, err := wg.OpenKernel("flannel-wg")
		if err != nil {
			return err
		}
		defer k.Close()
		return k.Write(t.Context(), wg.Change{Private: &key, Port: &port, Set: []wg.Peer{
			{Key: ownKey, Endpoint: endpoint(a.Own.PublicIPs[0]), Allowed: a.Own.Subnets},
		}})
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Own.Data = subnet.BackendData{V4: []byte(`{"PublicKey":"` + public.String() + `"}`)}
	a.Sync(t, b.Own)
	netnstest.Run(t, b.Pod, "ip", "link", "set", "eth0", "mtu", "1420")
	a.Reach(t, b)

	before := p.read(t, a, "flannel-wg").Peers[0]
	drv := p.of(t, b)
	if err := os.MkdirAll(drv.Sockets, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(drv.KeyFile, []byte(key.Reveal()), 0o400); err != nil {
		t.Fatal(err)
	}
	wait := a.StartPing(t, b.Own.Subnets[0], 200)
	b.Open(t)
	b.Sync(t, a.Own)
	if err := wait(); err != nil {
		t.Errorf("while ours took over: %v", err)
	}
	if after := p.read(t, a, "flannel-wg").Peers[0]; after.Handshake != before.Handshake {
		t.Errorf("another handshake at %v after %v", after.Handshake, before.Handshake)
	}
	if got := string(b.Device.Info().Data.V4); got != string(b.Own.Data.V4) || !strings.Contains(got, public.String()) {
		t.Errorf("the key is another: %s", got)
	}
	if out := netnstest.Run(t, b.NS, "ip", "route"); strings.Contains(out, "10.1.0.0/16") {
		t.Errorf("flannel's route is still there: %s", out)
	}
}
