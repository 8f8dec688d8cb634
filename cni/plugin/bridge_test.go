package plugin

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestContainersReachEachOtherAndTheHost(t *testing.T) {
	h := newHost(t)
	a, b := netnstest.New(t), netnstest.New(t)
	c := h.conf()
	ra, rb := h.add("a", a, c), h.add("b", b, c)
	for _, r := range rb.IPs {
		if err := h.ping(a, r.Address.IP.String()); err != nil {
			t.Errorf("container to container: %v", err)
		}
		if err := h.ping(h.ns, r.Address.IP.String()); err != nil {
			t.Errorf("host to container: %v", err)
		}
		if err := h.ping(b, r.Gateway.String()); err != nil {
			t.Errorf("container to gateway: %v", err)
		}
	}
	if len(ra.Interfaces) != 3 || ra.Interfaces[0].Name != "cni0" || ra.Interfaces[2].Sandbox != a.Path() {
		t.Errorf("interfaces %+v", ra.Interfaces)
	}
	h.ok(request{command: "CHECK", id: "a", netns: a.Path(), conf: withPrev(c, ra)})
	h.ok(request{command: "DEL", id: "a", netns: a.Path(), conf: withPrev(c, ra)})
	h.ok(request{command: "CHECK", id: "b", netns: b.Path(), conf: withPrev(c, rb)})
	h.ok(request{command: "DEL", id: "b", conf: c})
	if links := netnstest.Run(t, a, "ip", "-br", "link"); strings.Contains(links, "eth0") {
		t.Errorf("eth0 left: %s", links)
	}
	h.clean()
}
