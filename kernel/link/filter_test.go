package link

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// TestFilterHandsOverWhatCounts asks the kernel itself.
func TestFilterHandsOverWhatCounts(t *testing.T) {
	ns := netnstest.New(t)
	run := func(args ...string) { netnstest.Run(t, ns, "ip", args...) }
	for _, name := range []string{"dev0", "under0", "else0"} {
		run("link", "add", name, "up", "type", "bridge")
	}
	ours, err := OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	port, err := ours.conn.Port()
	if err != nil {
		t.Fatal(err)
	}
	index := func(name string) int {
		l, err := ours.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l.Index
	}
	dev, under, other := index("dev0"), index("under0"), index("else0")
	var fd int
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		prog := filter([]uint32{port}, []int{dev}, []int{under})
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1)})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	heard := func() (out []string) {
		buf := make([]byte, 64<<10)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return out
			}
			for h, body := range nlbatch.Messages(buf[:n]) {
				var r Route
				var a Address
				var nb Neighbour
				switch h.Kind {
				case unix.RTM_NEWROUTE:
					readRoute(body, &r)
					out = append(out, fmt.Sprint("route ", r.Dst))
				case unix.RTM_NEWADDR:
					parseAddress(body, &a)
					out = append(out, fmt.Sprint("addr ", a.Prefix))
				case unix.RTM_NEWNEIGH:
					if parseNeighbour(body, &nb) {
						out = append(out, fmt.Sprint("neigh ", nb.Addr))
					}
				case unix.RTM_NEWLINK:
					out = append(out, "link")
				}
			}
		}
	}
	heard()
	b := ours.Batch(func(i int, err error) { t.Error(i, err) })
	b.SetNeighbour(Neighbour{Addr: netip.MustParseAddr("10.7.0.9"), MAC: MAC{2}, Link: dev})
	b.SetRoute(Route{Dst: netip.MustParsePrefix("10.7.0.0/24"), Link: dev, Protocol: Protocol})
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := heard(); len(got) != 0 {
		t.Errorf("our own: %v", got)
	}
	run("addr", "add", "10.1.0.1/32", "dev", "dev0")
	run("addr", "add", "10.2.0.1/32", "dev", "under0")
	run("addr", "add", "10.3.0.1/32", "dev", "else0")
	run("route", "add", "10.1.1.0/24", "dev", "dev0")
	run("route", "add", "10.2.1.0/24", "dev", "under0")
	run("route", "add", "10.3.1.0/24", "dev", "else0")
	run("route", "add", "10.3.2.0/24", "dev", "else0", "proto", "102")
	run("route", "add", "blackhole", "10.3.3.0/24")
	run("neigh", "add", "10.1.0.9", "lladdr", "02:00:00:00:00:09", "dev", "dev0")
	run("neigh", "add", "10.2.0.9", "lladdr", "02:00:00:00:00:09", "dev", "under0")
	run("link", "set", "else0", "mtu", "1400")
	got := heard()
	got = slices.DeleteFunc(got, func(s string) bool { return s == "route 10.1.0.1/32" }) // the local table's
	want := []string{"addr 10.1.0.1/32", "addr 10.2.0.1/32", "route 10.1.1.0/24", "route 10.3.2.0/24", "neigh 10.1.0.9", "link"}
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v (other is %d)", got, want, other)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{28, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 24, 0, 0, 254, 102, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, body := range nlbatch.Messages(b) {
			parseAll(body)
		}
		parseAll(b)
	})
}

func parseAll(body []byte) {
	var r Route
	var n Neighbour
	var d FDB
	var a Address
	var l Link
	readRoute(body, &r)
	parseNeighbour(body, &n)
	parseFDB(body, &d)
	parseAddress(body, &a)
	parseLink(body, &l)
}
