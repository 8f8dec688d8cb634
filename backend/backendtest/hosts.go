package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// Host is a network namespace that plays a host, with a pod behind it.
type Host struct {
	NS, Pod  *netns.NS
	Underlay backend.Underlay
	Device   backend.Device // nil before Open
	Own      subnet.Lease

	cluster *Cluster
	number  byte
	driver  backend.Driver
}

// Cluster is a few hosts on one link.
type Cluster struct {
	Config subnet.Config
	Hosts  []*Host

	suite Suite
	sw    *netns.NS
}

// NewCluster makes hosts whose devices are not open yet.
func NewCluster(t *testing.T, s Suite, fams Families, hosts int) *Cluster {
	t.Helper()
	c := &Cluster{suite: s, Config: subnet.Config{Backend: subnet.Backend{Type: s.Type, Raw: s.Options}}, sw: netnstest.New(t)}
	if fams.V4 {
		c.Config.Ranges = append(c.Config.Ranges, subnet.Range{
			Network: netip.MustParsePrefix("10.1.0.0/16"), SubnetLen: 24,
			SubnetMin: netip.MustParseAddr("10.1.0.0"), SubnetMax: netip.MustParseAddr("10.1.255.0"),
		})
	}
	if fams.V6 {
		c.Config.Ranges = append(c.Config.Ranges, subnet.Range{
			Network: netip.MustParsePrefix("fd00:1::/48"), SubnetLen: 64,
			SubnetMin: netip.MustParseAddr("fd00:1::"), SubnetMax: netip.MustParseAddr("fd00:1:0:ffff::"),
		})
	}
	netnstest.Run(t, c.sw, "ip", "link", "add", "br0", "up", "type", "bridge")
	for i := range hosts {
		c.Hosts = append(c.Hosts, c.newHost(t, byte(i+1)))
	}
	return c
}

// newHost makes host number n: eth0 is 192.168.77.n and fd77::n, the pod is
// address 2 of subnet n. It runs few programs: there are many hosts, and
// starting one takes long in a VM.
func (c *Cluster) newHost(t *testing.T, n byte) *Host {
	t.Helper()
	h := &Host{NS: netnstest.New(t), Pod: netnstest.New(t), cluster: c, number: n}
	// No second of silence before link-local addresses may be used.
	sysctls(t, h.Pod, "net/ipv6/conf/default/accept_dad=0")
	sysctls(t, h.NS, "net/ipv6/conf/default/accept_dad=0", "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
	batch(t, c.sw, fmt.Sprintf("link add host%d up master br0 type veth peer name eth0 netns %s", n, h.NS.Path()))
	h.Underlay = backend.Underlay{Link: "eth0", MTU: 1500}
	h.Own = subnet.Lease{Type: c.suite.Type, Revision: int64(n), Created: int64(n)}
	host := []string{"link set eth0 up", "link add pod0 up type veth peer name eth0 netns " + h.Pod.Path()}
	pod := []string{"link set eth0 up"}
	var keys []string
	for _, r := range c.Config.Ranges {
		at, own := h.underlayAddr(r), subnetOf(r, n)
		host = append(host, fmt.Sprintf("addr add %s dev eth0 nodad", at))
		h.Underlay.Addrs = append(h.Underlay.Addrs, at.Addr())
		h.Own.Subnets = append(h.Own.Subnets, own)
		keys = append(keys, strings.ReplaceAll(own.String(), "/", "-"))
		gw, inside := podLines(own)
		host = append(host, gw)
		pod = append(pod, inside, "route add default via "+own.Addr().Next().String())
	}
	batch(t, h.NS, host...)
	batch(t, h.Pod, pod...)
	h.Underlay.PublicIPs, h.Own.PublicIPs = h.Underlay.Addrs, h.Underlay.Addrs
	h.Own.Key = "/coreos.com/network/subnets/" + strings.Join(keys, "&")
	return h
}

// podLines give the host address 1 of a subnet, and the pod address 2.
func podLines(s netip.Prefix) (host, pod string) {
	gw := s.Addr().Next()
	return fmt.Sprintf("addr add %s dev pod0 nodad", netip.PrefixFrom(gw, s.Bits())),
		fmt.Sprintf("addr add %s dev eth0 nodad", netip.PrefixFrom(gw.Next(), s.Bits()))
}

// addPod gives the pod addresses in one more subnet.
func (h *Host) addPod(t *testing.T, s netip.Prefix) {
	t.Helper()
	host, pod := podLines(s)
	batch(t, h.NS, host)
	batch(t, h.Pod, pod)
}

func (h *Host) underlayAddr(r subnet.Range) netip.Prefix {
	if r.Network.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 77, h.number}), 24)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: h.number}), 64)
}

// subnetOf is subnet number n of a range.
func subnetOf(r subnet.Range, n byte) netip.Prefix {
	raw := r.Network.Addr().AsSlice()
	raw[r.SubnetLen/8-1] = n
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, r.SubnetLen)
}

