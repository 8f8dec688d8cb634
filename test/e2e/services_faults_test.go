package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
)

// TestServicesOutliveFaults breaks what services stand on.
func TestServicesOutliveFaults(t *testing.T) {
	t.Parallel()
	s := newServices(t, 3, dual)
	for i := range s.hosts {
		s.replicate(i+1, fmt.Sprint("web-", i+1), sample)
	}
	s.ip = s.create(s.hosts[0], "frontend", fmt.Sprintf("--port tcp=8888 --port udp=8888/udp --selector app=sample --node-port tcp=%d", nodePort))
	s.steps(t, []step{
		{"a daemon that is killed and restarted loses nothing", (*services).restarted},
		{"records that cannot be read do not stop the others", (*services).garbage},
		{"an address belongs to the service that had it first", (*services).thief},
		{"without etcd services go on, and all agree afterwards", (*services).withoutEtcd},
		{"rules that somebody removed come back", (*services).flushed},
	})
}

// everyoneReaches checks that all replicas answer, from each client and host.
func (s *services) everyoneReaches(t *testing.T) {
	t.Helper()
	for _, ip := range s.ip {
		to := netip.AddrPortFrom(ip, webPort)
		for i := range s.hosts {
			answeredBy(t, s.client[i], to, s.names()...)
			answeredBy(t, s.hosts[i], to, s.names()...)
		}
	}
}

