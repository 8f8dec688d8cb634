package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// A host behind a device that forwards packets without computing the
// checksums that were left to it: what a broken network card does.
func TestBrokenChecksumOffloadIsFoundAndMended(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.badCard(1)
	for i, h := range w.hosts {
		h.start()
		s := w.state(i)
		s.Own = s.Own[:1] // over IPv6 the outer packet has a checksum too, and ping fails as well
		h.tell(s)
	}
	h := w.hosts[0]
	r := h.until(40*time.Second, "broken TCP", all(BrokenTCP))
	if want := "host2: TCP fails but ping works: checksum offload of eth0; remedy: --fix-offload"; !strings.HasPrefix(r.Paths[0].Message, want) {
		t.Errorf("message %q, want %q", r.Paths[0].Message, want)
	}
	for _, h := range w.hosts {
		setOffload(t, h.ns, h.devices()[0], false)
	}
	h.until(30*time.Second, "ok", all(OK))
}

func setOffload(t *testing.T, ns *netns.NS, dev string, on bool) {
	t.Helper()
	h, err := link.OpenAt(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.SetTxChecksums(dev, on); err != nil {
		t.Fatal(err)
	}
	if got, err := h.TxChecksums(dev); err != nil || got != on {
		t.Fatalf("offload of %s is %v, want %v: %v", dev, got, on, err)
	}
}

// badCard puts a forwarder between host number n and the router that copies
// frames as they are.
func (w *world) badCard(n int) {
	t := w.t
	t.Helper()
	card := netnstest.New(t)
	r := fmt.Sprintf("r%d", n)
	// The router's end moves into the card's namespace, another takes its place.
	ip(t, w.router, fmt.Sprintf("link set %s netns %s", r, card.Path()))
	ip(t, w.router, fmt.Sprintf("link add %s type veth peer name out netns %s", r, card.Path()))
	ip(t, w.router, fmt.Sprintf("addr add 192.168.7%d.254/24 dev %s", n, r))
	ip(t, w.router, fmt.Sprintf("link set %s up", r))
	ip(t, w.router, fmt.Sprintf("addr add fd7%d::fe/64 dev %s nodad", n, r))
	for _, dev := range []string{r, "out"} {
		ip(t, card, "link set "+dev+" up")
	}
	a, b := frames(t, card, r), frames(t, card, "out")
	go carry(a, b)
	go carry(b, a)
}

// frames opens a socket for all frames of an interface.
func frames(t *testing.T, ns *netns.NS, dev string) *os.File {
	t.Helper()
	var f *os.File
	err := ns.Do(func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		const every = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, every)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(s), dev)
		return errors.Join(
			unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(s, &unix.SockaddrLinklayer{Protocol: every, Ifindex: l.Index}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func carry(from, to *os.File) {
	frame := make([]byte, 1<<16)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		to.Write(frame[:n]) // too large a one is lost, as in life
	}
}
