package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func (s *services) health(t *testing.T) {
	const flags = "--port 8888 --selector app=checked --health http:/healthz --health-interval 1s --health-threshold 1"
	well := s.replicate(1, "well", map[string]string{"app": "checked"})
	sick := s.replicate(2, "sick", map[string]string{"app": "checked"})
	delete(s.web, "well")
	delete(s.web, "sick")
	sick.sick.Store(true)
	ips := s.create(s.hosts[0], "checked", flags)
	to := netip.AddrPortFrom(ips[0], webPort)
	c := s.client[2]
	only := func(what string, names ...string) {
		t.Helper()
		took := within(t, 15*time.Second, what, func() error {
			all, err := call(c, "tcp", to, 20)
			if got := servers(all); err == nil && strings.Join(got, " ") != strings.Join(names, " ") {
				err = fmt.Errorf("%v answer, want %v", got, names)
			}
			return err
		})
		t.Logf("%s: after %s", what, took.Round(10*time.Millisecond))
	}
	only("the one that is well answers", "well")
	within(t, 10*time.Second, "it is told why", func() error {
		for _, b := range s.described(s.hosts[2], "checked").Behind {
			if b.Ready == (b.Name == "sick") || b.Name == "sick" && !strings.Contains(b.Why, "503") {
				return fmt.Errorf("described as %+v", b)
			}
		}
		return nil
	})
	sick.sick.Store(false)
	only("the one that got well answers too", "sick", "well")
	well.stop() // nobody listens
	only("the one without a server is left out", "sick")
	s.sh(s.hosts[0], "flanneld service delete checked")
	well.kill(t)
	sick.kill(t)
}

// refused: the last endpoint goes.
func (s *services) refused(t *testing.T) {
	r := s.replicate(2, "only", map[string]string{"app": "only"})
	delete(s.web, "only")
	ips := s.create(s.hosts[0], "lonely", "--port tcp=8888 --port udp=8888/udp --selector app=only --node-port tcp=30082")
	from := map[string]place{"client": s.client[0], "client of its host": s.client[1], "host": s.hosts[2]}
	for _, at := range from {
		answeredBy(t, at, netip.AddrPortFrom(ips[0], webPort), "only")
	}
	r.kill(t)
	for name, at := range from {
		t.Logf("from a %s", name)
		for _, ip := range ips {
			refusedAt(t, at, "tcp", netip.AddrPortFrom(ip, webPort))
			refusedAt(t, at, "udp", netip.AddrPortFrom(ip, webPort))
			refusedAt(t, at, "tcp", netip.AddrPortFrom(ip, 9)) // no port of the service
		}
	}
	for _, a := range underlayOf(s.hosts[0]) {
		refusedAt(t, s.outside, "tcp", netip.AddrPortFrom(a, 30082))
	}
	if d := s.described(s.hosts[0], "lonely"); d.State == nil || d.State.Endpoints != 0 {
		t.Errorf("described as %+v", d)
	}
	s.sh(s.hosts[0], "flanneld service delete lonely")
}

// drained: the label goes first, the container later.
func (s *services) drained(t *testing.T) {
	to := netip.AddrPortFrom(s.ip[0], webPort)
	all := startDialogues(t, s.client[2], to, s.names()...)
	r := startRequests(to, patience, s.client[0], s.client[1], s.client[2], s.hosts[2])
	time.Sleep(300 * time.Millisecond)
	s.sh(s.hosts[0], "flanneld endpoint label web-1 app-")
	var rest []string
	for _, name := range s.names() {
		if name != "web-1" {
			rest = append(rest, name)
		}
	}
	for _, c := range s.client {
		answeredBy(t, c, to, rest...)
	}
	time.Sleep(300 * time.Millisecond) // the dialogue with it goes on
	s.sh(s.hosts[0], "flanneld endpoint label web-1 app=sample")
	for _, c := range s.client {
		answeredBy(t, c, to, s.names()...)
	}
	r.stop(t, 0, time.Time{})
	stopDialogues(t, all)
}

// killedContainer: the container's death and its DEL are some milliseconds
// apart, and all hosts know of it soon after. Each of 4 clients waits for its
// answer before it asks again, 100 times a second at the most, and one of five
// requests goes there: even if that took a second, 80 fail. Later none does.
func (s *services) killedContainer(t *testing.T) {
	to := netip.AddrPortFrom(s.ip[0], webPort)
	flow, err := s.flowTo("web-2", s.client[0])
	if err != nil {
		t.Fatal(err)
	}
	defer flow.conn.Close()
	r := startRequests(to, patience, s.client[0], s.client[1], s.client[2], s.hosts[2])
	time.Sleep(300 * time.Millisecond)
	s.web["web-2"].kill(t)
	delete(s.web, "web-2")
	late := time.Now().Add(time.Second)
	for _, c := range s.client {
		answeredBy(t, c, to, s.names()...)
	}
	took := within(t, 10*time.Second, "a flow of UDP goes to another endpoint", func() error {
		flow.patience = 200 * time.Millisecond
		a, err := flow.ask(fmt.Sprint(time.Now().UnixNano()))
		if err == nil && a.name == "web-2" {
			err = errors.New("it answers still")
		}
		return err
	})
	t.Logf("the flow of UDP goes on after %s", took.Round(10*time.Millisecond))
	time.Sleep(time.Until(late.Add(500 * time.Millisecond)))
	r.stop(t, 80, late)
}

