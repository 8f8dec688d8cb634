package wireguard_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/kernel/wireguard/userspace"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if code, ok := outlive.Main(os.Args[1:], map[string]outlive.Keeper{userspace.Kind: userspace.Keep}); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// perHost is the driver for hosts that share a file system: each has a
// directory of its own.
type perHost struct {
	wireguard.Driver
	dir string
}

// here is the driver of the host whose network namespace the thread is in.
// Inodes of namespaces are used again; cookies are not.
func (p perHost) here() (wireguard.Driver, error) {
	drv := p.Driver
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return drv, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	drv.Sockets = filepath.Join(p.dir, fmt.Sprint(cookie))
	drv.KeyFile = filepath.Join(drv.Sockets, "wgkey")
	return drv, err
}

func (p perHost) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	drv, err := p.here()
	if err != nil {
		return nil, err
	}
	return drv.Open(ctx, n, u, identity)
}

func (p perHost) Cleanup(ctx context.Context) error {
	drv, err := p.here()
	if err != nil {
		return err
	}
	return drv.Cleanup(ctx)
}

// each makes one command line for every device of a host.
func each(format string) func(h *backendtest.Host, peer subnet.Lease) []string {
	return func(h *backendtest.Host, _ subnet.Lease) (out []string) {
		info := h.Device.Info()
		for _, name := range append([]string{info.Link}, info.MoreLinks...) {
			out = append(out, fmt.Sprintf(format, name))
		}
		return out
	}
}

// routes makes command lines for each subnet of a peer, and the device that
// leads there.
func routes(formats ...string) func(h *backendtest.Host, peer subnet.Lease) []string {
	return func(h *backendtest.Host, peer subnet.Lease) (out []string) {
		info := h.Device.Info()
		names := append([]string{info.Link}, info.MoreLinks...)
		for i, s := range peer.Subnets {
			for _, f := range formats {
				out = append(out, fmt.Sprintf(f, s, names[min(i, len(names)-1)]))
			}
		}
		return out
	}
}

func suite(t *testing.T, drv wireguard.Driver) backendtest.Suite {
	dir := backendtest.Dir(t)
	return backendtest.Suite{
		Many:   many(t),
		Driver: func() backend.Driver { return perHost{drv, dir} },
		Type:   "wireguard",
		Wrong: map[string]string{
			"Backend.Port":                        `{"Port":51820}`,
			"Backend.ListenPort":                  `{"ListenPort":65536}`,
			"Backend.MTU":                         `{"MTU":600}`,
			"Backend.PSK":                         `{"PSK":"c2hvcnQ="}`,
			"Backend.PersistentKeepaliveInterval": `{"PersistentKeepaliveInterval":"25s"}`,
			"Backend.Mode":                        `{"Mode":"both"}`,
		},
		Damage: map[string]func(*backendtest.Host, subnet.Lease) []string{
			"route":         routes("ip route del %s dev %s"),
			"route changed": routes("ip route del %s dev %s", "ip route add %s dev %s metric 7 proto 0x66"),
			"address":       each("ip addr flush dev %s"),
			"down":          each("ip link set %s down"),
			"MTU":           each("ip link set %s mtu 1300"),
			"device":        each("ip link del %s"),
		},
		Hostile: map[string]string{
			"no key":    `{}`,
			"zero key":  `{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`,
			"short key": `{"PublicKey":"AAAA"}`,
			"not text":  `{"PublicKey":7}`,
			"null key":  `{"PublicKey":null}`,
			"line feed": `{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"}`,
		},
		Data:       inventedData,
		MostWrites: 4,
	}
}

// many is how many peers there are where there are many. The kernel waits for
// all its CPUs whenever it removes one of WireGuard's, which under emulation
// takes 30 ms.
func many(t *testing.T) int {
	if kernelHasWireGuard(t) {
		return 200
	}
	return 5000
}

// inventedData is the BackendData of host number n, which nobody can be.
func inventedData(n int) json.RawMessage {
	key := sha256.Sum256(fmt.Append(nil, "invented ", n))
	raw, _ := json.Marshal(map[string][]byte{"PublicKey": key[:]})
	return raw
}

func TestContract(t *testing.T) { backendtest.Run(t, suite(t, wireguard.Driver{})) }

func TestContractWithOneDevice(t *testing.T) {
	s := suite(t, wireguard.Driver{})
	s.Options = json.RawMessage(`{"Type":"wireguard","Mode":"auto","PSK":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}`)
	s.Only = []string{"Dual"}
	backendtest.Run(t, s)
}
