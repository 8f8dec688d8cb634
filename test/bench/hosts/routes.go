package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/lab"
)

// routeWatch hears of every new IPv4 route of a host the moment it is there.
type routeWatch struct{ fd int }

func watchRoutes(h *lab.Host) (*routeWatch, error) {
	w := &routeWatch{}
	err := h.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_ROUTE - 1)}))
	})
	return w, err
}

func (w *routeWatch) close() { _ = unix.Close(w.fd) }

// wait returns the time at which the route to a subnet appeared.
func (w *routeWatch) wait(ctx context.Context, subnet netip.Prefix) (time.Time, error) {
	dst := subnet.Addr().As4()
	attr := append([]byte{8, 0, unix.RTA_DST, 0}, dst[:]...) // rtnetlink(7)
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		switch {
		case ctx.Err() != nil:
			return time.Time{}, fmt.Errorf("route to %v: %w", subnet, ctx.Err())
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return time.Time{}, fmt.Errorf("watch routes: %w", err)
		}
		if bytes.Contains(buf[:n], attr) {
			return time.Now(), nil
		}
	}
}

// follow puts leases one by one and measures how long each takes to its route
// on the host.
func (b *bench) follow(ctx context.Context, h *lab.Host, from, count int) (s stats, err error) {
	w, err := watchRoutes(h)
	if err != nil {
		return nil, err
	}
	defer w.close()
	putter := b.helper(ctx, "put")
	ask, err := putter.StdinPipe()
	if err != nil {
		return nil, err
	}
	told, err := putter.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := putter.Start(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ask.Close(), putter.Wait()) }()
	for n := from; n < from+count; n++ {
		var put int64
		if _, err := fmt.Fprintln(ask, n); err != nil {
			return nil, err
		}
		at, err := w.wait(ctx, leaseSubnet(n))
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Fscanln(told, &put); err != nil {
			return nil, fmt.Errorf("put a lease: %w", err)
		}
		s = append(s, at.Sub(time.Unix(0, put)))
		wait(ctx, 100*time.Millisecond) // one change at a time
	}
	return s, nil
}
