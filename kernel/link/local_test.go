package link_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

func localAddrs(words string) (out []netip.Addr) {
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParseAddr(w))
	}
	return out
}

func TestLocalAddressesAreWholeState(t *testing.T) {
	h := newHost(t)
	h.ip(t, "route add local 10.0.9.9 dev lo table local proto 0x66") // an earlier daemon's
	h.ip(t, "-6 route add local fd00:9::9 dev lo table local proto 0x66")
	h.ip(t, "route add local 10.0.8.8 dev lo table local") // other people's
	h.ip(t, "route add local 10.0.7.0/24 dev lo table local proto 0x66")
	h.ip(t, "addr add 192.168.77.1/24 dev eth0")
	sync := func(want string, writes int) {
		t.Helper()
		before := h.h.Writes()
		n, err := h.h.SyncLocal(localAddrs(want))
		if err != nil || n != writes || int(h.h.Writes()-before) != writes {
			t.Errorf("%s: %d writes, %v; want %d", want, n, err, writes)
		}
		if got, err := h.h.Locals(); err != nil || fmt.Sprint(got) != fmt.Sprint(localAddrs(want)) {
			t.Errorf("%v, %v; want %s", got, err, want)
		}
	}
	others := func() string {
		return h.ip(t, "route show table local 10.0.8.8") + h.ip(t, "route show table local 10.0.7.0/24") + h.ip(t, "addr show dev eth0")
	}
	before := others()
	sync("10.0.0.10 fd00:53::a", 4)
	sync("10.0.0.10 fd00:53::a", 0)
	h.ip(t, "route del local 10.0.0.10 dev lo table local")
	h.ip(t, "-6 route del local fd00:53::a dev lo table local")
	sync("10.0.0.10 fd00:53::a", 2)
	sync("10.0.0.11 fd00:53::a", 2)
	if got := h.ip(t, "route show table local 10.0.0.11"); !strings.Contains(got, "local 10.0.0.11 dev lo proto 102 scope host") {
		t.Errorf("route %q", got)
	}
	// An interface's own address, and what no host can have.
	if n, err := h.h.SyncLocal(localAddrs("192.168.77.1 10.0.0.11 10.0.0.12 fd00:53::a")); err == nil || !strings.Contains(err.Error(), "192.168.77.1") || n != 2 {
		t.Errorf("%d writes, %v", n, err)
	}
	for _, bad := range []string{"0.0.0.0", "::", "127.0.0.1", "ff02::1", "fe80::1%lo"} {
		if n, err := h.h.SyncLocal(localAddrs(bad)); err == nil || n != 0 {
			t.Errorf("%s: %d writes, %v", bad, n, err)
		}
	}
	sync("", 3)
	if after := others(); after != before {
		t.Errorf("other people's:\n%s\nwere:\n%s", after, before)
	}
}

func TestALocalAddressThatSomebodyTookAwayIsTold(t *testing.T) {
	w := newWatched(t)
	sync := func(writes int) {
		t.Helper()
		if n, err := w.own.SyncLocal(localAddrs("10.0.0.10 fd00:53::a")); err != nil || n != writes {
			t.Errorf("%d writes, %v", n, err)
		}
	}
	sync(2)
	w.ip(t, "route add local 10.0.8.8 dev lo table local") // nobody's of ours
	w.quiet(t, "our own doing")
	for _, route := range []string{"route del local 10.0.0.10 dev lo table local", "-6 route del local fd00:53::a dev lo table local"} {
		w.ip(t, route)
		w.told(t, route, link.Change{Devices: true})
		sync(1)
	}
	w.quiet(t, "the repair")
}

// free lets a socket be bound to an address that no interface has.
func free(network, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "4") {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}
	})
	if e != nil {
		return e
	}
	return err
}

// echoAt answers at port 53 of an address by UDP and TCP.
func echoAt(t *testing.T, n *netns.NS, a netip.Addr) {
	t.Helper()
	at := netip.AddrPortFrom(a, 53).String()
	var u net.PacketConn
	var l net.Listener
	err := n.Do(func() (err error) {
		o := net.ListenConfig{Control: free}
		if u, err = o.ListenPacket(t.Context(), "udp", at); err != nil {
			return err
		}
		l, err = o.Listen(t.Context(), "tcp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(from.String()), from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(c.RemoteAddr().String()))
			c.Close()
		}
	}()
}

// seenAt asks and returns the address that the other side saw. Who asks hears
// answers of nobody else.
func seenAt(t *testing.T, n *netns.NS, network string, a netip.Addr) (seen string) {
	t.Helper()
	err := n.Do(func() error {
		d := net.Dialer{Timeout: time.Second}
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		c, err := d.DialContext(ctx, network, netip.AddrPortFrom(a, 53).String())
		if err != nil {
			seen = err.Error()
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if network == "udp" {
			_, _ = c.Write([]byte("?"))
		}
		b := make([]byte, 128)
		k, _ := c.Read(b)
		if p, err := netip.ParseAddrPort(string(b[:k])); err == nil {
			seen = p.Addr().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func TestAContainerIsAnsweredFromAnAddressThatNoInterfaceHas(t *testing.T) {
	host, pod := netnstest.NewNamed(t), netnstest.NewNamed(t)
	name := pod.Path()[strings.LastIndex(pod.Path(), "/")+1:]
	netnstest.Run(t, host, "sh", "-ec", strings.ReplaceAll(`
		sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add cni0 up type bridge
		ip addr add 10.1.1.1/24 dev cni0; ip addr add fd00:1::1/64 dev cni0 nodad
		ip link add p1 up master cni0 type veth peer name eth0 netns NS
		ip -n NS link set eth0 up; ip -n NS addr add 10.1.1.2/24 dev eth0; ip -n NS addr add fd00:1::2/64 dev eth0 nodad
		ip -n NS route add default via 10.1.1.1; ip -n NS -6 route add default via fd00:1::1`, "NS", name))
	h, err := link.OpenAt(host.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	all := localAddrs("10.0.0.10 fd00:53::a")
	if _, err := h.SyncLocal(all); err != nil {
		t.Fatal(err)
	}
	for i, a := range all {
		echoAt(t, host, a)
		for _, network := range []string{"udp", "tcp"} {
			if got, want := seenAt(t, pod, network, a), []string{"10.1.1.2", "fd00:1::2"}[i]; got != want {
				t.Errorf("%s %s: the container is seen as %q, want %s", network, a, got, want)
			}
			// Who asks is this host: IPv4 has it ask from the address itself,
			// IPv6 from one that an interface has.
			if got, want := seenAt(t, host, network, a), []string{"10.0.0.10", "fd00:1::1"}[i]; got != want {
				t.Errorf("%s %s: the host is seen as %q, want %s", network, a, got, want)
			}
		}
	}
}
