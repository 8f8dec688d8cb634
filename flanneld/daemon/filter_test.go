package daemon

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/subnet"
)

// device is a tunnel of which only the description is there.
type device struct {
	backend.Device
	info backend.Info
}

func (d device) Info() backend.Info { return d.info }

func TestRulesAreWhatTheDeviceTells(t *testing.T) {
	n := healthy()
	n.underlay = backend.Underlay{Link: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}}
	n.device = device{info: backend.Info{Link: "wg0", MoreLinks: []string{"wg1"}, Protocol: unix.IPPROTO_UDP, Ports: []uint16{51820, 51821}, Plain: true}}
	peers := []*subnet.Lease{{PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.2"), netip.MustParseAddr("fd77::2")}}}
	r := n.rules(peers)
	if !slices.Equal(r.Tunnel.Links(), []string{"wg0", "wg1"}) || r.Tunnel.Protocol != unix.IPPROTO_UDP ||
		!slices.Equal(r.Tunnel.Ports, []uint16{51820, 51821}) || !r.Tunnel.Plain || r.Tunnel.Underlay != "eth0" {
		t.Errorf("tunnel %+v", r.Tunnel)
	}
	if !slices.Equal(r.Tunnel.Peers, peers[0].PublicIPs) {
		t.Errorf("peers %v", r.Tunnel.Peers)
	}
	for filter, want := range map[string][]string{nftables: {bridgeName}, "iptables": nil} {
		n.kernel.filterName = filter
		if got := n.rules(peers).Checked; !slices.Equal(got, want) {
			t.Errorf("with %s, ports are taken to be checked on %v, want %v", filter, got, want)
		}
	}
}

// TestFormerDriversRulesGo changes the driver as a change of Backend.Type does:
// the rules are as if there had never been another.
func TestFormerDriversRulesGo(t *testing.T) {
	drivers := map[string]backend.Info{
		"vxlan":     {Link: "flannel.1", Protocol: unix.IPPROTO_UDP, Ports: []uint16{8472}, Plain: true},
		"gre":       {Link: "fgre", Protocol: unix.IPPROTO_GRE},
		"ipip":      {Link: "flannel.ipip", Protocol: unix.IPPROTO_IPIP},
		"wireguard": {Link: "flannel-wg", MoreLinks: []string{"flannel-wg-v6"}, Protocol: unix.IPPROTO_UDP, Ports: []uint16{51820, 51821}},
		"host-gw":   {Plain: true},
	}
	n := healthy()
	n.underlay = backend.Underlay{Link: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}}
	peers := []*subnet.Lease{{PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.2")}}}
	alone := map[string]string{}
	table := func(t *testing.T, names ...string) string {
		ns := netnstest.New(t)
		err := ns.Do(func() error {
			f, err := nft.New(nil)
			if err != nil {
				return err
			}
			defer f.Close()
			for _, name := range names {
				n.device = device{info: drivers[name]}
				if err := f.Sync(t.Context(), n.rules(peers)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return netnstest.Run(t, ns, "nft", "-s", "list", "table", "inet", nft.Table)
	}
	for name := range drivers {
		alone[name] = canonical(table(t, name))
	}
	for former := range drivers {
		for name := range drivers {
			if got := canonical(table(t, former, name)); got != alone[name] {
				t.Errorf("%s after %s:\n%s\nwant:\n%s", name, former, got, alone[name])
			}
		}
	}
}

// canonical is a table without the order of its chains, which is that of their
// making.
func canonical(table string) string {
	blocks := strings.Split(strings.TrimSpace(table), "\n\n")
	first, rest, _ := strings.Cut(blocks[0], "{\n")
	blocks[0] = rest
	last := len(blocks) - 1
	blocks[last] = strings.TrimSuffix(blocks[last], "\n}")
	slices.Sort(blocks)
	return first + strings.Join(blocks, "\n\n")
}
