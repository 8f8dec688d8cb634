package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// elementWatch hears of every change of nftables in one network namespace the
// moment it is there.
type elementWatch struct {
	fd  int
	buf []byte
}

// watchElements watches where do runs what it is given.
func watchElements(do func(func() error) error) (*elementWatch, error) {
	w := &elementWatch{buf: make([]byte, 1<<20)}
	err := do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}))
	})
	return w, err
}

func (w *elementWatch) close() { _ = unix.Close(w.fd) }

// isElement tells whether a notification is of an element that came or went.
func isElement(h nlbatch.Header) bool {
	return h.Kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM || h.Kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELSETELEM
}

// count tells how many elements came and went since it was last called.
func (w *elementWatch) count() (n int, err error) {
	for {
		got, _, err := unix.Recvfrom(w.fd, w.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("watch nftables: %w", err)
		}
		for h := range nlbatch.Messages(w.buf[:got]) {
			if isElement(h) {
				n++
			}
		}
	}
}

// wait returns the time at which an endpoint came into a map of the services'
// table.
func (w *elementWatch) wait(ctx context.Context, e netip.AddrPort) (time.Time, error) {
	data := e.Addr().AsSlice()
	data = append(binary.BigEndian.AppendUint16(data, e.Port()), 0, 0)
	for {
		n, _, err := unix.Recvfrom(w.fd, w.buf, 0)
		at := time.Now()
		switch {
		case ctx.Err() != nil:
			return time.Time{}, fmt.Errorf("element for %s: %w", e, ctx.Err())
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return time.Time{}, fmt.Errorf("watch nftables: %w", err)
		}
		for h, body := range nlbatch.Messages(w.buf[:n]) {
			if isElement(h) && bytes.Contains(body, data) {
				return at, nil
			}
		}
	}
}

// The maps of kernel/nft that are looked into.
const (
	servicesMap  = "svc4"
	endpointsMap = "ep4"
)

// table asks for elements of the services' table.
type table struct{ conn *nlbatch.Conn }

func openTable(do func(func() error) error) (t table, err error) {
	err = do(func() error {
		t.conn, err = nlbatch.Dial(unix.NETLINK_NETFILTER)
		return err
	})
	return t, err
}

func (t table) ask(flags uint16, set string) *nlbatch.Batch {
	var b nlbatch.Batch
	b.Message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, flags, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0})
	b.String(unix.NFTA_SET_ELEM_LIST_TABLE, nft.ServicesTable)
	b.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	return &b
}

// serves tells whether there is a service of TCP port 80 at an address.
func (t table) serves(ip netip.Addr) (bool, error) {
	key := append(ip.AsSlice(), unix.IPPROTO_TCP, 0, 0, 0, 0, 80, 0, 0)
	b := t.ask(0, servicesMap)
	b.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		b.Nest(unix.NFTA_LIST_ELEM, func() {
			b.Nest(unix.NFTA_SET_ELEM_KEY, func() { b.Bytes(unix.NFTA_DATA_VALUE, key) })
		})
	})
	found := false
	for _, err := range t.conn.Get(b) {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for service %s: %w", ip, err)
		}
		found = true
	}
	return found, nil
}

// endpoints counts the elements that lead to endpoints.
func (t table) endpoints() (n int, err error) {
	err = t.conn.Dump(t.ask(unix.NLM_F_DUMP, endpointsMap), func(body []byte) error {
		for kind, list := range nlbatch.Attrs(body[4:]) {
			if kind&^unix.NLA_F_NESTED != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for range nlbatch.Attrs(list) {
				n++
			}
		}
		return nil
	})
	if errors.Is(err, nlbatch.ErrInterrupted) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return n, err
}
