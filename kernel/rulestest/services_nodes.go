package rulestest

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

// nodes are node ports of host A that lead to a local and a remote container.
func nodes() []*rules.Frontend {
	var out []*rules.Frontend
	for _, f := range both() {
		out = append(out, front(rules.Frontend{Addr: f.a, Port: nodePort, Node: true, Slots: slots(f.a1, 0)})...)
		out = append(out, front(rules.Frontend{Addr: f.a, Port: nodePort + 1, Node: true, Slots: slots(f.b1, 1)})...)
	}
	return out
}

func testNodePorts(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	b.sync(servicesOn(nodes()))
	for _, f := range both() {
		local, remote := at(f.a, nodePort), at(f.a, nodePort+1)
		expectCall(t, "outside to a local endpoint", w.stranger, local, server("a1", 0), f.stranger)
		expectCall(t, "outside to a remote endpoint", w.stranger, remote, server("b1", 1), f.tunnelA)
		expectCall(t, "another host to a local endpoint", w.b, local, server("a1", 0), f.b)
		expectCall(t, "the host itself to a local endpoint", w.a, local, server("a1", 0), f.a)
		expectCall(t, "the host itself to a remote endpoint", w.a, remote, server("b1", 1), f.tunnelA)
		expectCall(t, "a container to a local endpoint", w.a2, local, server("a1", 0), f.a2)
		expectCall(t, "a container to a remote endpoint", w.a2, remote, server("b1", 1), f.a2)
		expectRefused(t, "outside at another port", w.stranger, at(f.a, nodePort+2))
	}
	// On the way back too: another address of the host at the same port is its own.
	for _, f := range both() {
		expectRefused(t, "the host's other addresses", w.a1, at(f.gatewayA, nodePort))
	}
}

// testNodePortsFromPods has containers of another host come to ports of this
// one: what they are led to must not answer past this host.
func testNodePortsFromPods(t *testing.T, w *world, s ServicesSubject) {
	const listed = 9091
	serve(t, w.stranger, "listed", listed)
	b2 := netnstest.NewNamed(t)
	w.container(t, w.b, b2, 2, 3)
	b := openBalancer(t, w, w.a, s)
	fronts := nodes()
	for _, f := range both() {
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort + 2, Node: true, Slots: []netip.AddrPort{at(f.stranger, listed)}})...)
	}
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		expectCall(t, "to a container of this host", w.b1, at(f.a, nodePort), server("a1", 0), f.b1)
		expectCall(t, "to a container on the client's bridge", b2, at(f.a, nodePort+1), server("b1", 1), f.tunnelA)
		expectCall(t, "to the client itself", w.b1, at(f.a, nodePort+1), server("b1", 1), f.tunnelA)
		expectCall(t, "to a listed endpoint", w.b1, at(f.a, nodePort+2), "listed:9091", f.a)
	}
}

// locally are frontends at 127.0.0.1 that lead to a local and a remote container.
func locally() []*rules.Frontend {
	f := both()[0]
	return append(front(rules.Frontend{Addr: localhost(), Port: nodePort, Node: true, Slots: slots(f.a1, 0)}),
		front(rules.Frontend{Addr: localhost(), Port: nodePort + 1, Node: true, Slots: slots(f.b1, 1)})...)
}

func testLocalhost(t *testing.T, w *world, s ServicesSubject) {
	b := openBalancer(t, w, w.a, s)
	b.sync(servicesOn(nodes(), locally()))
	f := both()[0]
	expectCall(t, "localhost to a local endpoint", w.a, at(localhost(), nodePort), server("a1", 0), f.gatewayA)
	expectCall(t, "localhost to a remote endpoint", w.a, at(localhost(), nodePort+1), server("b1", 1), f.tunnelA)
	serveTCP(t, w.a, "host", "127.0.0.1:8054")
	if who, _, err := call(w.a, "tcp", netip.Addr{}, at(localhost(), 8054)); err != nil || who != "host" {
		t.Errorf("a server on localhost: %q answers (%v)", who, err)
	}
}

