package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

// services is a cluster with replicas of a web server, a client on each host,
// and a host outside of it.
type services struct {
	*cluster
	life    *testing.T       // of the whole test
	hosts   []*lab.Host      // host1 to host3, with daemons
	outside *lab.Host        // without one
	client  []*lab.Container // client1 on host1, …
	web     map[string]*replica
	ip      []netip.Addr // of the service frontend, IPv4 first
}

// replica is a container with a server.
type replica struct {
	*lab.Container
	*answerer
	on *lab.Host
}

const (
	webPort  = 8888
	nodePort = 30080
)

func newServices(t *testing.T, hosts int, config string) *services {
	t.Helper()
	s := &services{cluster: newCluster(t, hosts+1, config), life: t, web: map[string]*replica{}}
	s.hosts, s.outside = s.lab.Hosts()[:hosts], s.lab.Hosts()[hosts]
	for _, h := range s.hosts {
		s.start(h, "--ip-masq")
	}
	for i, h := range s.hosts {
		s.waitOK(h, hosts-1)
		s.client = append(s.client, s.attach(h, fmt.Sprint("client", i+1)))
	}
	return s
}

// replicate starts a container with a server in it.
func (s *services) replicate(host int, name string, labels map[string]string) *replica {
	s.t.Helper()
	h := s.host(host)
	c, err := h.AttachAs(s.t.Context(), name, lab.Plug{Labels: labels})
	if err != nil {
		s.t.Fatal(err)
	}
	r := &replica{Container: c, answerer: serveIn(s.life, c, name, webPort), on: h}
	s.web[name] = r
	return r
}

// kill is what docker kill and the engine make of a container.
func (r *replica) kill(t *testing.T) {
	t.Helper()
	r.stop()
	if err := r.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

var sample = map[string]string{"app": "sample"}

// create makes a service and returns its virtual addresses.
func (s *services) create(on *lab.Host, name, flags string) []netip.Addr {
	s.t.Helper()
	s.sh(on, "flanneld service create "+name+" "+flags)
	return s.described(on, name).VirtualIPs
}

// described is a service as a host knows it, as soon as it does.
func (s *services) described(on *lab.Host, name string) (d api.ServiceDetail) {
	s.t.Helper()
	within(s.t, 5*time.Second, name+" is known on "+on.Name, func() error {
		out, err := on.Command(s.t.Context(), "flanneld", "service", "describe", name, "-o", "json").Output()
		return errors.Join(err, json.Unmarshal(out, &d))
	})
	return d
}

// refusedAt checks that connections are refused at once.
func refusedAt(t *testing.T, from place, network string, to netip.AddrPort) {
	t.Helper()
	within(t, 10*time.Second, fmt.Sprintf("%s over %s is refused", to, network), func() error {
		_, err := call(from, network, to, 1)
		own := network == "udp" && errors.Is(err, unix.EPERM) // what a host hears of its own filter
		if !errors.Is(err, unix.ECONNREFUSED) && !own {
			return fmt.Errorf("want a refusal, got: %w", err)
		}
		return nil
	})
}

// steps runs tests on what the former ones left behind.
func (s *services) steps(t *testing.T, all []step) {
	t.Helper()
	for _, one := range all {
		ok := t.Run(one.name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			start := time.Now()
			one.test(s, t)
			t.Logf("took %s", time.Since(start).Round(10*time.Millisecond))
		})
		_ = ok // the others tell more about what is wrong
	}
}

type step struct {
	name string
	test func(*services, *testing.T)
}

// TestServices is the life of one service, from its first two replicas on.
func TestServices(t *testing.T) {
	t.Parallel()
	s := newServices(t, 3, dual)
	s.steps(t, []step{
		{"two replicas on two hosts answer to one name on a third", (*services).twoReplicas},
		{"five replicas", (*services).fiveReplicas},
		{"from everywhere", (*services).everywhere},
		{"a container reaches itself", (*services).itself},
		{"local endpoints see who asks", (*services).local},
		{"a node port has one holder", (*services).holder},
		{"a port of a host leads to a container", (*services).published},
		{"a client stays at its endpoint", (*services).affinity},
		{"health decides who answers", (*services).health},
		{"without endpoints connections are refused", (*services).refused},
		{"draining fails no request", (*services).drained},
		{"a killed container costs the requests in flight", (*services).killedContainer},
		{"a dead host costs the requests in flight", (*services).deadHost},
		{"cleanup leaves nothing", (*services).cleanedUp},
	})
}

