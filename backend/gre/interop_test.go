package gre_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// TestClassicTunnelIsAPeer has iproute2 make the other end, in every form that
// a header can have.
func TestClassicTunnelIsAPeer(t *testing.T) {
	a, b, cluster := hosts(t, "", backendtest.Families{V4: true, V6: true})
	for _, c := range []struct{ fields, classic string }{
		{``, ""},
		{`,"Key":4026531847`, "key 4026531847"},
		{`,"Key":0`, "key 0"},
		{`,"Key":7,"Checksum":true,"Sequence":true`, "key 7 csum seq"},
	} {
		for _, mode := range []string{"external", "mesh"} {
			for i, own := range a.Own.Subnets {
				kind, dev, ttl := "gre", "classic4", "ttl"
				if own.Addr().Is6() {
					kind, dev, ttl = "ip6gre", "classic6", "hoplimit"
				}
				line := fmt.Sprintf("link add %s mtu 1400 up type %s local %s remote %s %s 64 %s", dev, kind, b.Underlay.Addrs[i], a.Underlay.Addrs[i], ttl, c.classic)
				netnstest.Run(t, b.NS, "ip", strings.Fields(line)...)
				netnstest.Run(t, b.NS, "ip", "route", "add", own.String(), "dev", dev)
			}
			cluster.Config.Backend.Raw = fmt.Appendf(nil, `{"Type":"gre","Mode":%q%s}`, mode, c.fields)
			a.Open(t)
			peer := b.Own
			peer.Data = a.Own.Data
			a.Sync(t, peer)
			a.Reach(t, b)
			b.Reach(t, a)
			if err := a.StartPing(t, b.Own.Subnets[0], 20)(); err != nil { // in order, too
				t.Error(err)
			}
			a.Cleanup(t)
			if t.Failed() {
				t.Fatalf("with %s", cluster.Config.Backend.Raw)
			}
			netnstest.Run(t, b.NS, "ip", "link", "del", "classic4")
			netnstest.Run(t, b.NS, "ip", "link", "del", "classic6")
		}
	}
}

// TestOpenVSwitchPortIsAPeer has the other end in Open vSwitch's own data path.
func TestOpenVSwitchPortIsAPeer(t *testing.T) {
	netnstest.NeedRoot(t)
	needGRE(t)
	for _, program := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is missing (package openvswitch-switch)", program)
		}
	}
	s := suite(t)
	s.Options = json.RawMessage(`{"Type":"gre","Key":7}`)
	c := backendtest.NewCluster(t, s, backendtest.Families{V4: true}, 2)
	a, b := c.Hosts[0], c.Hosts[1]
	a.Open(t)

	// Its pod is the bridge itself, with the address that Reach asks for.
	netnstest.Run(t, b.NS, "ip", "link", "del", "pod0")
	netnstest.Run(t, b.NS, "ip", "addr", "flush", "dev", "eth0")
	o := newOVS(t, b)
	o.vsctl(t, "add-br br-phy -- set bridge br-phy datapath_type=netdev -- add-port br-phy eth0")
	o.ip(t, "addr add 192.168.77.2/24 dev br-phy")
	o.ip(t, "link set br-phy up")
	o.vsctl(t, "add-br br-int -- set bridge br-int datapath_type=netdev other-config:hwaddr=02:00:00:00:00:02"+
		" -- add-port br-int gre0 -- set interface gre0 type=gre ofport_request=7 options:remote_ip=192.168.77.1 options:key=7 options:packet_type=legacy_l3")
	o.ip(t, "addr add 10.1.2.2/32 dev br-int")
	o.ip(t, "link set br-int up")
	o.ip(t, "route add 10.1.1.0/24 via 10.1.2.254 dev br-int onlink")
	o.ip(t, "neigh add 10.1.2.254 lladdr 02:00:00:00:00:01 dev br-int nud permanent")
	for _, args := range []string{"del-flows br-int", "add-flow br-int in_port=7,ip,actions=mod_dl_dst:02:00:00:00:00:02,LOCAL", "add-flow br-int in_port=LOCAL,ip,actions=output:7"} {
		o.run(t, "ovs-ofctl", strings.Fields(args)...)
	}
	peer := b.Own
	peer.Data = subnet.BackendData{V4: json.RawMessage(`{"Key":7}`)}
	a.Sync(t, peer)
	a.Reach(t, b)
	netnstest.Run(t, b.NS, "ping", "-n", "-q", "-c", "2", "-i", "0.1", "-W", "2", "-I", "10.1.2.2", "10.1.1.2")
}

// ovs is an Open vSwitch of its own in a host's namespace.
type ovs struct {
	host *backendtest.Host
	dir  string
}

func newOVS(t *testing.T, h *backendtest.Host) ovs {
	t.Helper()
	dir := t.TempDir()
	o := ovs{h, dir}
	db := filepath.Join(dir, "conf.db")
	o.run(t, "ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema")
	o.start(t, "ovsdb-server", db, "--remote=punix:"+dir+"/db.sock")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(dir + "/db.sock"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("ovsdb-server does not listen")
		}
	}
	o.vsctl(t, "--no-wait init")
	o.start(t, "ovs-vswitchd", "unix:"+dir+"/db.sock")
	return o
}

func (o ovs) command(t *testing.T, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir, "OVS_SYSCONFDIR="+o.dir)
	return cmd
}

// start runs a server until the end of the test.
func (o ovs) start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := o.command(t, name, append(args, "--pidfile", "--no-chdir")...)
	if err := o.host.NS.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func (o ovs) run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := o.command(t, name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := o.host.NS.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
}

func (o ovs) vsctl(t *testing.T, line string) {
	t.Helper()
	o.run(t, "ovs-vsctl", append([]string{"--timeout=20", "--db=unix:" + o.dir + "/db.sock"}, strings.Fields(line)...)...)
}

func (o ovs) ip(t *testing.T, line string) {
	t.Helper()
	netnstest.Run(t, o.host.NS, "ip", strings.Fields(line)...)
}