// Open opens the host's device with a new driver, as a started daemon does.
func (h *Host) Open(t *testing.T) {
	t.Helper()
	driver := h.cluster.suite.Driver()
	h.driver = driver
	t.Cleanup(func() {
		// A device that a process serves would keep the namespace alive.
		if err := h.NS.Do(func() error { return driver.Cleanup(context.WithoutCancel(t.Context())) }); err != nil {
			t.Error(err)
		}
	})
	err := h.NS.Do(func() (err error) {
		h.Device, err = driver.Open(t.Context(), h.cluster.Config, h.Underlay, fmt.Sprintf("identity-%d", h.number))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dev := h.Device
	t.Cleanup(func() { dev.Close() })
	info := h.Device.Info()
	h.Own.Data = info.Data
	for _, end := range []struct {
		ns   *netns.NS
		name string
	}{{h.NS, "pod0"}, {h.Pod, "eth0"}} {
		ip(t, end.ns, "link", "set", end.name, "mtu", fmt.Sprint(info.MTU))
	}
}

// Peers are the other hosts' leases.
func (h *Host) Peers() []subnet.Lease {
	var out []subnet.Lease
	for _, o := range h.cluster.Hosts {
		if o != h && o.Device != nil {
			out = append(out, o.Own)
		}
	}
	return out
}

// Sync syncs with the given peers and fails the test if it fails.
func (h *Host) Sync(t *testing.T, peers ...subnet.Lease) {
	t.Helper()
	own := h.Own
	if err := h.Device.Sync(t.Context(), &own, Peers(peers...)); err != nil {
		t.Fatal(err)
	}
}

// Peers are leases as a device is told them, each a copy.
func Peers(leases ...subnet.Lease) []backend.Peer {
	var out []backend.Peer
	for _, l := range leases {
		out = append(out, backend.Peer{Lease: &l})
	}
	return out
}

// Cleanup removes everything that drivers of this host made.
func (h *Host) Cleanup(t *testing.T) {
	t.Helper()
	err := h.NS.Do(func() error {
		return errors.Join(h.driver.Cleanup(t.Context()), routed.RemoveRoutes(t.Context(), nil))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// up opens all hosts and tells each of the others.
func (c *Cluster) up(t *testing.T) {
	t.Helper()
	for _, h := range c.Hosts {
		h.Open(t)
	}
	for _, h := range c.Hosts {
		h.Sync(t, h.Peers()...)
	}
}

// Links are the interfaces of the device that the kernel has: a name of Info
// that ends in * is every one that begins so.
func (h *Host) Links(t *testing.T) []string {
	t.Helper()
	info := h.Device.Info()
	var out []string
	for line := range strings.Lines(netnstest.Run(t, h.NS, "ip", "-br", "link")) {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "@")
		for _, want := range append([]string{info.Link}, info.MoreLinks...) {
			if begin, many := strings.CutSuffix(want, "*"); name == want || many && strings.HasPrefix(name, begin) {
				out = append(out, name)
			}
		}
	}
	return out
}

// writes counts what the device wrote, if it can tell.
func (h *Host) writes(t *testing.T) uint64 {
	t.Helper()
	w, ok := h.Device.(interface{ Writes() uint64 })
	if !ok {
		t.Fatalf("%T does not count its writes", h.Device)
	}
	return w.Writes()
}

// Reach pings the other host's pod from this one's, by every family.
func (h *Host) Reach(t *testing.T, o *Host) {
	t.Helper()
	for _, s := range o.Own.Subnets {
		var err error
		for range 6 { // who has whose MAC must be found out first
			if err = h.ping(t.Context(), s, "-c", "1"); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("host %d to %d: %v%s", h.number, o.number, err, h.State(t))
		}
	}
}

// ping pings the pod of a subnet.
func (h *Host) ping(ctx context.Context, s netip.Prefix, args ...string) error {
	_, err := h.Pod.Run(ctx, "ping", append([]string{"-n", "-q", "-W", "0.5", s.Addr().Next().Next().String()}, args...)...)
	return err
}

// StartPing pings in the background until wait, which says how many answers
// of how many are missing.
func (h *Host) StartPing(t *testing.T, s netip.Prefix, count int) (wait func() error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ping", "-n", "-q", "-W", "1", "-i", "0.005", "-c", fmt.Sprint(count), s.Addr().Next().Next().String())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Pod.Start(cmd); err != nil {
		t.Fatal(err)
	}
	return func() error {
		err := cmd.Wait()
		if err == nil && !strings.Contains(out.String(), " 0% packet loss") {
			err = fmt.Errorf("packets were lost")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	}
}

// State is what the kernel has, for messages of failed tests.
func (h *Host) State(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, args := range [][]string{
		{"ip", "-d", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "-N", "route"}, {"ip", "-N", "-6", "route"},
		{"ip", "neigh"}, {"bridge", "fdb"},
	} {
		text, _ := h.NS.Run(context.WithoutCancel(t.Context()), args[0], args[1:]...)
		fmt.Fprintf(&out, "\n# %s\n%s", strings.Join(args, " "), text)
	}
	return out.String()
}

// batch runs lines of ip(8) in one process.
func batch(t *testing.T, ns *netns.NS, lines ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%v of\n%s:\n%s", err, strings.Join(lines, "\n"), out.String())
	}
}

// sysctls sets settings of a namespace.
func sysctls(t *testing.T, ns *netns.NS, settings ...string) {
	t.Helper()
	err := ns.Do(func() error {
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ip(t *testing.T, ns *netns.NS, args ...string) {
	t.Helper()
	netnstest.Run(t, ns, "ip", args...)
}

// Families are those that a cluster has.
type Families struct{ V4, V6 bool }

func raw(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// Dir is a directory that goes with the test. Its path is short, for sockets.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bt-") //nolint:usetesting // its path would be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // told by the runner if it stays
	return dir
}
