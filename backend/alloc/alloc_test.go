package alloc_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/alloc"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

func config(options string) subnet.Config {
	return subnet.Config{Backend: subnet.Backend{Type: alloc.Type, Raw: json.RawMessage(options)},
		Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.1.0.0/16"), SubnetLen: 24}}}
}

var own = subnet.Lease{Type: alloc.Type, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}}

func lease(key, kind string) backend.Peer {
	return backend.Peer{Lease: &subnet.Lease{Key: key, Type: kind}}
}

func TestHostStaysAsItIsButForRoutesOfAFormerBackend(t *testing.T) {
	ns := netnstest.New(t)
	run := func(line string) string {
		t.Helper()
		args := strings.Fields(line)
		return netnstest.Run(t, ns, args[0], args[1:]...)
	}
	run("ip link add eth0 up type veth peer name far0")
	run("ip link set far0 up")
	run("ip addr add 192.168.77.1/24 dev eth0")
	run("ip route add 10.1.9.0/24 via 192.168.77.9")
	before := run("ip route") + run("ip link")
	run("ip route add 10.1.2.0/24 via 192.168.77.2 proto 0x66")
	err := ns.Do(func() error {
		dev, err := alloc.Driver{}.Open(t.Context(), config(`{"Type":"alloc"}`), backend.Underlay{Link: "eth0", MTU: 1500}, "id")
		if err != nil {
			return err
		}
		i := dev.Info()
		if i.MTU != 1500 || i.Link != "" || i.Protocol != 0 || !i.Plain || i.Data.V4 != nil || i.Data.V6 != nil {
			t.Errorf("got %+v", i)
		}
		for range 2 {
			if err := dev.Sync(t.Context(), &own, []backend.Peer{lease("a", "alloc"), lease("flannel's", "")}); err != nil {
				return err
			}
			dev.Forget()
		}
		return errors.Join(dev.Close(), alloc.Driver{}.Cleanup(t.Context()))
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := run("ip route") + run("ip link"); after != before {
		t.Errorf("changed from\n%sto\n%s", before, after)
	}
}

func TestOtherBackendsAreReported(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		dev, err := alloc.Driver{}.Open(t.Context(), config(``), backend.Underlay{Link: "eth0", MTU: 1500}, "id")
		if err != nil {
			return err
		}
		defer dev.Close()
		err = dev.Sync(t.Context(), &own, []backend.Peer{lease("a", "alloc"), lease("b", "vxlan\x1b")})
		pe, ok := errors.AsType[*backend.PeerError](err)
		if !ok || pe.Peer.Key != "b" || !strings.Contains(pe.Error(), `"vxlan?" is not alloc`) {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMTUIsTheUnderlaysOrLess(t *testing.T) {
	netnstest.NeedRoot(t)
	for options, want := range map[string]int{`{}`: 1500, `{"mtu":1400}`: 1400, `{"MTU":9000}`: 1500, `{"MTU":0}`: 1500} {
		dev, err := alloc.Driver{}.Open(t.Context(), config(options), backend.Underlay{Link: "eth0", MTU: 1500}, "id")
		if err != nil {
			t.Fatal(err)
		}
		if got := dev.Info().MTU; got != want {
			t.Errorf("%s: %d, want %d", options, got, want)
		}
		dev.Close()
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	for options, field := range map[string]string{`{"VNI":1}`: "Backend.VNI", `{"MTU":100}`: "Backend.MTU", `7`: "Backend"} {
		for who, err := range map[string]error{
			"Check": alloc.Driver{}.Check(config(options)),
			"Open": func() error {
				_, err := alloc.Driver{}.Open(t.Context(), config(options), backend.Underlay{Link: "eth0", MTU: 1500}, "id")
				return err
			}(),
		} {
			if ce, ok := errors.AsType[*subnet.ConfigError](err); !ok || ce.Field != field || ce.Remedy == "" {
				t.Errorf("%s %s: got %v", who, options, err)
			}
		}
	}
}
