package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/lab"
)

// foreignLease is what another host would write.
func foreignLease(publicIP, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, publicIP, mac)
}

func TestEtcdAwayAndBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	a := c.attach(h1, "a")
	f := startTraffic(t, a, c.attach(h2, "b"))
	c.stopEtcd()
	within(t, 20*time.Second, "status tells that etcd is away", func() error {
		s, err := c.status(h1)
		if err == nil && (s.Etcd.Connected || s.Verdict != api.Degraded) {
			err = fmt.Errorf("connected %v, verdict %s, reasons %q", s.Etcd.Connected, s.Verdict, s.Reasons)
		}
		return err
	})
	time.Sleep(2 * time.Second)
	f.stop()
	// Drift is repaired without etcd too, and containers come and go.
	c.sh(h1, "ip route del "+c.subnet(h2).String())
	within(t, 10*time.Second, "route is back", contains(h1, false, c.subnet(h2).String(), "ip", "route"))
	later := c.attach(h2, "later")
	c.reach(h1, later.Addrs[0].Addr())
	f = startTraffic(t, a, later)
	c.startEtcd()
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 1)
	}
	c.put("subnets/10.1.200.0-24", foreignLease("192.168.77.99", "02:00:00:00:00:99"))
	within(t, 15*time.Second, "a new lease is seen", contains(h1, false, "10.1.200.0/24", "ip", "route"))
	f.stop()
}

func TestDaemonStartsWithoutEtcd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	f := startTraffic(t, c.attach(h1, "a"), c.attach(h2, "b"))
	c.stopEtcd()
	d, err := h1.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = c.start(h1)
	time.Sleep(3 * time.Second)
	if !d.Alive() {
		t.Fatalf("the daemon does not wait for etcd: %s", h1.LogTail(3))
	}
	c.startEtcd()
	c.waitOK(h1, 1)
	f.stop()
}

func TestCompactedWhileAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.put("subnets/10.1.201.0-24", foreignLease("192.168.77.98", "02:00:00:00:00:98"))
	c.startAll2(2)
	h1, h2 := c.host(1), c.host(2)
	f := startTraffic(t, c.attach(h1, "a"), c.attach(h2, "b"))
	d, err := h1.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(d.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c.put("subnets/10.1.200.0-24", foreignLease("192.168.77.99", "02:00:00:00:00:99"))
	c.etcdctl("del", prefix+"/subnets/10.1.201.0-24")
	// etcd restarts, so that the watch has to begin again, behind the compaction.
	out := c.etcdctl("put", "/elsewhere", "1", "-w", "fields")
	revision := ""
	for line := range strings.Lines(out) {
		if k, v, _ := strings.Cut(line, " : "); k == `"Revision"` {
			revision = strings.TrimSpace(v)
		}
	}
	c.etcdctl("compact", "--physical", revision)
	c.stopEtcd()
	c.startEtcd()
	if err := syscall.Kill(d.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	within(t, 15*time.Second, "a lease made meanwhile is seen", contains(h1, false, "10.1.200.0/24", "ip", "route"))
	within(t, 15*time.Second, "a lease deleted meanwhile is gone", contains(h1, true, "10.1.201.0/24", "ip", "route"))
	c.waitOK(h1, 2)
	f.stop()
}

// startAll2 starts every daemon of a cluster with leases of others in it.
func (c *cluster) startAll2(peers int) {
	c.t.Helper()
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, peers)
	}
}

func TestLeaseOfAPeerExpires(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	d, err := h2.Daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, _ := c.leaseOf(h2.Addr())
	out := c.etcdctl("get", prefix+"/subnets/"+key, "-w", "json")
	_, after, ok := strings.Cut(out, `"lease":`)
	if !ok {
		t.Fatalf("the key is bound to no lease: %s", out)
	}
	var id uint64
	if _, err := fmt.Sscanf(after, "%d", &id); err != nil {
		t.Fatal(err)
	}
	c.etcdctl("lease", "revoke", fmt.Sprintf("%x", id))
	gone := c.subnet(h2).String()
	took := within(t, 10*time.Second, "the route is gone", contains(h1, true, gone, "ip", "route"))
	t.Logf("route gone after %s", took.Round(time.Millisecond))
	c.waitOK(h1, 0)
}