// testNobodyElse sends to 127.0.0.1 of the host from outside of it: the
// sysctl route_localnet, which its own way to containers needs, lets that in.
func testNobodyElse(t *testing.T, w *world, s ServicesSubject) {
	netnstest.Run(t, w.a, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
	finally(t, w.a, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=0")
	netnstest.Run(t, w.a, "sysctl", "-qw", "net.ipv4.conf.cni0.accept_local=1") // else the kernel itself refuses some
	finally(t, w.a, "sysctl", "-qw", "net.ipv4.conf.cni0.accept_local=0")
	const servers = 5556
	v := &Victim{t: t}
	listen(t, w.a, func() (err error) {
		v.c, err = net.ListenUDP("udp", &net.UDPAddr{IP: localhost().AsSlice(), Port: servers})
		return err
	})
	defer v.Close()
	f := both()[0]
	senders := map[string]struct {
		n        *netns.NS
		link     string
		src, dst netip.Addr
	}{
		"a container":                        {w.a1, "cni0", f.a1, localhost()},
		"a container, another address":       {w.a1, "cni0", f.a1, netip.MustParseAddr("127.8.8.8")},
		"a container, as the host to itself": {w.a1, "cni0", netip.MustParseAddr("127.9.9.9"), f.gatewayA},
		"a stranger":                         {w.stranger, "eth0", f.stranger, localhost()},
	}
	any := Listen(t, w.a, servers+1) // at every address
	arrives := func(name string) bool {
		x := senders[name]
		payload := fmt.Sprintf("to localhost %d", time.Now().UnixNano())
		to, port := v, uint16(servers)
		if x.dst != localhost() {
			to, port = any, servers+1
		}
		Inject(t, x.n, "eth0", MAC(t, w.a, x.link), UDP(at(x.src, 1234), at(x.dst, port), []byte(payload)))
		return to.Gets(payload)[payload]
	}
	for name := range senders {
		if !eventually(func() bool { return arrives(name) }) {
			t.Errorf("%s does not reach it without rules: the test proves nothing", name)
		}
	}
	flushConnections(t, w)
	b := openBalancer(t, w, w.a, s)
	b.sync(servicesOn(nodes(), locally()))
	for name := range senders {
		if arrives(name) {
			t.Errorf("%s reaches localhost", name)
		}
	}
	// Nor what a service has there.
	leads := Listen(t, w.b1, 5557)
	b.sync(servicesOn(front(rules.Frontend{Addr: localhost(), Port: nodePort, Node: true, Slots: []netip.AddrPort{at(f.b1, 5557)}})))
	payload := fmt.Sprintf("to a service %d", time.Now().UnixNano())
	Inject(t, w.a1, "eth0", MAC(t, w.a, "cni0"), UDP(at(f.a1, 1235), at(localhost(), nodePort), []byte(payload)))
	if leads.Gets(payload)[payload] {
		t.Error("a container reaches a service through the host's localhost")
	}
}

// testOwnServer is about a node port whose service is not there (yet).
func testOwnServer(t *testing.T, w *world, s ServicesSubject) {
	serveTCP(t, w.a, "host", fmt.Sprintf(":%d", nodePort))
	b := openBalancer(t, w, w.a, s)
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort, Node: true})...)
	}
	fronts = append(fronts, front(rules.Frontend{Addr: localhost(), Port: nodePort, Node: true})...)
	b.sync(servicesOn(fronts))
	for _, f := range both() {
		for who, n := range map[string]*netns.NS{"outside": w.stranger, "a container": w.a1, "the host": w.a} {
			if got, _, err := call(n, "tcp", netip.Addr{}, at(f.a, nodePort)); err != nil || got != "host" {
				t.Errorf("%s %s: %q answers (%v)", f.name, who, got, err)
			}
		}
	}
	if got, _, err := call(w.a, "tcp", netip.Addr{}, at(localhost(), nodePort)); err != nil || got != "host" {
		t.Errorf("localhost: %q answers (%v)", got, err)
	}
}
