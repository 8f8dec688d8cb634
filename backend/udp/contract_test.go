package udp_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/subnet"
)

func TestMain(m *testing.M) {
	if code, ok := outlive.Main(os.Args[1:], map[string]outlive.Keeper{udp.Kind: udp.Keep}); ok {
		os.Exit(code)
	}
	if os.Getenv(asDaemon) != "" {
		fmt.Fprintln(os.Stderr, daemon())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// devices are a host's, by family.
func devices(h *backendtest.Host) []string {
	info := h.Device.Info()
	return append([]string{info.Link}, info.MoreLinks...)
}

// each makes one command line for every device of a host.
func each(format string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, _ subnet.Lease) (out []string) {
		for _, name := range devices(h) {
			out = append(out, fmt.Sprintf(format, name))
		}
		return out
	}
}

// eachRoute makes command lines for every device of a host and a peer's
// subnet.
func eachRoute(formats ...string) func(*backendtest.Host, subnet.Lease) []string {
	return func(h *backendtest.Host, peer subnet.Lease) (out []string) {
		for i, name := range devices(h) {
			for _, f := range formats {
				out = append(out, fmt.Sprintf(f, peer.Subnets[i], name))
			}
		}
		return out
	}
}

func suite(t *testing.T) backendtest.Suite {
	dir := backendtest.Dir(t)
	return backendtest.Suite{
		Driver: func() backend.Driver { return udp.Driver{Dir: dir} },
		Type:   "udp",
		Wrong: map[string]string{
			"Backend.Prot": `{"Prot":1}`,
			"Backend.Port": `{"Port":65536}`,
			"Backend.MTU":  `{"MTU":600}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route":         eachRoute("ip route del %s dev %s"),
			"route changed": eachRoute("ip route del %s dev %s", "ip route add %s dev %s metric 7 proto 0x66"),
			"network route": func(h *backendtest.Host, _ subnet.Lease) []string {
				lines := []string{"ip route del 10.1.0.0/16 dev flannel0", "ip route del fd00:1::/48 dev flannel0-v6"}
				if len(devices(h)) == 2 {
					return lines
				} else if devices(h)[0] == "flannel0" {
					return lines[:1]
				}
				return lines[1:]
			},
			"address": each("ip addr flush dev %s"),
			"down":    each("ip link set %s down"),
			"MTU":     each("ip link set %s mtu 1300"),
			"device":  each("ip link del %s"),
			"name": func(h *backendtest.Host, _ subnet.Lease) (out []string) {
				for i, name := range devices(h) {
					out = append(out, fmt.Sprintf("ip link set %s down", name), fmt.Sprintf("ip link set %s name other%d", name, i))
				}
				return out
			},
			"keeper killed": func(h *backendtest.Host, _ subnet.Lease) (out []string) {
				for _, name := range devices(h) {
					pid, _, err := udp.KeeperOf(t.Context(), dir, name, h.NS)
					if err != nil {
						t.Error(err)
					}
					out = append(out, fmt.Sprintf("kill -9 %d", pid))
				}
				return append(out, "sleep 0.1")
			},
		},
		MostWrites: 1,
	}
}

func TestContract(t *testing.T) { backendtest.Run(t, suite(t)) }

func TestContractWithOptions(t *testing.T) {
	s := suite(t)
	s.Options = json.RawMessage(`{"Type":"udp","Port":9999,"MTU":1400}`)
	s.Damage, s.Only = nil, []string{"Dual"}
	backendtest.Run(t, s)
}
