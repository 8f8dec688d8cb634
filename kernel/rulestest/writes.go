package rulestest

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// CountWrites counts what nf_tables tells of changes in a namespace from now
// on, until the returned function is called: a message for each rule, chain
// and set, one for each set whose elements change, and one for each transaction.
func CountWrites(t testing.TB, n *netns.NS) func() int {
	t.Helper()
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() int {
		defer unix.Close(fd)
		b := make([]byte, 64<<10)
		for count := 0; ; count++ {
			if _, _, err := unix.Recvfrom(fd, b, 0); err != nil {
				return count
			}
		}
	}
}