func (s *services) flushed(t *testing.T) {
	h := s.hosts[0]
	flow, err := openIn(s.client[0], "udp", netip.AddrPortFrom(s.ip[0], webPort))
	if err != nil {
		t.Fatal(err)
	}
	defer flow.conn.Close()
	flow.patience = 200 * time.Millisecond
	for _, script := range []string{"nft flush ruleset", "nft delete table inet flanneld-services"} {
		s.sh(h, script)
		took := within(t, 10*time.Second, script+" is made good", func() error {
			_, _ = flow.ask("anybody?") // the kernel tracks it meanwhile
			for _, ip := range s.ip {
				for _, from := range []place{s.client[0], h} {
					err := from.Do(func() error {
						c, err := open("tcp", netip.AddrPortFrom(ip, webPort), 100*time.Millisecond)
						if err == nil {
							err = c.conn.Close()
						}
						return err
					})
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
		t.Logf("%s: repaired after %s", script, took.Round(10*time.Millisecond))
		answeredOver(t, "tcp", s.outside, netip.AddrPortFrom(h.Addr(), nodePort), s.names()...)
		within(t, 10*time.Second, "a flow of UDP that began meanwhile goes on", func() error {
			_, err := flow.ask("nobody?")
			return err
		})
	}
	s.everyoneReaches(t)
}

func (s *services) restarted(t *testing.T) {
	to := netip.AddrPortFrom(s.ip[0], webPort)
	all := startDialogues(t, s.client[0], to, s.names()...)
	all = append(all, startDialogues(t, s.client[1], netip.AddrPortFrom(s.ip[1], webPort), s.names()...)...)
	all = append(all, startDialogues(t, s.outside, netip.AddrPortFrom(s.hosts[1].Addr(), nodePort), s.names()...)...)
	r := startRequests(to, patience, s.client[0], s.client[1], s.client[2], s.hosts[0])
	outside := startRequests(netip.AddrPortFrom(s.hosts[2].Addr(), nodePort), patience, s.outside)
	for _, h := range s.hosts {
		d, err := h.Daemon()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		s.start(h, "--ip-masq")
		s.waitOK(h, len(s.hosts)-1)
		s.described(h, "frontend")
	}
	time.Sleep(300 * time.Millisecond)
	r.stop(t, 0, time.Time{})
	outside.stop(t, 0, time.Time{})
	stopDialogues(t, all)
}

func (s *services) garbage(t *testing.T) {
	bad := map[string]string{
		"services/default/default/bad":           `{`,
		"services/default/default/porous":        `{"Ports":[{"Port":0,"Protocol":"tcp"}]}`,
		"services/default/default/huge":          `{"Ports":"` + strings.Repeat("x", 1<<20) + `"}`,
		"services/default/default/Wrong":         `{"Ports":[{"Port":80,"Protocol":"tcp"}]}`,
		"services/default/default/a/b":           `{}`,
		"services/default/default/odd":           `{"Ports":[{"Port":80,"Protocol":"tcp","NodePort":22}],"Selector":{"app":"sample"}}`,
		"published/default/host1/tcp-8081":       `[]`,
		"published/default/host1/tcp-99999":      `{"Network":"default","Target":"web-1","TargetPort":80}`,
		"published/default/host1/tcp-30085":      `{"Network":"default","Target":"web-1","TargetPort":80}`,
		"published/default/../host1/tcp-8082":    `{"Network":"default","Target":"web-1","TargetPort":80}`,
		"published/default/host1/pigeon-8083":    `{"Network":"default","Target":"web-1","TargetPort":80}`,
		"endpoints/default/default/host9,x,eth0": `{"Addresses":["127.0.0.1"],"Labels":{"app":"sample"}}`,
	}
	for key, value := range bad {
		s.put(key, value)
	}
	// Claims of nobody.
	s.put("vips/nonsense", "x")
	s.put("vips/10.0.0.1", "{")
	s.put("nodeports/tcp-x", strings.Repeat("y", 1<<16))
	within(t, 10*time.Second, "they are reported", func() error {
		st, err := s.status(s.hosts[1])
		if err != nil {
			return err
		}
		for key := range bad {
			if !slices.ContainsFunc(st.Reasons, func(r string) bool { return strings.Contains(r, key) }) {
				return fmt.Errorf("nothing about %s: %s: %.2000q", key, st.Verdict, st.Reasons)
			}
		}
		for _, r := range st.Reasons {
			if len(r) > 600 {
				return fmt.Errorf("a reason of %d bytes: %.200s", len(r), r)
			}
		}
		return nil
	})
	ip := s.create(s.hosts[2], "fresh", "--port 8888 --selector app=sample --node-port auto")
	answeredOver(t, "tcp", s.client[1], netip.AddrPortFrom(ip[0], webPort), s.names()...)
	s.sh(s.hosts[2], "flanneld service delete fresh")
	s.everyoneReaches(t)
	for key := range bad {
		s.etcdctl("del", prefix+"/"+key)
	}
	for _, key := range []string{"vips/nonsense", "vips/10.0.0.1", "nodeports/tcp-x"} {
		s.etcdctl("del", prefix+"/"+key)
	}
	s.waitOK(s.hosts[1], len(s.hosts)-1)
}

// thief: what does not go through a daemon may claim anything.
func (s *services) thief(t *testing.T) {
	other := s.replicate(1, "other", map[string]string{"app": "other"})
	delete(s.web, "other")
	s.put("services/default/default/a-thief", fmt.Sprintf(
		`{"Ports":[{"Port":8888,"Protocol":"tcp","NodePort":%d}],"Selector":{"app":"other"},"VirtualIPs":[%q]}`, nodePort, s.ip[0]))
	for _, h := range s.hosts {
		within(t, 10*time.Second, h.Name+" says who has it", func() error {
			st, err := s.status(h)
			if err != nil {
				return err
			}
			for _, what := range []string{s.ip[0].String(), fmt.Sprint("port ", nodePort)} {
				if st.Verdict != api.Degraded || !slices.ContainsFunc(st.Reasons, func(r string) bool {
					return strings.Contains(r, "a-thief") && strings.Contains(r, what) && strings.Contains(r, "service frontend")
				}) {
					return fmt.Errorf("%s: nothing of %s in %q", st.Verdict, what, st.Reasons)
				}
			}
			return nil
		})
	}
	if d := s.described(s.hosts[1], "a-thief"); len(d.Problems) == 0 {
		t.Errorf("described as %+v", d)
	}
	s.everyoneReaches(t)
	answeredOver(t, "tcp", s.outside, netip.AddrPortFrom(s.hosts[2].Addr(), nodePort), s.names()...)
	s.etcdctl("del", prefix+"/services/default/default/a-thief")
	other.kill(t)
	s.waitOK(s.hosts[0], len(s.hosts)-1)
}

func (s *services) withoutEtcd(t *testing.T) {
	to := netip.AddrPortFrom(s.ip[0], webPort)
	all := startDialogues(t, s.client[0], to, "web-1", "web-3")
	r := startRequests(to, patience, s.client[0], s.client[1], s.client[2], s.hosts[1])
	s.stopEtcd()
	time.Sleep(9 * time.Second) // a host's record lives 8 s: nobody counts as dead
	r.stop(t, 0, time.Time{})
	// Each host knows of its own containers.
	s.replicate(1, "web-4", sample)
	answeredOver(t, "tcp", s.client[0], to, s.names()...)
	s.web["web-2"].kill(t)
	delete(s.web, "web-2")
	answeredOver(t, "tcp", s.client[1], to, "web-1", "web-3")
	out, err := s.hosts[0].Command(t.Context(), "flanneld", "service", "create", "late", "--port", "80", "--selector", "a=b").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "etcd is out of reach") {
		t.Errorf("a service was made without etcd: %v\n%s", err, out)
	}
	s.startEtcd()
	within(t, 30*time.Second, "all hosts agree", func() error {
		for _, h := range s.hosts {
			var ready []string
			for _, b := range s.described(h, "frontend").Behind {
				if b.Ready && b.Address.Is4() {
					ready = append(ready, b.Name)
				}
			}
			slices.Sort(ready)
			if want := slices.Sorted(slices.Values(s.names())); !slices.Equal(ready, want) {
				return fmt.Errorf("%s knows %v, want %v", h.Name, ready, want)
			}
		}
		return nil
	})
	s.everyoneReaches(t)
	stopDialogues(t, all)
}

// TestServicesOnAHostThatIsInTheirNetwork: it has none and says so, the others
// have all of them.
func TestServicesOnAHostThatIsInTheirNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, `{"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","ServiceNetwork":"192.168.77.192/26","Backend":{"Type":"vxlan"}}`)
	inside := c.host(3)
	c.sh(inside, "ip addr add 192.168.77.200/24 dev eth0")
	s := &services{cluster: c, life: t, hosts: c.lab.Hosts(), web: map[string]*replica{}}
	for _, h := range s.hosts[:2] {
		s.start(h, "--ip-masq")
	}
	s.startBare(inside, "--iface", "192.168.77.200", "--ip-masq")
	for i, h := range s.hosts {
		within(t, 15*time.Second, h.Name+" has its lease", func() error {
			st, err := s.status(h)
			if err == nil && (st.Network == nil || len(st.Peers) != 2) {
				err = fmt.Errorf("%+v", st)
			}
			return err
		})
		s.client = append(s.client, s.attach(h, fmt.Sprint("client", i+1)))
	}
	for i := range s.hosts {
		s.replicate(i+1, fmt.Sprint("web-", i+1), sample)
	}
	ips := s.create(s.hosts[0], "frontend", "--port tcp=8888 --selector app=sample")
	for _, from := range s.client { // their way to that host is none of services
		for _, r := range s.web {
			c.reach(from, r.Addrs[0].Addr())
		}
	}
	for i := range s.hosts[:2] {
		answeredOver(t, "tcp", s.client[i], netip.AddrPortFrom(ips[0], webPort), s.names()...)
		answeredOver(t, "tcp", s.hosts[i], netip.AddrPortFrom(ips[0], webPort), s.names()...)
	}
	s.described(inside, "frontend")
	st, err := s.status(inside)
	if err != nil || st.Verdict != api.Degraded || !slices.ContainsFunc(st.Reasons, func(r string) bool {
		return strings.Contains(r, "ServiceNetwork 192.168.77.192/26") && strings.Contains(r, "192.168.77.200")
	}) {
		t.Errorf("%v: status of the host in it: %s, %q", err, st.Verdict, st.Reasons)
	}
	if left := s.sh(inside, "ip route show 192.168.77.192/26; nft list tables | grep flanneld-services; true"); left != "" {
		t.Errorf("it has something of services: %s", left)
	}
}
