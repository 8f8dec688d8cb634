package rulestest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

// ServicesSubject is a balancer under test.
type ServicesSubject struct {
	// Open returns a balancer for the calling thread's network namespace.
	Open func() (rules.Balancer, error)
	// OpenFilter returns the filter that it has to get on with.
	OpenFilter func() (rules.Filter, error)
	// Flushes are shell commands with which somebody else destroys the rules.
	Flushes map[string]string
	// IPTables is the iptables that other programs of this host use:
	// iptables-nft or iptables-legacy.
	IPTables string
	// Dump is a shell script that prints every rule of the namespace, without
	// what changes by itself (counters, clients that affinity remembers) and
	// without numbers that a balancer chooses as it likes.
	Dump string
	// Runs counts the programs that a balancer has run, and Writes those of
	// them that wrote; nil: none ever.
	Runs, Writes func(rules.Balancer) int64
}

// RunServices runs the contract of rules.Balancer.
func RunServices(t *testing.T, s ServicesSubject) {
	w := newServicesWorld(t)
	tests := map[string]func(*testing.T, *world, ServicesSubject){
		"containers reach endpoints through a virtual address": testVirtual,
		"a container reaches itself":                           testHairpin,
		"the host reaches endpoints through a virtual address": testHostVirtual,
		"SCTP":                                                   testSCTP,
		"ports and targets are told apart":                       testPorts,
		"both hosts balance":                                     testBothHosts,
		"without endpoints it is refused":                        testRefused,
		"a node port is reached from everywhere":                 testNodePorts,
		"a node port leads containers of other hosts back":       testNodePortsFromPods,
		"what the host sends finds back":                         testHostSources,
		"a node port of IPv4 localhost":                          testLocalhost,
		"nobody else reaches localhost":                          testNobodyElse,
		"a node port without endpoints is the host's own":        testOwnServer,
		"endpoints are chosen equally often":                     testBalance,
		"round robin takes turns":                                testRoundRobin,
		"a hash keeps a client at one endpoint":                  testHash,
		"affinity keeps a client at its endpoint":                testAffinity,
		"affinity ends":                                          testAffinityEnds,
		"established connections stay":                           testEstablished,
		"established connections may go another way":             testWayChanges,
		"endpoints may be outside of the network":                testListed,
		"new connections go to new endpoints at once":            testSwap,
		"services of all kinds come and go":                      testChanges,
		"other people's rules go on as they were":                testOthers,
		"it stands beside the filter":                            testBesideFilter,
		"service rules that somebody flushed come back":          testServicesFlushed,
		"repairs are counted, changes are not":                   testRepairs,
		"hosts in the services' network are theirs":              testHosts,
		"a second sync of services writes nothing":               testSecondServicesSync,
		"a restarted balancer writes nothing":                    testBalancerRestart,
		"removal of services and no services leave nothing":      testServicesGone,
		"a balancer of one family leaves the other one's closed": testOneFamily,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, w, s) })
	}
}

// Ports of servers in every container, and of virtual addresses.
const (
	firstServer, servers = 8080, 5
	port                 = 80
	nodePort             = 30080
)

// newServicesWorld is a world as a daemon sets it up for services.
func newServicesWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	for _, n := range []*netns.NS{w.a, w.b} {
		lines := ""
		for _, f := range both() {
			// What a default route does. To lo it would be unreachable (IPv6) or
			// delivered here (IPv4), and cni0 would redirect containers to itself.
			lines += "route add " + f.services().String() + " dev eth0\n"
		}
		// Replies on the same bridge have to come by (br_netfilter).
		batch(t, n, lines+"link set cni0 type bridge nf_call_iptables 1 nf_call_ip6tables 1")
		netnstest.Run(t, n, "sysctl", "-qw", "net.ipv4.conf.cni0.route_localnet=1", "net.ipv4.conf.flannel/1.route_localnet=1")
		netnstest.Run(t, n, "sh", "-ec", "for p in $(bridge -o link show | sed 's/^[0-9]*: //; s/[@:].*//'); do bridge link set dev $p hairpin on; done")
	}
	for name, n := range w.containers() {
		for p := range servers {
			serve(t, n, name, firstServer+p)
		}
	}
	return w
}

func (w *world) containers() map[string]*netns.NS {
	return map[string]*netns.NS{"a1": w.a1, "a2": w.a2, "b1": w.b1}
}

// services holds the virtual addresses, and a name server's.
func (f addrs) services() netip.Prefix { return netip.PrefixFrom(f.dns, f.dns.BitLen()-16).Masked() }