// flowTo is a flow of UDP to the service that one replica answers.
func (s *services) flowTo(name string, from place) (*session, error) {
	for range 100 {
		u, err := openIn(from, "udp", netip.AddrPortFrom(s.ip[0], webPort))
		if err != nil {
			return nil, err
		}
		if a, err := u.ask("who"); err != nil || a.name == name {
			return u, err
		}
		u.conn.Close()
	}
	return nil, fmt.Errorf("%s does not answer", name)
}

// deadHost: until the others know that the host is dead, which may take 15 s, a
// request that goes there waits for its answer for a second. So each of 4
// clients has at most 15 that fail, and later none does.
func (s *services) deadHost(t *testing.T) {
	const known = 15 * time.Second
	to := netip.AddrPortFrom(s.ip[0], webPort)
	dies := s.hosts[2]
	var rest []string
	for name, r := range s.web {
		if r.on.Name != dies.Name {
			rest = append(rest, name)
		}
	}
	if len(rest) == 0 || len(rest) == len(s.web) {
		t.Fatalf("of %v %v stay", s.names(), rest)
	}
	all := startDialogues(t, s.client[0], to, rest...)
	r := startRequests(to, time.Second, s.client[0], s.client[1], s.hosts[0], s.hosts[1])
	time.Sleep(300 * time.Millisecond)
	d, err := dies.Daemon()
	if err == nil {
		err = errors.Join(d.Kill(t.Context()), dies.Unplug())
	}
	if err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	for i, h := range s.hosts[:2] {
		took := within(t, known-time.Since(died), h.Name+" knows that it is dead", func() error {
			got, err := call(s.client[i], "tcp", to, 30)
			if err == nil && len(servers(got)) != len(rest) {
				err = fmt.Errorf("%v answer, want %v", servers(got), rest)
			}
			return err
		})
		t.Logf("%s knew after %s", h.Name, took.Round(10*time.Millisecond))
	}
	time.Sleep(time.Until(died.Add(known + time.Second)))
	r.stop(t, 4*15, died.Add(known))
	stopDialogues(t, all)
	for _, b := range s.described(s.hosts[0], "frontend").Behind {
		if b.Ready == (b.Host == dies.Name) {
			t.Errorf("described as %+v", b)
		}
	}
	if err := dies.Plug(); err != nil {
		t.Fatal(err)
	}
	s.start(dies, "--ip-masq")
	for _, c := range s.client {
		answeredBy(t, c, to, s.names()...)
	}
}

func (s *services) cleanedUp(t *testing.T) {
	s.sh(s.hosts[0], "flanneld publish host1:8080 web-1:8888") // 127.0.0.1 too
	answeredOver(t, "tcp", s.hosts[0], netip.MustParseAddrPort("127.0.0.1:8080"), "web-1")
	for _, h := range s.hosts {
		d, err := h.Daemon()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.run(h, "flanneld", "cleanup", "--etcd-endpoints", endpoint())
		s.nothingLeft(h)
	}
	const made = "/config /config-servicenetwork /nodeports/ /published/ /services/ /vips/"
	for key := range strings.Lines(s.etcdctl("get", "--prefix", "--keys-only", prefix+"/")) {
		key = strings.TrimPrefix(strings.TrimSpace(key), prefix)
		ok := key == ""
		for mine := range strings.FieldsSeq(made) {
			ok = ok || key == mine || strings.HasSuffix(mine, "/") && strings.HasPrefix(key, mine)
		}
		if !ok {
			t.Errorf("left in etcd: %s", key)
		}
	}
}

// nothingLeft looks at a host that was cleaned up.
func (s *services) nothingLeft(h *lab.Host) {
	s.t.Helper()
	if left := s.sh(h, `nft list tables | grep -i flannel
		for f in -4 -6; do ip $f route show table all proto 0x66; ip $f rule | grep -i 0x66; done
		ip -o link | grep -v -e ' lo:' -e ' eth0'
		iptables-save 2>/dev/null | grep -i flannel; ip6tables-save 2>/dev/null | grep -i flannel
		grep -l 1 /proc/sys/net/ipv4/conf/*/route_localnet
		true`); left != "" {
		s.t.Errorf("left on %s:\n%s", h.Name, left)
	}
}