func (s *services) twoReplicas(t *testing.T) {
	need(t, "busybox")
	s.replicate(1, "web-1", sample)
	s.replicate(2, "web-2", sample)
	s.ip = s.create(s.hosts[0], "frontend", "--port 8888 --selector app=sample")
	if len(s.ip) != 2 || !netip.MustParsePrefix("10.0.0.0/16").Contains(s.ip[0]) || !netip.MustParsePrefix("fd00:10::/112").Contains(s.ip[1]) {
		t.Fatalf("virtual addresses %v: want one of each family, of the networks that daemons choose", s.ip)
	}
	c := s.client[2]
	var names []string
	within(t, 10*time.Second, "both replicas answer by the service's name", func() error {
		out, err := resolve(c, "busybox", "wget", "-q", "-O", "-", "http://frontend:8888/")
		if names = append(names, strings.TrimSpace(out)); err == nil && len(servers(named(names))) < 2 {
			err = fmt.Errorf("only %v so far", names)
		}
		return err
	})
	if err := has(c, netip.MustParseAddr("10.0.0.10"), "frontend.default.svc.cluster.local", s.ip...)(); err != nil {
		t.Error(err)
	}
	for _, ip := range s.ip {
		answeredOver(t, "tcp", c, netip.AddrPortFrom(ip, webPort), "web-1", "web-2")
	}
}

// named are answers of these servers.
func named(names []string) (all []answer) {
	for _, n := range names {
		if n != "" {
			all = append(all, answer{name: n})
		}
	}
	return all
}

func (s *services) fiveReplicas(t *testing.T) {
	s.replicate(3, "web-3", sample)
	s.replicate(3, "web-4", sample)
	s.replicate(2, "web-5", sample)
	s.sh(s.hosts[1], fmt.Sprintf("flanneld service update frontend --port tcp=8888,udp=8888/udp --node-port tcp=%d,udp=%d", nodePort, nodePort))
	for _, c := range s.client {
		for _, ip := range s.ip {
			answeredBy(t, c, netip.AddrPortFrom(ip, webPort), s.names()...)
		}
	}
	if d := s.described(s.hosts[2], "frontend"); len(d.Behind) != 10 || d.State == nil || d.State.Endpoints != 5 || !slices.Equal(d.VirtualIPs, s.ip) {
		t.Errorf("described as %+v", d)
	}
}

// names are those of all replicas that there are.
func (s *services) names() (all []string) {
	for name := range s.web {
		all = append(all, name)
	}
	return all
}

// everywhere asks from all places at all addresses, and looks who was seen.
func (s *services) everywhere(t *testing.T) {
	for i := range s.hosts {
		s.from(t, s.client[i], s.client[i].Name, addrs(s.client[i]), s.ip)
		own := append(underlayOf(s.hosts[i]), gatewaysOf(s.client[i])...)
		s.from(t, s.hosts[i], s.hosts[i].Name, own, append(slices.Clone(s.ip), netip.MustParseAddr("127.0.0.1")))
	}
	s.from(t, s.outside, "outside", underlayOf(s.outside), nil)
}

// gatewaysOf are the addresses that a container's host has in the pod network.
func gatewaysOf(c *lab.Container) (all []netip.Addr) {
	for _, p := range c.Addrs {
		all = append(all, p.Masked().Addr(), p.Masked().Addr().Next())
	}
	return all
}

// from asks from one place at the service's addresses, where the place must be
// seen as itself, and at the node ports of all hosts.
func (s *services) from(t *testing.T, at place, name string, own, ips []netip.Addr) {
	t.Helper()
	var all []netip.AddrPort
	for _, ip := range ips {
		if ip.IsLoopback() {
			all = append(all, netip.AddrPortFrom(ip, nodePort))
			continue
		}
		all = append(all, netip.AddrPortFrom(ip, webPort))
	}
	for _, h := range s.hosts {
		for _, a := range underlayOf(h) {
			all = append(all, netip.AddrPortFrom(a, nodePort))
		}
	}
	for _, to := range all {
		for _, network := range []string{"tcp", "udp"} {
			got, err := call(at, network, to, 5)
			if err != nil {
				t.Errorf("%s to %s over %s: %v", name, to, network, err)
				continue
			}
			for _, a := range got {
				if to.Port() == webPort && !slices.Contains(own, a.source) {
					t.Errorf("%s to %s over %s: %s sees %s, want one of %v", name, to, network, a.name, a.source, own)
				}
			}
		}
	}
}

