package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/lab"
)

// repairTime is the design's promise.
const repairTime = 10 * time.Second

// What somebody else takes away from containers comes back.
func TestContainersAreRepaired(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, dual)
	c.startAll()
	h1 := c.host(1)
	a, err := h1.Attach(t.Context(), "a", strings.Replace(lab.Conflist, `"hairpinMode"`, `"ipMasq": true, "hairpinMode"`, 1))
	if err != nil {
		t.Fatal(err)
	}
	b := c.attach(c.host(2), "b")
	gateway := c.sh(h1, "ip -o -4 addr show dev cni0 | awk '{print $4}'")
	port := c.sh(h1, "ls -d /sys/class/net/cni0/brif/* | xargs basename")
	if !strings.HasPrefix(port, ipam.LinkPrefix) {
		t.Fatalf("port %q", port)
	}
	guardAndMasquerade := func() error {
		for _, want := range [][]string{
			{a.Addrs[0].Addr().String(), "nft", "list", "map", "inet", "flanneld-cni", "masq4"},
			{a.Addrs[1].Addr().String(), "nft", "list", "map", "inet", "flanneld-cni", "masq6"},
			{port, "nft", "list", "map", "bridge", "flanneld-cni", "ports"},
			{a.Addrs[0].Addr().String(), "nft", "list", "set", "bridge", "flanneld-cni", "guard4"},
			{"10.1.0.0/16 return", "nft", "list", "table", "inet", "flanneld-cni"},
			{"drop", "nft", "list", "chain", "bridge", "flanneld-cni", "guard"},
		} {
			if err := contains(h1, false, want[0], want[1:]...)(); err != nil {
				return err
			}
		}
		return nil
	}
	plugged := func() error {
		out, err := h1.Command(t.Context(), "sh", "-c", "ip addr show dev cni0; ip link show dev "+port).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, want := range []string{gateway, ",UP", port, "master cni0"} {
			if !strings.Contains(string(out), want) {
				return fmt.Errorf("no %q in %s", want, out)
			}
		}
		if strings.Count(string(out), ",UP") != 2 {
			return fmt.Errorf("not both are up: %s", out)
		}
		return nil
	}
	for _, x := range []struct {
		damage string
		check  func() error
	}{
		{"nft flush ruleset", guardAndMasquerade},
		{"ip addr del " + gateway + " dev cni0; ip link set " + port + " nomaster", plugged},
		{"ip link set cni0 down; ip link set " + port + " down", plugged},
		{"ip link del cni0; nft flush ruleset", func() error {
			if err := plugged(); err != nil {
				return err
			}
			return guardAndMasquerade()
		}},
	} {
		if err := x.check(); err != nil {
			t.Fatalf("before %q: %v", x.damage, err)
		}
		c.sh(h1, x.damage)
		if x.check() == nil {
			t.Fatalf("%q did no damage", x.damage)
		}
		took := within(t, repairTime, "repaired after "+x.damage, x.check)
		t.Logf("%s: repaired after %s", x.damage, took.Round(100*time.Millisecond))
		for i := range a.Addrs {
			c.reach(b, a.Addrs[i].Addr())
			c.reach(a, b.Addrs[i].Addr())
		}
	}
	c.waitOK(h1, 1)
	if err := a.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := contains(h1, true, "elements", "nft", "list", "table", "inet", "flanneld-cni")(); err != nil {
		t.Error(err)
	}
}
