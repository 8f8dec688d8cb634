package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
)

// pair is two hosts on one cable, each with a pod behind a bridge. Host n is
// 192.168.77.n, its subnet 10.1.n.0/24.
type pair struct {
	hosts, pods [2]*netns.NS
	undo        []func() error
}

func hostAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 77, byte(n + 1)}) }
func podAddr(n int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 1, byte(n + 1), 2}) }
func subnetOf(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n + 1), 0}), 24)
}
func gateway(n int) netip.Prefix     { return netip.PrefixFrom(subnetOf(n).Addr().Next(), 24) }
func (p *pair) later(f func() error) { p.undo = append(p.undo, f) }

// newPair makes the hosts. mtu is that of the pods' interfaces.
func newPair(ctx context.Context, mtu int) (p *pair, err error) {
	p = &pair{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for i := range 2 {
		for _, ns := range []**netns.NS{&p.hosts[i], &p.pods[i]} {
			if *ns, err = netns.NewAnonymous(); err != nil {
				return p, err
			}
			n := *ns
			p.later(n.Close)
			if err := n.LoopbackUp(); err != nil {
				return p, err
			}
		}
	}
	if err := run(ctx, p.hosts[0], "ip link add eth0 up type veth peer name eth0 netns "+p.hosts[1].Path()); err != nil {
		return p, err
	}
	for i := range 2 {
		for _, line := range []string{
			"ip link set eth0 up",
			fmt.Sprintf("ip addr add %s/24 dev eth0", hostAddr(i)),
			"ip link add cni0 up type bridge",
			fmt.Sprintf("ip addr add %s dev cni0", gateway(i)),
			fmt.Sprintf("ip link add veth0 up mtu %d master cni0 type veth peer name eth0 mtu %d netns %s", mtu, mtu, p.pods[i].Path()),
			"sysctl -qw net.ipv4.ip_forward=1 net.ipv4.tcp_max_tw_buckets=1000",
		} {
			if err := run(ctx, p.hosts[i], line); err != nil {
				return p, err
			}
		}
		for _, line := range []string{
			"ip link set eth0 up",
			fmt.Sprintf("ip addr add %s/24 dev eth0", podAddr(i)),
			"ip route add default via " + gateway(i).Addr().String(),
			"sysctl -qw net.ipv4.tcp_max_tw_buckets=1000",
		} {
			if err := run(ctx, p.pods[i], line); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

func (p *pair) close() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		errs = append(errs, p.undo[i]())
	}
	return errors.Join(errs...)
}

// run runs a command line in a namespace.
func run(ctx context.Context, ns *netns.NS, line string) error {
	args := strings.Fields(line)
	_, err := ns.Run(ctx, args[0], args[1:]...)
	return err
}

// program starts this program again in a namespace, on one CPU.
func program(ctx context.Context, cpu int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", fmt.Sprint(cpu), "/proc/self/exe", "load"}, args...)...)
	if self, err := os.Executable(); err == nil {
		cmd.Args[3] = self
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// server starts a server and waits until it answers.
func (p *pair) server(ctx context.Context, ns *netns.NS, at netip.Addr, cpu int) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := program(ctx, cpu, "server", at.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = ns.Start(cmd)
	}
	if err == nil {
		_, err = bufio.NewReader(out).ReadString('\n')
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start the server on %s: %w", at, err)
	}
	return stop, nil
}

// measure runs one client.
func measure(ctx context.Context, ns *netns.NS, what string, at netip.Addr, cpu int, d time.Duration) (result, error) {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, d+patience)
	defer cancel()
	cmd := program(ctx, cpu, what, at.String(), d.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = ns.Start(cmd)
	}
	if err != nil {
		return result{}, err
	}
	var r result
	err = json.NewDecoder(out).Decode(&r)
	if werr := cmd.Wait(); werr != nil {
		err = werr
	}
	if err != nil {
		return r, fmt.Errorf("%s to %s: %w", what, at, err)
	}
	return r, nil
}
