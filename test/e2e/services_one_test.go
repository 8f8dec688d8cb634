package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// TestServicesOnOneHost: an answer within one bridge goes back by the rules only
// if the bridge shows it to them. Stock kernels have that in a module.
func TestServicesOnOneHost(t *testing.T) {
	t.Parallel()
	s := &services{cluster: newLab(t, 1), life: t, web: map[string]*replica{}}
	h := s.host(1)
	d, err := h.StartDaemon(t.Context(), "--embed-etcd", "--network", "10.1.0.0/16,fd00:10:1::/48", "--iface", lab.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := s.attach(h, "client")
	s.replicate(1, "web-1", sample)
	s.replicate(1, "web-2", sample)
	s.sh(h, "flanneld service create frontend --port tcp=8888,udp=8888/udp --selector app=sample")
	within(t, time.Minute, "both replicas are known", func() error { // an emulated machine is slow
		if s.ip = s.described(h, "frontend").VirtualIPs; len(s.ip) != 2 {
			return fmt.Errorf("virtual addresses %v", s.ip)
		}
		all, err := call(h, "tcp", netip.AddrPortFrom(s.ip[0], webPort), 50)
		if len(servers(all)) != 2 {
			err = fmt.Errorf("%v answer: %w", servers(all), err)
		}
		return err
	})
	for _, ip := range s.ip {
		to := netip.AddrPortFrom(ip, webPort)
		answeredBy(t, client, to, "web-1", "web-2")
		answeredBy(t, s.web["web-1"], to, "web-1", "web-2") // also itself
		all, err := call(client, "tcp", to, 5)
		if err != nil || slices.ContainsFunc(all, func(a answer) bool { return !slices.Contains(addrs(client), a.source) }) {
			t.Errorf("%v: the servers see %v instead of %v", err, all, addrs(client))
		}
	}
}
