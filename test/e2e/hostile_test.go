package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

// One bad record must not keep the others from being served.
func TestBadLeasesAreSkippedAndReported(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	f := startTraffic(t, c.attach(h1, "a"), c.attach(h2, "b"))
	own := c.subnet(h1)
	good := foreignLease("192.168.77.99", "02:00:00:00:00:99")
	routes := c.sh(h1, "ip route | sed 's/ *$//'")
	for key, value := range map[string]string{
		"10.1.230.0-24":                      `{`,
		"10.1.231.0-24":                      foreignLease("192.168.77.99", "no MAC"),
		"10.1.232.0-24":                      foreignLease("192.168.77.99", "ff:ff:ff:ff:ff:ff"),
		"10.1.233.0-24":                      foreignLease("not an address", "02:00:00:00:00:99"),
		"10.1.234.0-24":                      foreignLease("127.0.0.1", "02:00:00:00:00:99"),
		"10.1.235.0-24":                      foreignLease("255.255.255.255", "02:00:00:00:00:99"),
		"10.1.236.0-24":                      foreignLease("10.1.236.5", "02:00:00:00:00:99"),
		"10.1.237.0-24":                      `{"PublicIP":"192.168.77.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + strings.Repeat("x", 1<<20) + `"}}`,
		"10.1.238.0-24":                      `{"PublicIP":"192.168.77.99","BackendType":"vxlan","BackendData":` + strings.Repeat("[", 50000) + strings.Repeat("]", 50000) + `}`,
		"10.1.239.0-24":                      `{"PublicIP":"192.168.77.99","BackendType":"vxlan","BackendData":null}`,
		"10.1.240.0-24":                      foreignLease(h1.Addr().String(), "02:00:00:00:00:99"),
		"0.0.0.0-0":                          good,
		"10.2.0.0-24":                        good,
		"10.1.0.0-16":                        good,
		"192.168.77.0-24":                    good,
		"10.96.0.0-24":                       good,
		"127.0.0.0-8":                        good,
		"10.1.241.7-24":                      good,
		"10.1.242.0-240":                     good,
		"nonsense":                           good,
		"10.1.243.0-24/../../x":              good,
		"0.0.0.0-0&fd00:10:1:5::-64":         good,
		fmt.Sprintf("%s-25", own.Addr()):     good,                                               // overlaps ours
		c.subnet(h2).Addr().String() + "-26": foreignLease("192.168.77.98", "02:00:00:00:00:98"), // overlaps host2's
	} {
		c.put("subnets/"+key, value)
	}
	c.put("hosts/nonsense", `[[[`)
	c.put("subnets/10.1.250.0-24", good)
	within(t, 15*time.Second, "the good one is served", contains(h1, false, "10.1.250.0/24", "ip", "route"))
	var s api.Status
	within(t, 15*time.Second, "the bad ones are reported", func() (err error) {
		if s, err = c.status(h1); err == nil && (s.Verdict != api.Degraded || len(s.Reasons) < 20) {
			err = fmt.Errorf("verdict %s, %d reasons: %q", s.Verdict, len(s.Reasons), s.Reasons)
		}
		return err
	})
	for _, r := range s.Reasons {
		if len(r) > 600 {
			t.Errorf("a reason of %d bytes: %.200s", len(r), r)
		}
	}
	now := strings.Split(c.sh(h1, "ip route | sed 's/ *$//'"), "\n")
	var left []string
	for _, line := range now {
		theirs := strings.HasPrefix(line, "10.1.250.0/24 ") || strings.HasPrefix(line, c.subnet(h2).String()+" ") // may be direct by now
		if !strings.Contains(routes, strings.TrimSpace(line)) && !theirs {
			left = append(left, line)
		}
	}
	if len(left) > 0 {
		t.Errorf("routes from bad leases:\n%s", strings.Join(left, "\n"))
	}
	f.stop()
	if d, err := h1.Daemon(); err != nil || !d.Alive() {
		t.Errorf("daemon: %v", err)
	}
}

