package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestChecksumOffloadIsSwitched(t *testing.T) {
	ns := netnstest.New(t)
	netnstest.Run(t, ns, "ip", "link", "add", "flannel.9", "type", "vxlan", "id", "9", "dstport", "8472")
	h, err := OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, want := range []bool{false, false, true} {
		if err := h.SetTxChecksums("flannel.9", want); err != nil {
			t.Fatal(err)
		}
		if on, err := h.TxChecksums("flannel.9"); err != nil || on != want {
			t.Errorf("offload is %v, want %v: %v", on, want, err)
		}
	}
	for _, name := range []string{"nobody", "", "a-name-that-is-too-long"} {
		if err := h.SetTxChecksums(name, false); !errors.Is(err, ErrNoLink) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestResolvedNeighbours(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Run(t, a, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.Path())
	for ns, addr := range map[string]string{a.Path(): "1", b.Path(): "2"} {
		of := a
		if ns == b.Path() {
			of = b
		}
		netnstest.Run(t, of, "ip", "link", "set", "eth0", "up")
		netnstest.Run(t, of, "ip", "addr", "add", "192.168.9."+addr+"/24", "dev", "eth0")
		netnstest.Run(t, of, "ip", "addr", "add", "fd09::"+addr+"/64", "dev", "eth0", "nodad")
	}
	h, err := OpenAt(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	of := strings.Fields(netnstest.Run(t, b, "ip", "-o", "-br", "link", "show", "eth0"))[2]
	for _, to := range []string{"192.168.9.2", "fd09::2"} {
		if _, err := h.Resolved(l.Index, netip.MustParseAddr(to)); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s before anything was sent: %v", to, err)
		}
		netnstest.Run(t, a, "ping", "-n", "-q", "-c", "1", "-W", "2", to)
		if mac, err := h.Resolved(l.Index, netip.MustParseAddr(to)); err != nil || mac.String() != of {
			t.Errorf("%s is %v, want %s: %v", to, mac, of, err)
		}
	}
}
