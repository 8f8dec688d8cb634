package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// world is a host with the rules that are measured, and where clients and
// endpoints are.
type world struct {
	host, client, server *netns.NS
	nss                  []*netns.NS
	listener             int
}

// clientSources are addresses that clients may have.
func clientSources() netip.Prefix { return netip.MustParsePrefix("10.3.0.0/16") }

// alone is a host in which client and endpoints are, too: the path is the
// shortest there is, and what the rules cost is the most of it.
func alone(ctx context.Context) (*world, error) {
	w := &world{}
	err := w.add(&w.host)
	if err == nil {
		w.client, w.server = w.host, w.host
		err = script(ctx, w.host,
			"ip link add br0 up type bridge", "ip addr add 10.1.0.1/24 dev br0", fmt.Sprintf("ip route add %s dev br0", serviceNetwork()),
			fmt.Sprintf("ip route add local %s dev lo", foreignPods()))
	}
	return w.listen(err)
}

// apart is a host that forwards between a container and, over one more cable,
// where the endpoints are.
func apart(ctx context.Context) (*world, error) {
	w := &world{}
	err := errors.Join(w.add(&w.host), w.add(&w.client), w.add(&w.server))
	if err == nil {
		err = errors.Join(script(ctx, w.host,
			"ip link add c0 up type veth peer name eth0 netns "+w.client.Path(), "ip addr add 10.1.0.1/24 dev c0",
			"ip link add s0 up type veth peer name eth0 netns "+w.server.Path(), "ip addr add 10.2.0.1/24 dev s0",
			"sysctl -qw net.ipv4.ip_forward=1",
			fmt.Sprintf("ip route add %s via 10.2.0.2", foreignPods()),
			fmt.Sprintf("ip route add %s via 10.1.0.2", clientSources())),
			script(ctx, w.client, "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0", "ip route add default via 10.1.0.1",
				fmt.Sprintf("ip route add local %s dev lo", clientSources())),
			script(ctx, w.server, "ip link set eth0 up", "ip addr add 10.2.0.2/24 dev eth0", "ip route add default via 10.2.0.1",
				fmt.Sprintf("ip route add local %s dev lo", foreignPods())))
	}
	return w.listen(err)
}

func (w *world) add(ns **netns.NS) (err error) {
	if *ns, err = netns.NewAnonymous(); err != nil {
		return err
	}
	w.nss = append(w.nss, *ns)
	return (*ns).LoopbackUp()
}

func (w *world) listen(err error) (*world, error) {
	if err == nil {
		err = w.server.Do(func() (err error) {
			if w.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return errors.Join(unix.SetsockoptInt(w.listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.Bind(w.listener, &unix.SockaddrInet4{Port: target}), unix.Listen(w.listener, 128))
		})
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) close() error {
	var errs []error
	if w.listener > 0 {
		errs = append(errs, unix.Close(w.listener))
	}
	for _, ns := range w.nss {
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}

func script(ctx context.Context, ns *netns.NS, lines ...string) error {
	for _, line := range lines {
		args := strings.Fields(line)
		if _, err := ns.Run(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// lane is one way to an endpoint.
type lane struct {
	*world
	to netip.AddrPort
}

// connect is one connection, accepted and given up by the same thread, so that
// everything happens on one processor, one after the other. What is timed is
// connect(2) and a close(2) that resets, which leaves nothing behind. from may
// be invalid. It tells which endpoint it went to.
func (l lane) connect(from netip.Addr) (took time.Duration, at netip.Addr, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, at, err
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil && from.IsValid() {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
	}
	to := &unix.SockaddrInet4{Addr: l.to.Addr().As4(), Port: int(l.to.Port())}
	begin := time.Now()
	if err == nil {
		err = unix.Connect(fd, to)
	}
	took = time.Since(begin)
	if err != nil {
		return 0, at, errors.Join(fmt.Errorf("connect to %s: %w", l.to, err), unix.Close(fd))
	}
	peer, _, err := unix.Accept4(l.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return 0, at, errors.Join(err, unix.Close(fd))
	}
	name, err := unix.Getsockname(peer)
	if sa, ok := name.(*unix.SockaddrInet4); ok {
		at = netip.AddrFrom4(sa.Addr)
	}
	begin = time.Now()
	err = errors.Join(err, unix.Close(fd))
	took += time.Since(begin)
	return took, at, errors.Join(err, unix.Close(peer))
}

// compare connects through each lane in turn, there and back, and returns what
// a connection took in each round: the median of a batch.
func compare(lanes []lane, rounds int) (took []stats, err error) {
	const batch = 400
	took = make([]stats, len(lanes))
	var order []int
	for i := range lanes {
		order = append(order, i)
	}
	back := slices.Clone(order)
	slices.Reverse(back)
	order = append(order, back...)
	for round := range rounds + 1 {
		sum := make([]time.Duration, len(lanes))
		for _, i := range order {
			one, err := lanes[i].batch(batch)
			if err != nil {
				return nil, err
			}
			sum[i] += one / 2
		}
		for i := range lanes {
			if round > 0 { // the first is to warm up
				took[i] = append(took[i], sum[i])
			}
		}
	}
	return took, nil
}

// batch is done by one thread in the client's namespace.
func (l lane) batch(n int) (time.Duration, error) {
	times := make(stats, 0, n)
	err := l.client.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var all, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			return err
		}
		one.Set(1 % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &all) }() // it was so before
		for range n {
			took, _, err := l.connect(netip.Addr{})
			if err != nil {
				return err
			}
			times = append(times, took)
		}
		return nil
	})
	return times.median(), err
}