func TestBadConfigurationAtRunTimeIsNotUsed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1 := c.host(1)
	f := startTraffic(t, c.attach(h1, "a"), c.attach(c.host(2), "b"))
	for _, config := range []string{
		`{`, `{"Network":"0.0.0.0/0"}`, strings.Repeat(" ", 1<<20),
		`{"Network":"10.2.0.0/16","Backend":{"Type":"pigeon"}}`,
		`{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":99999999}}`,
		`{"Network":"192.168.77.0/24","Backend":{"Type":"vxlan"}}`, // the hosts' own
	} {
		c.put("config", config)
		within(t, 10*time.Second, fmt.Sprintf("the wrong configuration %.40q is reported", config), func() error {
			s, err := c.status(h1)
			if err == nil && s.Verdict != api.Degraded {
				err = fmt.Errorf("verdict %s, %q", s.Verdict, s.Reasons)
			}
			return err
		})
	}
	c.etcdctl("del", prefix+"/config")
	time.Sleep(time.Second)
	c.put("config", ipv4)
	c.waitOK(h1, 1)
	f.stop()
}

// Tunnel packets that a stranger sends from the underlay must not arrive.
func TestStrangersPacketsAreDropped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, ipv4)
	for n := 1; n <= 2; n++ {
		c.start(c.host(n))
	}
	h1, stranger := c.host(1), c.host(3)
	c.waitOK(h1, 1)
	c.waitOK(c.host(2), 1)
	a, b := c.attach(h1, "a"), c.attach(c.host(2), "b")
	c.reach(b, a.Addrs[0].Addr())
	mac := c.sh(h1, "cat /sys/class/net/flannel.1/address")
	target := a.Addrs[0].Addr()
	// The stranger builds what flannel would: only a lease is missing.
	c.sh(stranger, fmt.Sprintf(`ip link add flannel.1 type vxlan id 1 local %[1]s dev eth0 dstport 8472 nolearning
		ip addr add 10.1.252.0/32 dev flannel.1; ip link set flannel.1 up
		bridge fdb add %[2]s dev flannel.1 dst %[3]s; ip neigh add 10.1.251.0 lladdr %[2]s dev flannel.1
		ip route add %[4]s via 10.1.251.0 dev flannel.1 onlink`, stranger.Addr(), mac, h1.Addr(), c.subnet(h1)))
	heard := c.count(a, func() {
		if err := c.host(2).Do(func() error { return sendForged(h1.Addr(), mac, b.Addrs[0].Addr().String(), target.String()) }); err != nil {
			t.Fatal(err)
		}
	})
	if heard == 0 {
		t.Error("nothing of a peer arrived: the test proves nothing")
	}
	seen := c.count(a, func() {
		for _, from := range []string{"10.1.252.0", b.Addrs[0].Addr().String()} {
			c.sh(stranger, fmt.Sprintf("ip addr replace %s/32 dev lo; ping -c 3 -i 0.05 -W 1 -I %s %s >/dev/null || true", from, from, target))
		}
	})
	if seen > 0 {
		t.Errorf("%d packets of a stranger arrived in the container", seen)
	}
	// A container that sends tunnel packets to its own host and to another.
	for _, to := range []*lab.Host{h1, c.host(2)} {
		seen := c.count(a, func() { c.forge(b, to, mac, b.Addrs[0].Addr().String(), target.String()) })
		if seen > 0 {
			t.Errorf("%d forged packets through %s arrived in the container", seen, to.Name)
		}
	}
}

// count returns how many echo requests reach a container meanwhile.
func (c *cluster) count(in *lab.Container, during func()) int {
	c.t.Helper()
	read := func() int {
		out, err := in.Command(c.t.Context(), "sh", "-c", `awk '/^Icmp:/ && ++n==1 {while ($++i != "InEchos");} n==2 {print $i; exit}' /proc/net/snmp`).Output()
		if err != nil {
			c.t.Fatal(err)
		}
		var n int
		if _, err := fmt.Sscan(string(out), &n); err != nil {
			c.t.Fatal(err)
		}
		return n
	}
	before := read()
	during()
	time.Sleep(200 * time.Millisecond)
	return read() - before
}

// forge sends VXLAN packets from a container, written by hand.
func (c *cluster) forge(from *lab.Container, to *lab.Host, mac, src, dst string) {
	c.t.Helper()
	err := from.Do(func() error { return sendForged(to.Addr(), mac, src, dst) })
	if err != nil {
		c.t.Fatal(err)
	}
}