func TestLeaseThatEtcdLostIsRegisteredAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, ipv4)
	c.startAll()
	h1, h2 := c.host(1), c.host(2)
	f := startTraffic(t, c.attach(h1, "a"), c.attach(h2, "b"))
	before := slices.Sorted(maps.Keys(c.leases()))
	c.etcdctl("del", "--prefix", prefix+"/subnets/")
	within(t, 15*time.Second, "the same leases are there again", func() error {
		if now := slices.Sorted(maps.Keys(c.leases())); !slices.Equal(now, before) {
			return fmt.Errorf("leases %v, before %v", now, before)
		}
		return nil
	})
	c.waitOK(h1, 1)
	// A deleted lease is a peer that left: what it costs is the moment until it
	// has registered again.
	f.stopWith(20)
}

func TestEtcdWiped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, ipv4)
	c.startAll()
	f := startTraffic(t, c.attach(c.host(1), "a"), c.attach(c.host(2), "b"))
	before := slices.Sorted(maps.Keys(c.leases()))
	c.stopEtcd()
	c.sh(c.lab.Switch(), "rm -rf "+etcdDir)
	c.startEtcd()
	c.put("config", ipv4)
	c.sameLeases(before)
	f.stop()
}

func TestEtcdRestoredFromAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, ipv4)
	for n := 1; n <= 2; n++ {
		c.start(c.host(n))
	}
	c.waitOK(c.host(1), 1)
	// The snapshot does not know host3, and knows a host that has left since.
	c.put("subnets/10.1.201.0-24", foreignLease("192.168.77.98", "02:00:00:00:00:98"))
	c.etcdctl("snapshot", "save", "/run/snapshot")
	c.etcdctl("del", prefix+"/subnets/10.1.201.0-24")
	c.start(c.host(3))
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 2)
	}
	f := startTraffic(t, c.attach(c.host(1), "a"), c.attach(c.host(3), "b"))
	before := slices.Sorted(maps.Keys(c.leases()))
	c.stopEtcd()
	c.sh(c.lab.Switch(), "rm -rf "+etcdDir+" && ETCDCTL_API=3 etcdctl snapshot restore /run/snapshot --data-dir "+etcdDir)
	c.startEtcd()
	c.etcdctl("del", prefix+"/subnets/10.1.201.0-24")
	c.sameLeases(before)
	f.stop()
}

// sameLeases waits until every host holds what it held.
func (c *cluster) sameLeases(before []string) {
	c.t.Helper()
	within(c.t, 30*time.Second, "every host registers the same subnet again", func() error {
		if now := slices.Sorted(maps.Keys(c.leases())); !slices.Equal(now, before) {
			return fmt.Errorf("leases %v, before %v", now, before)
		}
		return nil
	})
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, len(c.lab.HostNames)-1)
	}
}

// A NAT forgot the connection: its packets vanish, new connections work.
func TestSilentDeathOfTheConnection(t *testing.T) {
	t.Parallel()
	need(t, "nft", "ss")
	c := newCluster(t, 1, ipv4)
	c.startAll()
	h := c.host(1)
	c.dropEstablished(h)
	c.put("subnets/10.1.200.0-24", foreignLease("192.168.77.99", "02:00:00:00:00:99"))
	took := within(t, 15*time.Second, "a new lease is seen", contains(h, false, "10.1.200.0/24", "ip", "route"))
	t.Logf("seen after %s", took.Round(10*time.Millisecond))
}

// dropEstablished drops, in both directions and without a word, the packets
// of the connections to etcd that the host has now.
func (c *cluster) dropEstablished(h *lab.Host) {
	c.t.Helper()
	c.sh(h, `ports=$(ss -Htn state established dport = 2379 | awk '{sub(/.*:/,"",$3); print $3}' | sort -u | paste -sd,)
		[ -n "$ports" ] || { echo no connection; ss -tan; exit 1; }
		nft -f - <<-EOF
			table inet fault {
				chain out { type filter hook output priority 0; tcp dport 2379 tcp sport { $ports } drop; }
				chain in { type filter hook input priority 0; tcp sport 2379 tcp dport { $ports } drop; }
			}
		EOF`)
}
