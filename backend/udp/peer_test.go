package udp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

var onlyIPv4 = backendtest.Families{V4: true}

// cluster is hosts whose keepers listen in dir.
func cluster(t *testing.T, hosts int) (c *backendtest.Cluster, dir string) {
	t.Helper()
	netnstest.NeedRoot(t)
	s := suite(t)
	dir = backendtest.Dir(t)
	s.Driver = func() backend.Driver { return udp.Driver{Dir: dir} }
	return backendtest.NewCluster(t, s, onlyIPv4, hosts), dir
}

// start opens all devices and tells each of the others.
func start(t *testing.T, c *backendtest.Cluster) {
	t.Helper()
	for _, h := range c.Hosts {
		h.Open(t)
	}
	for _, h := range c.Hosts {
		h.Sync(t, h.Peers()...)
	}
}

// flannel plays a host of flannel's: one packet a system call, a plain TUN
// device, one hop less each way.
func flannel(t *testing.T, h, other *backendtest.Host) {
	t.Helper()
	var tun, sock int
	err := h.NS.Do(func() (err error) {
		if tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		r, _ := unix.NewIfreq("flannel0")
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err = unix.IoctlIfreq(tun, unix.TUNSETIFF, r); err != nil {
			return err
		}
		if sock, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(sock, &unix.SockaddrInet4{Addr: h.Underlay.Addrs[0].As4(), Port: 8285})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"link set flannel0 up mtu 1472", "addr add " + h.Own.Subnets[0].Addr().String() + "/32 dev flannel0", "route add 10.1.0.0/16 dev flannel0"} {
		netnstest.Run(t, h.NS, "ip", strings.Fields(line)...)
	}
	hop := func(p []byte) []byte { // RFC 1624
		p[8]--
		sum := uint32(p[10])<<8 + uint32(p[11]) + 0x100
		sum += sum >> 16
		p[10], p[11] = byte(sum>>8), byte(sum)
		return p
	}
	to := &unix.SockaddrInet4{Addr: other.Underlay.Addrs[0].As4(), Port: 8285}
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		for b := make([]byte, 65536); ; {
			n, err := unix.Read(tun, b)
			if err != nil {
				return
			}
			if b[0]>>4 == 4 {
				_ = unix.Sendto(sock, hop(b[:n]), 0, to)
			}
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for b := make([]byte, 65536); ; {
			n, err := unix.Read(sock, b)
			if err != nil || n == 0 {
				return
			}
			_, _ = unix.Write(tun, hop(b[:n]))
		}
	}()
	t.Cleanup(func() {
		_, _ = h.NS.Run(context.WithoutCancel(t.Context()), "ip", "link", "del", "flannel0")
		_ = unix.Shutdown(sock, unix.SHUT_RDWR)
		<-ended
		<-ended
		unix.Close(tun)
		unix.Close(sock)
	})
}

// stream sends n bytes by TCP from one pod to another's.
func stream(t *testing.T, from, to *backendtest.Host, n int) {
	t.Helper()
	var l net.Listener
	var out net.Conn
	err := to.Pod.Do(func() (err error) {
		l, err = net.Listen("tcp", ":7")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = from.Pod.Do(func() (err error) {
		pod := to.Own.Subnets[0].Addr().Next().Next()
		out, err = net.DialTimeout("tcp", netip.AddrPortFrom(pod, 7).String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = out.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		_, _ = out.Write(make([]byte, n))
		out.Close()
	}()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = in.SetDeadline(time.Now().Add(20 * time.Second))
	got, b := 0, make([]byte, 1<<16)
	for {
		m, err := in.Read(b)
		if got += m; err != nil {
			break
		}
	}
	if got != n {
		t.Errorf("%d bytes of %d arrived", got, n)
	}
}

func TestAHostOfFlannelsIsAPeer(t *testing.T) {
	c, _ := cluster(t, 2)
	ours, theirs := c.Hosts[0], c.Hosts[1]
	ours.Open(t)
	flannel(t, theirs, ours)
	ours.Sync(t, theirs.Own)
	ours.Reach(t, theirs)
	theirs.Reach(t, ours)
	stream(t, ours, theirs, 4<<20)
	stream(t, theirs, ours, 4<<20)
}

func TestWithoutLeaseDataAndWithFlannelsInfo(t *testing.T) {
	c, _ := cluster(t, 1)
	h := c.Hosts[0]
	h.Open(t)
	info := h.Device.Info()
	if info.Data.V4 != nil || info.Data.V6 != nil || info.Link != "flannel0" || info.MTU != 1472 ||
		info.Protocol != unix.IPPROTO_UDP || len(info.Ports) != 1 || info.Ports[0] != 8285 {
		t.Errorf("%+v", info)
	}
}

func TestAnotherPortReplacesTheKeeper(t *testing.T) {
	c, dir := cluster(t, 2)
	start(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Reach(t, b)
	before, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
	if err != nil {
		t.Fatal(err)
	}
	c.Config.Backend.Raw = json.RawMessage(`{"Type":"udp","Port":9999}`)
	for _, h := range c.Hosts {
		h.Device.Close()
	}
	start(t, c)
	a.Reach(t, b)
	after, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
	if err != nil || after == before {
		t.Errorf("keeper %d, %v, was %d", after, err, before)
	}
	if err := syscall.Kill(before, 0); err == nil {
		t.Errorf("the former keeper goes on: %d", before)
	}
}

func TestSomebodyElsesDeviceIsLeftAlone(t *testing.T) {
	c, _ := cluster(t, 1)
	h := c.Hosts[0]
	netnstest.Run(t, h.NS, "ip", "link", "add", "flannel0", "type", "bridge")
	err := h.NS.Do(func() error {
		_, err := udp.Driver{Dir: backendtest.Dir(t)}.Open(t.Context(), c.Config, h.Underlay, "")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "ip link del flannel0") {
		t.Errorf("got %v", err)
	}
	netnstest.Run(t, h.NS, "ip", "link", "show", "flannel0")
}

func TestATakenPortIsSaid(t *testing.T) {
	c, _ := cluster(t, 1)
	h := c.Hosts[0]
	var conn net.PacketConn
	err := h.NS.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", "192.168.77.1:8285")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = h.NS.Do(func() error {
		_, err := udp.Driver{Dir: backendtest.Dir(t)}.Open(t.Context(), c.Config, h.Underlay, "")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "192.168.77.1:8285/udp") || !strings.Contains(err.Error(), "another Port") {
		t.Errorf("got %v", err)
	}
}

// A daemon's process for TestADaemonKilledLosesNothing.
const asDaemon = "UDP_TEST_DAEMON"

type daemonState struct {
	Dir      string
	Config   subnet.Config
	Underlay backend.Underlay
	Own      subnet.Lease
	Peers    []subnet.Lease
}

// daemon opens and syncs as a daemon does, says so and stays.
func daemon() error {
	var s daemonState
	if err := json.Unmarshal([]byte(os.Getenv(asDaemon)), &s); err != nil {
		return err
	}
	ctx := context.Background()
	d, err := udp.Driver{Dir: s.Dir}.Open(ctx, s.Config, s.Underlay, "identity-1")
	if err != nil {
		return err
	}
	if err := d.Sync(ctx, &s.Own, backendtest.Peers(s.Peers...)); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func TestADaemonKilledLosesNothing(t *testing.T) {
	c, dir := cluster(t, 2)
	start(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Device.Close()
	a.Cleanup(t)
	state, err := json.Marshal(daemonState{dir, c.Config, a.Underlay, a.Own, []subnet.Lease{b.Own}})
	if err != nil {
		t.Fatal(err)
	}
	run := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), asDaemon+"="+string(state))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = a.NS.Start(cmd)
		}
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, len("ready\n"))
		if _, err := out.Read(line); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	cmd := run()
	a.Reach(t, b)
	before, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
	if err != nil {
		t.Fatal(err)
	}
	wait := a.StartPing(t, b.Own.Subnets[0], 300)
	for range 3 {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		cmd = run()
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if after, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS); err != nil || after != before {
		t.Errorf("keeper %d, %v, was %d", after, err, before)
	}
}

func TestAKeeperThatDoesNotAnswerIsReplaced(t *testing.T) {
	c, dir := cluster(t, 2)
	start(t, c)
	a, b := c.Hosts[0], c.Hosts[1]
	before, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Stop(t, before)
	began := time.Now()
	a.Device.Forget()
	a.Sync(t, a.Peers()...)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("took %s", took)
	}
	after, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", a.NS)
	if err != nil || after == before {
		t.Errorf("keeper %d, %v, was %d", after, err, before)
	}
	a.Reach(t, b)
}
