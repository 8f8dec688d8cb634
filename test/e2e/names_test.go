package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/dnswire"
)

const withServices = `{"EnableIPv6":true,"Network":"10.1.0.0/16","SubnetMax":"10.1.199.0","IPv6Network":"fd00:10:1::/48",
	"ServiceNetwork":["10.96.0.0/16","fd00:96::/112"],"Backend":{"Type":"vxlan"}}`

// names is a cluster with a container of the same label on each host.
type names struct {
	*cluster
	server, server6 netip.Addr       // the cluster's DNS addresses
	web             []*lab.Container // web1 on host1, …; labelled app=sample
	client          []*lab.Container // client1 on host1, …
	outside         []netip.Addr     // www.example.org
}

func newNames(t *testing.T) *names {
	t.Helper()
	need(t, "dig")
	n := &names{
		cluster: newCluster(t, 3, withServices),
		server:  netip.MustParseAddr("10.96.0.10"), server6: netip.MustParseAddr("fd00:96::a"),
		outside: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}
	startUpstream(t, n.lab.Switch(), lab.SwitchAddrs()[0].Addr(), n.outside...)
	for _, h := range n.lab.Hosts() {
		if err := h.WriteFile("/etc/resolv.conf", []byte("nameserver "+lab.SwitchAddrs()[0].Addr().String()+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	n.startAll("--ip-masq")
	for i, h := range n.lab.Hosts() {
		within(t, 5*time.Second, "dns.env is there", func() error {
			_, err := h.ReadFile("/run/flannel/dns.env")
			return err
		})
		n.web = append(n.web, n.attachAs(h, fmt.Sprint("web", i+1), lab.Plug{
			Labels: map[string]string{"app": "sample"}, Conflist: aliased("www", fmt.Sprint("www", i+1)),
		}))
		n.client = append(n.client, n.attach(h, fmt.Sprint("client", i+1)))
	}
	for i, h := range n.lab.Hosts() {
		within(t, 5*time.Second, "all names are known on "+h.Name, has(n.client[i], n.server, "www.default.cluster.local", addrs(n.web...)...))
	}
	return n
}

func (n *names) attachAs(h *lab.Host, name string, p lab.Plug) *lab.Container {
	n.t.Helper()
	c, err := h.AttachAs(n.t.Context(), name, p)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// gateway is where a container's host answers in its subnet.
func gateway(c *lab.Container) netip.Addr { return c.Addrs[0].Masked().Addr().Next() }

// reverse is the name of an address under in-addr.arpa or ip6.arpa.
func reverse(a netip.Addr) string {
	var b strings.Builder
	if a.Is4() {
		for _, octet := range slices.Backward(a.AsSlice()) {
			fmt.Fprintf(&b, "%d.", octet)
		}
		return b.String() + "in-addr.arpa."
	}
	for _, octet := range slices.Backward(a.AsSlice()) {
		fmt.Fprintf(&b, "%x.%x.", octet&15, octet>>4)
	}
	return b.String() + "ip6.arpa."
}

// dig asks many questions ("NAME TYPE" each) from a place and returns the
// records in the answers, "NAME TYPE DATA" each, sorted. Options come first.
func (n *names) dig(at place, server netip.Addr, questions []string, options ...string) []string {
	n.t.Helper()
	argv := append([]string{"@" + server.String(), "+noall", "+answer", "+tries=1", "+time=3"}, options...)
	for _, q := range questions {
		argv = append(argv, strings.Fields(q)...)
	}
	out, err := at.Command(n.t.Context(), "dig", argv...).CombinedOutput()
	if err != nil {
		n.t.Errorf("dig %v: %v\n%s", argv, err, out)
	}
	var records []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[0] == ";;" {
			n.t.Errorf("dig %v says %q", argv, line)
			continue
		}
		records = append(records, f[0]+" "+f[3]+" "+strings.Join(f[4:], " "))
	}
	slices.Sort(records)
	return records
}

// TestNames is many tests on one cluster: making one takes longer than most
// of them. Later ones break things.
func TestNames(t *testing.T) {
	t.Parallel()
	n := newNames(t)
	for _, s := range []struct {
		name string
		test func(*names, *testing.T)
	}{
		{"containers have all their names on every host", (*names).everyForm},
		{"resolvers of C libraries and programs understand the answers", (*names).resolvers},
		{"names come and go with their containers", (*names).comeAndGo},
		{"services stand for the containers that they select", (*names).services},
		{"a large set comes over TCP", (*names).large},
		{"no connections are tracked", (*names).untracked},
		{"two questions at once lose nothing", (*names).parallel},
		{"a flood does not starve others", (*names).flood},
		{"strangers are not answered", (*names).strangers},
		{"a host whose own filter drops answers its containers", (*names).dropped},
		{"upstreams follow resolv.conf", (*names).followed},
		{"a restart costs one repetition, a dead host its names", (*names).restart},
		{"names outlive etcd", (*names).withoutEtcd},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			outer := n.t
			n.t = t
			defer func() { n.t = outer }()
			start := time.Now()
			s.test(n, t)
			t.Logf("took %s", time.Since(start).Round(10*time.Millisecond))
		})
		_ = ok // the others tell more about what is wrong
	}
}

func (n *names) everyForm(t *testing.T) {
	const id = "c0ffee1234567890"
	pod := n.attachAs(n.host(1), id, lab.Plug{Namespace: "shop", Conflist: aliased("till")})
	defer func() {
		if err := pod.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var questions, want []string
	for names, c := range map[string]*lab.Container{
		"web1.default www1.default wEb1.DEFAULT": n.web[0],
		id + ".shop till.shop c0ffee123456.shop": pod,
	} {
		four, six := c.Addrs[0].Addr(), c.Addrs[1].Addr()
		for name := range strings.FieldsSeq(names) {
			name += ".cluster.LOCAL."
			questions = append(questions, name+" A", name+" AAAA", name+" TXT")
			want = append(want, name+" A "+four.String(), name+" AAAA "+six.String())
		}
		space := strings.Fields(names)[0]
		space = space[strings.Index(space, "."):]
		dashed := strings.ReplaceAll(four.String(), ".", "-") + space + ".pod.cluster.local."
		dashed6 := strings.ReplaceAll(six.StringExpanded(), ":", "-") + space + ".pod.cluster.local."
		questions = append(questions, dashed+" A", dashed6+" AAAA")
		want = append(want, dashed+" A "+four.String(), dashed6+" AAAA "+six.String())
		for _, a := range []netip.Addr{four, six} {
			questions = append(questions, reverse(a)+" PTR")
			want = append(want, reverse(a)+" PTR "+c.Name+space+".cluster.local.")
		}
	}
	slices.Sort(want)
	within(t, 5*time.Second, "the container is known", has(n.client[2], n.server, "till.shop.cluster.local", addrs(pod)...))
	for i, c := range n.client {
		within(t, 5*time.Second, "the container is known", has(c, n.server, "till.shop.cluster.local", addrs(pod)...))
		for _, server := range []netip.Addr{n.server, n.server6, gateway(c)} {
			for _, at := range []place{c, n.host(i + 1)} {
				if got := n.dig(at, server, questions); !slices.Equal(got, want) {
					t.Errorf("host%d, server %s:\n%s\nwant:\n%s", i+1, server, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		}
	}
	if out, err := resolve(pod, "getent", "hosts", "till"); err != nil || !strings.Contains(out, "till.shop.cluster.local") {
		t.Errorf("in its own namespace a pod's name is short: %v: %s", err, out)
	}
}

func (n *names) resolvers(t *testing.T) {
	need(t, "getent", "busybox", "ping")
	musl := muslResolver(t)
	n.sh(n.host(1), "flanneld service create frontend --headless --port http=8888 --selector app=sample")
	within(t, 5*time.Second, "the service is known", has(n.client[1], n.server, "frontend.default.svc.cluster.local", addrs(n.web...)...))
	c := n.client[1]
	for name, want := range map[string][]netip.Addr{
		"web1":                               addrs(n.web[0]),
		"www3":                               addrs(n.web[2]),
		"web1.default":                       addrs(n.web[0]),
		"web1.default.cluster.local":         addrs(n.web[0]),
		"web1.default.cluster.local.":        addrs(n.web[0]),
		"frontend":                           addrs(n.web...),
		"frontend.default.svc":               addrs(n.web...),
		"frontend.default.svc.cluster.local": addrs(n.web...),
		"www.example.org":                    n.outside,
	} {
		slices.SortFunc(want, netip.Addr.Compare)
		for _, argv := range [][]string{{"getent", "ahosts", name}, {musl, name}} {
			if argv[0] == musl && strings.Count(name, ".") > 0 && !strings.Contains(name, "cluster.local") && name != "www.example.org" {
				continue // musl does not search for a name with a dot in it
			}
			out, err := resolve(c, argv...)
			if err != nil {
				t.Error(err)
			} else if got := found(out); !slices.Equal(got, want) {
				t.Errorf("%v: %v, want %v", argv, got, want)
			}
		}
	}
	const whole = "web1.default.cluster.local"
	out, err := resolve(c, "busybox", "nslookup", whole)
	if err != nil {
		t.Error(err)
	}
	for _, a := range addrs(n.web[0]) {
		if !slices.Contains(found(out), a) {
			t.Errorf("busybox does not find %s:\n%s", a, out)
		}
	}
	if _, err := resolve(c, "ping", "-c", "1", "-W", "3", "web1"); err != nil {
		t.Error(err)
	}
	for _, argv := range [][]string{{"getent", "ahosts", "nobody"}, {musl, "nobody.default.cluster.local"}} {
		if out, err := resolve(c, argv...); err == nil {
			t.Errorf("%v finds %s", argv, out)
		}
	}
}

func (n *names) comeAndGo(t *testing.T) {
	const name = "brief.default.cluster.local"
	for i := range n.client { // asked for before it exists
		if err := has(n.client[i], n.server, name)(); err != nil {
			t.Error(err)
		}
	}
	// everywhere waits for a name on each host at once.
	everywhere := func(what string, want ...netip.Addr) {
		t.Helper()
		since := time.Now()
		took := make([]time.Duration, len(n.client))
		var wg sync.WaitGroup
		for i, c := range n.client {
			wg.Go(func() {
				for check := has(c, n.server, name, want...); check() != nil && time.Since(since) < 5*time.Second; {
					time.Sleep(2 * time.Millisecond)
				}
				took[i] = time.Since(since)
			})
		}
		wg.Wait()
		t.Logf("%s: on host1 to host3 after %v", what, took)
		if slices.Max(took) > 5*time.Second {
			t.Errorf("%s: not within 5 s on every host", what)
		}
	}
	for range 3 {
		c := n.attach(n.host(1), "brief")
		everywhere("answered after the ADD", addrs(c)...)
		if err := c.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		everywhere("gone after the DEL")
	}
}

func (n *names) services(t *testing.T) {
	n.sh(n.host(3), "flanneld service create backend --headless --port http=8888 --port metrics=9000/tcp --selector app=sample")
	const name = "backend.default.svc.cluster.local"
	within(t, 5*time.Second, "the service is known", has(n.client[0], n.server, name, addrs(n.web...)...))
	srv := n.dig(n.client[0], n.server, []string{"_http._tcp." + name + ". SRV"})
	if len(srv) != len(addrs(n.web...)) {
		t.Errorf("want a record for each address of the %d containers: %v", len(n.web), srv)
	}
	var targets []netip.Addr
	for _, r := range srv {
		f := strings.Fields(r)
		if f[4] != "8888" {
			t.Errorf("%q: want port 8888", r)
		}
		for _, a := range n.dig(n.client[0], n.server, []string{f[5] + " A", f[5] + " AAAA"}) {
			targets = append(targets, netip.MustParseAddr(a[strings.LastIndex(a, " ")+1:]))
		}
	}
	slices.SortFunc(targets, netip.Addr.Compare)
	if want := slices.SortedFunc(slices.Values(addrs(n.web...)), netip.Addr.Compare); !slices.Equal(targets, want) {
		t.Errorf("the targets have %v, want %v", targets, want)
	}
	out, err := n.client[0].Command(t.Context(), "dig", "@"+n.server.String(), "+noall", "+additional", "_http._tcp."+name, "SRV").Output()
	for _, a := range addrs(n.web...) {
		if err != nil || !strings.Contains(string(out), a.String()) {
			t.Errorf("no %s in the additional section: %v\n%s", a, err, out)
		}
	}
	if out := n.sh(n.host(2), "flanneld service list"); !strings.Contains(out, "backend") {
		t.Errorf("not listed:\n%s", out)
	}
	n.sh(n.host(2), "flanneld service delete backend")
	within(t, 5*time.Second, "the service is gone", has(n.client[0], n.server, name))
}

func (n *names) large(t *testing.T) {
	want := make([]netip.Addr, 0, 100)
	args := make([]string, 0, cap(want))
	for a := netip.MustParseAddr("192.0.2.1"); len(want) < cap(want); a = a.Next() {
		want = append(want, a)
		args = append(args, a.String())
	}
	n.sh(n.host(1), "flanneld dns add many "+strings.Join(args, " "))
	const name = "many.default.cluster.local"
	within(t, 5*time.Second, "the name is known", func() error {
		r, err := ask(n.client[1], n.server, name, dnswire.A, time.Second)
		if err == nil && !r.Truncated {
			err = fmt.Errorf("100 addresses in 1,232 bytes, or none: %+v", r)
		}
		return err
	})
	if got := n.dig(n.client[1], n.server, []string{name + ". A"}, "+tcp"); len(got) != len(want) {
		t.Errorf("dig over TCP finds %d addresses: %v", len(got), got)
	}
	if got := n.dig(n.client[1], n.server, []string{name + ". A"}, "+bufsize=4096"); len(got) != len(want) {
		t.Errorf("dig finds %d addresses: %v", len(got), got)
	}
	out, err := resolve(n.client[1], "getent", "ahosts", "many")
	if err != nil || len(found(out)) != len(want) {
		t.Errorf("getent finds %d addresses: %v\n%s", len(found(out)), err, out)
	}
}

func (n *names) untracked(t *testing.T) {
	need(t, "conntrack")
	h := n.host(1)
	c := n.client[0]
	for _, server := range []netip.Addr{n.server, gateway(c)} {
		for i := range 20 {
			if err := has(c, server, "www.default.cluster.local", addrs(n.web...)...)(); err != nil {
				t.Error(err)
			}
			if err := has(h, server, fmt.Sprintf("other%d.example.org", i), n.outside...)(); err != nil {
				t.Error(err)
			}
		}
	}
	// What this host asks its upstream is tracked, so tracking is on.
	table := n.sh(h, "conntrack -L -p udp 2>/dev/null")
	if at := lab.SwitchAddrs()[0].Addr(); !strings.Contains(table, fmt.Sprintf("dst=%s sport", at)) {
		t.Errorf("nothing is tracked here at all:\n%s", table)
	}
	for _, server := range []netip.Addr{n.server, gateway(c)} {
		for line := range strings.Lines(table) {
			if strings.Contains(line, "dst="+server.String()+" ") {
				t.Errorf("tracked: %s", line)
			}
		}
	}
}

func (n *names) parallel(t *testing.T) {
	const times = 10_000
	clients := slices.Concat(n.client, n.web)
	var mu sync.Mutex // guards the results
	var slowest time.Duration
	var lost int
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range clients {
		wg.Go(func() {
			longest, missing, err := pairs(c, n.server, "web1.default.cluster.local", times/len(clients)+1)
			mu.Lock()
			defer mu.Unlock()
			slowest, lost = max(slowest, longest), lost+missing
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d pairs in %s, slowest %s", times, time.Since(start).Round(time.Millisecond), slowest)
	if lost > 0 {
		t.Errorf("%d of %d pairs lost an answer", lost, times)
	}
}

func (n *names) flood(t *testing.T) {
	for _, kind := range []string{"web2.default.cluster.local", "www.example.org", "nobody.example.net"} {
		l := startLookups(t, n.web[1], n.server, "web1.default.cluster.local", 10*time.Millisecond)
		sent := 0
		err := n.client[1].Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 53, Addr: n.server.As4()}); err != nil {
				return err
			}
			for start := time.Now(); time.Since(start) < time.Second; sent++ {
				_ = unix.Send(fd, dnswire.Query(uint16(sent), kind, dnswire.A), unix.MSG_DONTWAIT) // what the host refuses is no flood
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		t.Logf("flooded with %d questions for %s", sent, kind)
		l.stop(t)
	}
}

func (n *names) strangers(t *testing.T) {
	sw, h := n.lab.Switch(), n.host(1)
	n.sh(sw, fmt.Sprintf("ip route replace %s/32 via %s; ip route replace %s via %s", n.server, h.Addr(), n.client[0].Addrs[0].Masked(), h.Addr()))
	for _, server := range []netip.Addr{n.server, gateway(n.client[0])} {
		if err := has(n.client[0], server, "web1.default.cluster.local", addrs(n.web[0])...)(); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"web1.default.cluster.local", "www.example.org"} {
			if r, err := ask(sw, server, name, dnswire.A, 300*time.Millisecond); err == nil {
				t.Errorf("%s answers a stranger for %s: %+v", server, name, r)
			}
		}
		if got := strangerTCP(t, sw, server); got > 0 {
			t.Errorf("%s answers a stranger %d bytes over TCP", server, got)
		}
	}
	if r, err := ask(sw, h.Addr(), "web1.default.cluster.local", dnswire.A, 300*time.Millisecond); err == nil {
		t.Errorf("the host's own address answers: %+v", r)
	}
}

// strangerTCP asks over TCP and returns how many bytes came back.
func strangerTCP(t *testing.T, at place, server netip.Addr) int {
	t.Helper()
	var conn net.Conn
	err := at.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(server, 53).String(), 300*time.Millisecond)
		return err
	})
	if err != nil {
		return 0
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond)) // a new connection takes one
	q := dnswire.Query(1, "web1.default.cluster.local", dnswire.A)
	_, _ = conn.Write(append([]byte{0, byte(len(q))}, q...)) // it may be closed already
	got, _ := conn.Read(make([]byte, 512))
	return got
}
