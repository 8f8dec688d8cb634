package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// udpLoop is the packet loop of flannel's udp backend, its kind.
//
//go:embed testdata/udploop.c
var udpLoop []byte

// flannelUDP lets that loop carry the packets, without any rules.
func flannelUDP(ctx context.Context, p *pair) error {
	dir, err := os.MkdirTemp("", "bench-udploop-")
	if err != nil {
		return err
	}
	p.later(func() error { return os.RemoveAll(dir) })
	source, program := filepath.Join(dir, "udploop.c"), filepath.Join(dir, "udploop")
	if err := os.WriteFile(source, udpLoop, 0o644); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-o", program, source).CombinedOutput(); err != nil {
		return fmt.Errorf("compile the loop: %w: %s", err, out)
	}
	for i := range 2 {
		cmd := exec.Command(program, "flannel0", hostAddr(i).String(), "8285", subnetOf(1-i).String(), hostAddr(1-i).String())
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = p.hosts[i].Start(cmd)
		}
		if err != nil {
			return err
		}
		p.later(func() error {
			_ = cmd.Process.Kill() // Wait tells if it did not work
			if err := cmd.Wait(); !killed(err) {
				return fmt.Errorf("the loop ended by itself: %w", err)
			}
			return nil
		})
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return err
		}
		for _, line := range []string{
			"ip link set flannel0 up mtu 1472",
			fmt.Sprintf("ip addr add %s/32 dev flannel0", subnetOf(i).Addr()),
			fmt.Sprintf("ip route add %s dev flannel0", network()),
			"ip link set cni0 mtu 1472",
			"ip link set veth0 mtu 1472",
		} {
			if err := run(ctx, p.hosts[i], line); err != nil {
				return err
			}
		}
		if err := run(ctx, p.pods[i], "ip link set eth0 mtu 1472"); err != nil {
			return err
		}
	}
	return nil
}

// killed reports whether a process ended by a signal.
func killed(err error) bool {
	e, ok := errors.AsType[*exec.ExitError](err)
	return ok && !e.Exited()
}