// virtual is the virtual address number i.
func (f addrs) virtual(i int) netip.Addr {
	b := f.services().Addr().AsSlice()
	b[len(b)-2], b[len(b)-1] = 3, byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// slots are servers 0, 1, … of an address.
func slots(a netip.Addr, numbers ...int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, n := range numbers {
		out = append(out, at(a, uint16(firstServer+n)))
	}
	return out
}

// front is a frontend of both TCP and UDP.
func front(f rules.Frontend) []*rules.Frontend {
	tcp, udp := f, f
	tcp.Protocol, udp.Protocol = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	return []*rules.Frontend{&tcp, &udp}
}

// virtually is a frontend at the virtual address number i.
func (f addrs) virtually(i int, slots ...netip.AddrPort) []*rules.Frontend {
	return front(rules.Frontend{Addr: f.virtual(i), Port: port, Slots: slots})
}

// servicesOn is what the daemon on host A would ask for.
func servicesOn(frontends ...[]*rules.Frontend) rules.Services {
	s := rules.Services{Frontends: slices.Concat(frontends...)}
	for _, f := range both() {
		s.Networks = append(s.Networks, f.services())
		s.Pods = append(s.Pods, f.network)
		s.Subnets = append(s.Subnets, f.subnetA)
		s.Local = append(s.Local, f.a1, f.a2)
	}
	slices.SortFunc(s.Local, netip.Addr.Compare)
	slices.SortFunc(s.Frontends, (*rules.Frontend).Compare)
	return s
}

// servicesOnB is what the daemon on host B would ask for.
func servicesOnB(frontends ...[]*rules.Frontend) rules.Services {
	s := servicesOn(frontends...)
	s.Subnets, s.Local = nil, nil
	for _, f := range both() {
		s.Subnets, s.Local = append(s.Subnets, f.subnetB), append(s.Local, f.b1)
	}
	return s
}

// all is some of everything.
func all(w *world) rules.Services {
	var fronts []*rules.Frontend
	for _, f := range both() {
		fronts = append(fronts, f.virtually(1, slots(f.a2, 0)...)...)
		fronts = append(fronts, f.virtually(2)...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.virtual(3), Port: port, Affinity: 3 * 3600e9, Slots: slots(f.b1, 0, 1)})...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.virtual(4), Port: port, Balance: rules.RoundRobin, Slots: slots(f.b1, 0, 1)})...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.virtual(5), Port: port, Balance: rules.Hash, Slots: slots(f.b1, 0, 1, 2)})...)
		fronts = append(fronts, &rules.Frontend{Addr: f.virtual(1), Protocol: unix.IPPROTO_SCTP, Port: port, Slots: slots(f.b1, 0)})
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort, Node: true, Slots: slots(f.b1, 0)})...)
		fronts = append(fronts, front(rules.Frontend{Addr: f.a, Port: nodePort + 1, Node: true})...)
	}
	fronts = append(fronts, front(rules.Frontend{Addr: localhost(), Port: nodePort, Node: true, Slots: slots(both()[0].a1, 0)})...)
	return servicesOn(fronts)
}

func localhost() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// balancer is a balancer on a host; nothing of it is left when the test ends.
type balancer struct {
	t *testing.T
	n *netns.NS
	b rules.Balancer
}

func openBalancer(t *testing.T, w *world, n *netns.NS, s ServicesSubject) *balancer {
	t.Helper()
	b := &balancer{t: t, n: n}
	b.do(func() (err error) {
		b.b, err = s.Open()
		return err
	})
	t.Cleanup(func() {
		b.do(func() error { return b.b.Remove(context.WithoutCancel(t.Context())) })
		b.close()
		flushConnections(t, w)
	})
	return b
}

func (b *balancer) close() {
	b.t.Helper()
	if c, ok := b.b.(interface{ Close() error }); ok {
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *balancer) do(what func() error) {
	b.t.Helper()
	if err := b.n.Do(what); err != nil {
		b.t.Fatal(err)
	}
}

func (b *balancer) sync(s rules.Services) {
	b.t.Helper()
	b.do(func() error { return b.b.Sync(b.t.Context(), s) })
}

func (s ServicesSubject) dump(t *testing.T, n *netns.NS) string {
	t.Helper()
	return netnstest.Run(t, n, "sh", "-ec", s.Dump)
}

// finally runs a program when the test ends.
func finally(t *testing.T, n *netns.NS, name string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := n.Run(context.WithoutCancel(t.Context()), name, args...); err != nil {
			t.Error(err)
		}
	})
}

// expectDump compares all rules with those of before.
func (s ServicesSubject) expectDump(t *testing.T, what string, n *netns.NS, before string) {
	t.Helper()
	if after := s.dump(t, n); after != before {
		t.Errorf("%s, rules changed:\n%s", what, difference(before, after))
	}
}

// difference lists lines that only one of two texts has.
func difference(before, after string) string {
	had, has := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(before) {
		had[line] = true
	}
	var out strings.Builder
	for line := range strings.Lines(after) {
		has[line] = true
		if !had[line] {
			out.WriteString("+ " + line)
		}
	}
	for line := range strings.Lines(before) {
		if !has[line] {
			out.WriteString("- " + line)
		}
	}
	return out.String()
}

func (s ServicesSubject) runs(b *balancer) int64 {
	if s.Runs == nil {
		return 0
	}
	return s.Runs(b.b)
}

func (s ServicesSubject) writes(b *balancer) int64 {
	if s.Writes == nil {
		return 0
	}
	return s.Writes(b.b)
}

// protocols that services of package net's names have here.
func protocols() []string { return []string{"tcp", "udp"} }

// server is what server i of a container calls itself.
func server(who string, i int) string {
	return net.JoinHostPort(who, []string{"8080", "8081", "8082", "8083", "8084"}[i])
}

// ipt fills in the program that others use.
func (s ServicesSubject) ipt(script string) string {
	kind := strings.TrimPrefix(s.IPTables, "iptables-")
	return strings.NewReplacer("ip6t", "ip6tables-"+kind, "ipt", "iptables-"+kind).Replace(script)
}
