package wireguard_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
)

var (
	ipv4 = backendtest.Families{V4: true}
	dual = backendtest.Families{V4: true, V6: true}
)

// cluster makes hosts with the driver's files in directories of their own.
func cluster(t *testing.T, options string, fams backendtest.Families, hosts int) (*backendtest.Cluster, perHost) {
	return clusterOf(t, wireguard.Driver{}, options, fams, hosts)
}

func clusterOf(t *testing.T, drv wireguard.Driver, options string, fams backendtest.Families, hosts int) (*backendtest.Cluster, perHost) {
	s := suite(t, drv)
	s.Options = []byte(options)
	p := s.Driver().(perHost)
	return backendtest.NewCluster(t, s, fams, hosts), p
}

func up(t *testing.T, c *backendtest.Cluster) {
	for _, h := range c.Hosts {
		h.Open(t)
	}
	for _, h := range c.Hosts {
		h.Sync(t, h.Peers()...)
	}
}

// of is the driver of a host.
func (p perHost) of(t *testing.T, h *backendtest.Host) (drv wireguard.Driver) {
	t.Helper()
	if err := h.NS.Do(func() (err error) { drv, err = p.here(); return err }); err != nil {
		t.Fatal(err)
	}
	return drv
}

// read is what a host's device has, whoever runs it.
func (p perHost) read(t *testing.T, h *backendtest.Host, name string) (s wg.State) {
	t.Helper()
	s, err := wg.Socket{Path: filepath.Join(p.of(t, h).Sockets, name+".sock")}.Read(t.Context())
	if errors.Is(err, fs.ErrNotExist) {
		err = h.NS.Do(func() error {
			k, err := wg.OpenKernel(name)
			if err != nil {
				return err
			}
			defer k.Close()
			s, err = k.Read(t.Context())
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keeper is the process that runs a host's device; 0: the kernel does.
func (p perHost) keeper(t *testing.T, h *backendtest.Host, name string) int {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(p.of(t, h).Sockets, name+".sock"))
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		cred, err := syscallPeer(int(fd))
		if err == nil {
			pid = int(cred)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestKeyIsMadeOnceForRootAlone(t *testing.T) {
	c, p := cluster(t, "", ipv4, 1)
	h := c.Hosts[0]
	h.Open(t)
	file := p.of(t, h).KeyFile
	first := string(h.Device.Info().Data.V4)
	check := func() {
		t.Helper()
		st, err := os.Stat(file)
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", file, st.Mode(), err)
		}
		if now := string(h.Device.Info().Data.V4); now != first {
			t.Errorf("the key was %s and is %s", first, now)
		}
	}
	check()
	again := func() {
		t.Helper()
		if err := h.Device.Close(); err != nil {
			t.Fatal(err)
		}
		h.Open(t)
		check()
	}
	again()
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	again()
	if left, _ := filepath.Glob(file + ".*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := h.NS.Do(func() error {
		_, err := p.Open(t.Context(), c.Config, h.Underlay, "")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "remove it") || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a broken key file: %v", err)
	}
}

func TestRotatedKeyLosesAtMostAHandshake(t *testing.T) {
	c, p := cluster(t, "", dual, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Reach(t, b)
	time.Sleep(100 * time.Millisecond) // WireGuard drops a handshake that begins within 20 ms of another
	former := string(b.Device.Info().Data.V4)
	var waits []func() (sent, lost int)
	for _, s := range b.Own.Subnets {
		waits = append(waits, countPing(t, a, s))
	}
	if err := os.Remove(p.of(t, b).KeyFile); err != nil {
		t.Fatal(err)
	}
	b.Device.Close()
	b.Open(t)
	b.Sync(t, a.Own)
	if string(b.Device.Info().Data.V4) == former {
		t.Fatal("the key is the former one")
	}
	a.Sync(t, b.Own)
	for _, wait := range waits {
		// The handshake is a round trip; nobody may wait for a retry after 5 s.
		if sent, lost := wait(); lost > 40 {
			t.Errorf("%d of %d packets lost, 5 ms apart", lost, sent)
		} else {
			t.Logf("%d of %d packets lost", lost, sent)
		}
	}
	if n := len(p.read(t, a, "flannel-wg").Peers); n != 1 {
		t.Errorf("%d peers, the former key among them?", n)
	}
}

// countPing pings for two seconds and counts what is lost.
func countPing(t *testing.T, from *backendtest.Host, to netip.Prefix) func() (sent, lost int) {
	const count = 400
	wait := from.StartPing(t, to, count)
	return func() (int, int) {
		err := wait()
		if err == nil {
			return count, 0
		}
		text := err.Error()
		var sent, got int
		if at := strings.LastIndex(text, "---\n"); at >= 0 {
			_, _ = fmt.Sscanf(text[at+4:], "%d packets transmitted, %d received", &sent, &got)
		}
		if sent == 0 {
			t.Errorf("ping: %v", err)
		}
		return sent, sent - got
	}
}

func TestOtherPSKDoesNotGetThrough(t *testing.T) {
	const one, two = `{"Type":"wireguard","PSK":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}`, `{"Type":"wireguard","PSK":"AgEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}`
	c, _ := cluster(t, one, ipv4, 3)
	up(t, c)
	a, b, other := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	a.Reach(t, b)
	a.Reach(t, other)
	other.Device.Close()
	other.Cleanup(t)
	c.Config.Backend.Raw = []byte(two)
	other.Open(t)
	other.Sync(t, a.Own, b.Own)
	a.Device.Close()
	a.Cleanup(t)
	c.Config.Backend.Raw = []byte(one)
	a.Open(t)
	a.Sync(t, b.Own, other.Own)
	a.Reach(t, b)
	if out, err := a.Pod.Run(t.Context(), "ping", "-c", "2", "-i", "0.2", "-W", "0.3", "10.1.3.2"); err == nil {
		t.Errorf("a peer with another PSK answers: %s", out)
	}
}

func TestSessionsSurviveWhatIsNotTheirs(t *testing.T) {
	c, p := cluster(t, "", dual, 3)
	up(t, c)
	a, b, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	a.Reach(t, b)
	handshake := func() (at time.Time) {
		t.Helper()
		for _, peer := range p.read(t, a, "flannel-wg").Peers {
			if peer.Endpoint.Addr() == b.Own.PublicIPs[0] {
				at = peer.Handshake
			}
		}
		return at
	}
	first := handshake()
	if first.IsZero() {
		t.Fatal("no handshake")
	}
	a.Sync(t, b.Own)
	a.Sync(t, b.Own, third.Own)
	a.Device.Forget()
	a.Sync(t, b.Own, third.Own)
	a.Device.Close()
	a.Open(t)
	a.Sync(t, b.Own, third.Own)
	a.Reach(t, b)
	if now := handshake(); now != first {
		t.Errorf("the handshake of %v was repeated at %v", first, now)
	}
}

func TestKilledProcessIsReplaced(t *testing.T) {
	c, p := cluster(t, "", dual, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	info := a.Device.Info()
	pid := p.keeper(t, a, "flannel-wg")
	if pid == 0 {
		t.Skip("this kernel has WireGuard: no process to kill")
	}
	if info.Note != "userspace" {
		t.Errorf("Info says %q of how it works", info.Note)
	}
	b.Reach(t, a)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for p.keeper(t, a, "flannel-wg") == pid {
		time.Sleep(time.Millisecond)
	}
	a.Device.Forget()
	a.Sync(t, b.Own)
	b.Reach(t, a)
	if now := p.keeper(t, a, "flannel-wg"); now == pid || now == 0 {
		t.Errorf("process %d after %d", now, pid)
	}
	if after := a.Device.Info(); fmt.Sprint(after) != fmt.Sprint(info) {
		t.Errorf("Info was %+v and is %+v", info, after)
	}
}

func TestStoppedProcessIsReplaced(t *testing.T) {
	c, p := cluster(t, "", ipv4, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	pid := p.keeper(t, a, "flannel-wg")
	if pid == 0 {
		t.Skip("this kernel has WireGuard: no process to stop")
	}
	backendtest.Stop(t, pid)
	a.Device.Forget()
	a.Sync(t, b.Own)
	b.Reach(t, a)
	if now := p.keeper(t, a, "flannel-wg"); now == pid || now == 0 {
		t.Errorf("process %d after %d", now, pid)
	}
}

func TestDevicesInTheWayAreReplaced(t *testing.T) {
	for name, lines := range map[string][]string{
		"another kind":           {"ip link add flannel-wg type bridge"},
		"a TUN that nobody runs": {"ip tuntap add dev flannel-wg mode tun", "ip link set flannel-wg up"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := cluster(t, "", ipv4, 2)
			for _, line := range lines {
				args := strings.Fields(line)
				netnstest.Run(t, c.Hosts[0].NS, args[0], args[1:]...)
			}
			up(t, c)
			c.Hosts[0].Reach(t, c.Hosts[1])
		})
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	c, p := cluster(t, "", ipv4, 1)
	h := c.Hosts[0]
	err := h.NS.Do(func() error {
		l, err := net.ListenPacket("udp", ":51820")
		if err != nil {
			return err
		}
		defer l.Close()
		_, err = p.Open(t.Context(), c.Config, h.Underlay, "")
		return errors.Join(err, p.Cleanup(context.WithoutCancel(t.Context())))
	})
	if err == nil || !strings.Contains(err.Error(), "51820") || !strings.Contains(err.Error(), "ListenPort") {
		t.Errorf("a taken port: %v", err)
	}
}

func TestKeepaliveShakesHandsByItself(t *testing.T) {
	c, p := cluster(t, `{"Type":"wireguard","PersistentKeepaliveInterval":1}`, ipv4, 2)
	up(t, c)
	for p.read(t, c.Hosts[0], "flannel-wg").Peers[0].Handshake.IsZero() && t.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	if got := p.read(t, c.Hosts[0], "flannel-wg").Peers[0].Keepalive; got != time.Second {
		t.Errorf("keepalive every %v", got)
	}
}

func TestChangedModeLeavesNoDevice(t *testing.T) {
	c, _ := cluster(t, "", dual, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	if i := a.Device.Info(); fmt.Sprintf("%s %s %d %d", i.Link, i.MoreLinks, i.Ports, i.MTU) != "flannel-wg [flannel-wg-v6] [51820 51821] 1420" {
		t.Errorf("separate: %+v", i)
	}
	for _, mode := range []string{"ipv4", "ipv6", "auto", "separate"} {
		c.Config.Backend.Raw = fmt.Appendf(nil, `{"Type":"wireguard","Mode":%q}`, mode)
		for _, h := range c.Hosts {
			h.Device.Close()
			h.Open(t)
		}
		for _, h := range c.Hosts {
			h.Sync(t, h.Peers()...)
		}
		i := a.Device.Info()
		if one := len(i.MoreLinks) == 0 && fmt.Sprint(i.Ports) == "[51820]"; one == (mode == "separate") {
			t.Errorf("%s: %+v", mode, i)
		}
		_, err := a.NS.Run(t.Context(), "ip", "link", "show", "flannel-wg-v6")
		if there := err == nil; there != (mode == "separate") {
			t.Errorf("%s: flannel-wg-v6 is there: %v", mode, there)
		}
		meet(t, a, b)
		meet(t, b, a)
	}
}

// meet waits until a host reaches another. Where both begin with a handshake at
// the same moment, the next is after 5 s.
func meet(t *testing.T, a, b *backendtest.Host) {
	t.Helper()
	for _, s := range b.Own.Subnets {
		to := s.Addr().Next().Next().String()
		if out, err := a.Pod.Run(t.Context(), "ping", "-n", "-i", "0.2", "-c", "1", "-w", "8", to); err != nil {
			t.Errorf("%s: %v: %s", to, err, out)
		}
	}
}

func TestPeerThatMovesKeepsItsSession(t *testing.T) {
	c, p := cluster(t, "", ipv4, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Reach(t, b)
	before := p.read(t, a, "flannel-wg").Peers[0]
	moved := b.Own
	moved.PublicIPs = []netip.Addr{netip.MustParseAddr("192.168.77.99")}
	a.Sync(t, moved)
	after := p.read(t, a, "flannel-wg").Peers[0]
	if after.Endpoint.String() != "192.168.77.99:51820" || after.Handshake != before.Handshake || after.Key != before.Key {
		t.Errorf("moved from %+v to %+v", before, after)
	}
}

// Two hosts of one key: the elder has it, and the other is told of.
func TestClonedKeyIsReported(t *testing.T) {
	c, _ := cluster(t, "", ipv4, 2)
	up(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	clone := b.Own
	clone.Key, clone.Created = "/coreos.com/network/subnets/10.1.9.0-24", 50
	clone.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.9.0/24")}
	clone.PublicIPs = []netip.Addr{netip.MustParseAddr("192.168.77.9")}
	err := a.Device.Sync(t.Context(), &a.Own, backendtest.Peers(b.Own, clone))
	pe, ok := errors.AsType[*backend.PeerError](err)
	if !ok {
		if j, is := err.(interface{ Unwrap() []error }); is && len(j.Unwrap()) == 1 {
			pe, ok = errors.AsType[*backend.PeerError](j.Unwrap()[0])
		}
	}
	if !ok || pe.Peer.Key != clone.Key || !strings.Contains(pe.Error(), "PublicKey") {
		t.Errorf("clone: %v", err)
	}
	a.Reach(t, b)
}

func endpoint(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 51820) }
