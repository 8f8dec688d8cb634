package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestCleanupTakesAwayAddressesOnNoLink(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Run(t, n, "ip", "route", "add", "local", "10.0.7.7", "dev", "lo", "table", "local")
	h, err := link.OpenAt(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.SyncLocal([]netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd00:53::a")}); err != nil {
		t.Fatal(err)
	}
	if err := n.Do(cleanAddresses); err != nil {
		t.Fatal(err)
	}
	if left, err := h.Locals(); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if !strings.Contains(netnstest.Run(t, n, "ip", "route", "show", "table", "local"), "10.0.7.7") {
		t.Error("other people's is gone")
	}
}
