package loop

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// end is one of two hosts with a loop between them.
type end struct {
	ns    *netns.NS
	loop  *Loop
	inner netip.Addr
}

// pair makes two hosts whose devices are tun0.
func pair(t *testing.T, v6 bool) (a, b end) {
	t.Helper()
	netnstest.NeedRoot(t)
	outer, inner, mtu := "192.168.77.%d", "10.1.%d.1", "1472"
	if v6 {
		outer, inner, mtu = "fd77::%d", "fd00:1:%d::1", "1452"
	}
	ends := [2]end{}
	for i := range ends {
		ends[i].ns = netnstest.New(t)
		ends[i].inner = netip.MustParseAddr(fmt.Sprintf(inner, i+1))
	}
	netnstest.Run(t, ends[0].ns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", ends[1].ns.Path())
	for i := range ends {
		e, o := &ends[i], &ends[1-i]
		local, remote := netip.MustParseAddr(fmt.Sprintf(outer, i+1)), netip.MustParseAddr(fmt.Sprintf(outer, 2-i))
		bits, whole := 24, o.inner.BitLen()
		if v6 {
			bits = 64
		}
		netnstest.Run(t, e.ns, "ip", "addr", "add", netip.PrefixFrom(local, bits).String(), "dev", "eth0", "nodad")
		netnstest.Run(t, e.ns, "ip", "link", "set", "eth0", "up")
		err := e.ns.Do(func() (err error) {
			e.loop, err = Open(Config{Device: "tun0", Local: netip.AddrPortFrom(local, 8285)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- e.loop.Run() }()
		t.Cleanup(func() {
			if _, err := e.ns.Run(context.WithoutCancel(t.Context()), "ip", "link", "del", "tun0"); err != nil {
				t.Error(err)
			}
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("the loop ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the loop goes on without its device")
			}
		})
		theirs, _ := o.inner.Prefix(bits)
		e.loop.SetTable(NewTable([]Peer{{theirs, netip.AddrPortFrom(remote, 8285)}}))
		netnstest.Run(t, e.ns, "ip", "addr", "add", netip.PrefixFrom(e.inner, whole).String(), "dev", "tun0", "nodad")
		netnstest.Run(t, e.ns, "ip", "link", "set", "tun0", "up", "mtu", mtu)
		netnstest.Run(t, e.ns, "ip", "route", "add", theirs.String(), "dev", "tun0")
	}
	return ends[0], ends[1]
}

// transfer sends n random bytes by TCP and compares them.
func transfer(t *testing.T, from, to end, n int) {
	t.Helper()
	var l net.Listener
	var conn net.Conn
	err := to.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to.inner, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = from.ns.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	_ = conn.SetDeadline(deadline)
	data := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data)
	go func() {
		_, _ = conn.Write(data)
		conn.Close()
	}()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = in.SetDeadline(deadline)
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes, or others: %v", len(got), n, err)
	}
}

func TestTCPIsCarriedInFewSystemCallsWithoutAllocating(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, v6)
			transfer(t, a, b, 1<<20)
			before := [2]Counters{a.loop.Counters(), b.loop.Counters()}
			var memory [2]runtime.MemStats
			runtime.ReadMemStats(&memory[0])
			const n = 32 << 20
			transfer(t, a, b, n)
			runtime.ReadMemStats(&memory[1])
			ca, cb := a.loop.Counters(), b.loop.Counters()
			packets := ca.Sent - before[0].Sent
			sending := ca.Reads + ca.Sends - before[0].Reads - before[0].Sends
			receiving := cb.Receives + cb.Writes - before[1].Receives - before[1].Writes
			allocs := memory[1].Mallocs - memory[0].Mallocs
			t.Logf("%d packets; system calls per packet: %.3f out, %.3f in; %d allocations", packets,
				float64(sending)/float64(packets), float64(receiving)/float64(packets), allocs)
			if packets < n/1500 {
				t.Errorf("only %d packets", packets)
			}
			if sending*3 > packets || receiving*3 > packets {
				t.Errorf("%d system calls out and %d in for %d packets", sending, receiving, packets)
			}
			if allocs*20 > packets { // the test's own sockets allocate
				t.Errorf("%d allocations for %d packets", allocs, packets)
			}
			if ca.Forged+cb.Forged+ca.Broken+cb.Broken != 0 {
				t.Errorf("%+v\n%+v", ca, cb)
			}
		})
	}
}

func TestANarrowPathTakesFragments(t *testing.T) {
	a, b := pair(t, false)
	for _, e := range []end{a, b} {
		netnstest.Run(t, e.ns, "ip", "route", "replace", "192.168.77.0/24", "dev", "eth0", "mtu", "1000")
	}
	transfer(t, a, b, 1<<20)
	netnstest.Run(t, a.ns, "ping", "-nqc", "2", "-i", "0.01", "-W", "1", "-s", "1444", "-M", "do", b.inner.String())
	netnstest.Run(t, a.ns, "ping", "-nqc", "2", "-i", "0.01", "-W", "1", "-s", "30000", b.inner.String())
}

func TestAnUnderlayWithoutChecksumOffload(t *testing.T) {
	a, b := pair(t, false)
	for _, e := range []end{a, b} {
		if err := e.ns.Do(func() error { return offloadSums("eth0", false) }); err != nil {
			t.Fatal(err)
		}
	}
	transfer(t, a, b, 4<<20)
}

// offloadSums switches an interface's transmit checksum offload (ethtool -K
// tx, SIOCETHTOOL with ETHTOOL_STXCSUM).
func offloadSums(name string, on bool) error {
	value := struct{ cmd, data uint32 }{0x17, 0}
	if on {
		value.data = 1
	}
	var r struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(r.name[:], name)
	r.data = unsafe.Pointer(&value)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

func TestNobodysAddressIsAnsweredUnreachable(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			a, _ := pair(t, v6)
			nobody, network, want := "10.1.77.1", "10.1.0.0/16", "Destination Net Unreachable"
			if v6 {
				nobody, network, want = "fd00:1:77::1", "fd00:1::/32", "Destination unreachable: No route"
			}
			netnstest.Run(t, a.ns, "ip", "route", "add", network, "dev", "tun0")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			out, err := a.ns.Run(ctx, "ping", "-nc", "2", "-i", "0.2", "-W", "1", "-s", "1000", nobody)
			if err == nil || !strings.Contains(out, want) {
				t.Errorf("got %v: %s", err, out)
			}
			if n := a.loop.Counters().NoPeer; n == 0 {
				t.Error("not counted")
			}
		})
	}
}