func (s *services) itself(t *testing.T) {
	for _, ip := range s.ip {
		for _, network := range []string{"tcp", "udp"} {
			all, err := call(s.web["web-1"], network, netip.AddrPortFrom(ip, webPort), 60)
			if err != nil {
				t.Fatalf("%s over %s: %v", ip, network, err)
			}
			if !slices.Contains(servers(all), "web-1") {
				t.Errorf("%s over %s: of 60 connections none led back: %v", ip, network, servers(all))
			}
		}
	}
}

func (s *services) local(t *testing.T) {
	ips := s.create(s.hosts[0], "near", "--port tcp=8888 --port udp=8888/udp --selector app=sample --node-port tcp=30081,udp=30081 --local local")
	on := map[string][]string{}
	for name, r := range s.web {
		on[r.on.Name] = append(on[r.on.Name], name)
	}
	for i, h := range s.hosts {
		for _, ip := range ips {
			answeredBy(t, s.client[i], netip.AddrPortFrom(ip, webPort), on[h.Name]...)
		}
		for j, a := range underlayOf(h) {
			to := netip.AddrPortFrom(a, 30081)
			answeredBy(t, s.outside, to, on[h.Name]...)
			for _, network := range []string{"tcp", "udp"} {
				all, err := call(s.outside, network, to, 5)
				if err != nil {
					t.Error(err)
				}
				for _, got := range all {
					if got.source != underlayOf(s.outside)[j] {
						t.Errorf("%s over %s: %s sees %s instead of the client", to, network, got.name, got.source)
					}
				}
			}
		}
	}
	s.sh(s.hosts[1], "flanneld service delete near")
}

func (s *services) holder(t *testing.T) {
	for _, flags := range []string{
		fmt.Sprintf("--port 80 --selector app=other --node-port %d", nodePort),
		fmt.Sprintf("--port 8888 --selector app=other --ip %s", s.ip[0]),
	} {
		out, err := s.hosts[2].Command(t.Context(), "sh", "-c", "flanneld service create second "+flags).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "service frontend") {
			t.Errorf("with %s: want a refusal that names the holder: %v\n%s", flags, err, out)
		}
	}
	if out := s.sh(s.hosts[0], "flanneld service list"); strings.Contains(out, "second") {
		t.Errorf("it was made all the same:\n%s", out)
	}
}

func (s *services) published(t *testing.T) {
	shop := s.replicate(2, "shop", nil)
	delete(s.web, "shop") // no replica
	h := s.hosts[0]
	s.sh(s.hosts[2], "flanneld publish host1:8080 shop:8888; flanneld publish host1:8080/udp shop:8888")
	defer s.unpublish(h)
	everyone := map[string]place{"outside": s.outside, "shop": shop}
	for i := range s.hosts {
		everyone[s.hosts[i].Name], everyone[s.client[i].Name] = s.hosts[i], s.client[i]
	}
	for name, from := range everyone {
		t.Logf("from %s", name)
		for _, a := range underlayOf(h) {
			answeredBy(t, from, netip.AddrPortFrom(a, 8080), "shop")
		}
	}
	for _, a := range underlayOf(s.hosts[1]) { // nobody published it there
		refusedAt(t, s.outside, "tcp", netip.AddrPortFrom(a, 8080))
	}
	if out := s.sh(h, "flanneld publish list"); !strings.Contains(out, "host1:8080") {
		t.Errorf("not listed:\n%s", out)
	}
	answeredBy(t, h, netip.MustParseAddrPort("127.0.0.1:8080"), "shop")
	s.unpublish(h)
	refusedAt(t, s.outside, "tcp", netip.AddrPortFrom(h.Addr(), 8080))
	shop.kill(t)
}

// unpublish may be called again.
func (s *services) unpublish(h *lab.Host) {
	s.t.Helper()
	s.sh(h, "flanneld publish remove host1:8080; flanneld publish remove host1:8080/udp; true")
}

func (s *services) affinity(t *testing.T) {
	ips := s.create(s.hosts[0], "sticky", "--port tcp=8888 --port udp=8888/udp --selector app=sample --affinity client-ip")
	for _, ip := range ips {
		within(t, 5*time.Second, "connections of a client go to one endpoint", func() error {
			all, err := call(s.client[1], "tcp", netip.AddrPortFrom(ip, webPort), 30)
			if err == nil && len(servers(all)) != 1 {
				err = fmt.Errorf("they go to %v", servers(all))
			}
			return err
		})
	}
	s.sh(s.hosts[0], "flanneld service delete sticky")
}
