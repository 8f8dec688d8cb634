package plugin

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/test/programs"
	"golang.org/x/sys/unix"
)

// background runs a program in a namespace until the test ends.
func background(t *testing.T, n *netns.NS, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, b)
		}
		_ = log.Close()
	})
}

// dhcpConf is a network whose addresses a DHCP server on the bridge gives
// out, through the reference plugin dhcp and its daemon, which waits for it so
// long.
func dhcpConf(t *testing.T, h *host, patience string) conf {
	t.Helper()
	program := programs.Reference(t, "ipam/dhcp")
	if err := os.Symlink(program, filepath.Join(h.dir, "dhcp")); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(h.dir, "dhcp.sock")
	background(t, h.ns, program, "daemon", "-socketpath", socket, "-timeout", "300ms", "-resendtimeout", patience)
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return h.conf().with(conf{
		"isGateway": false, "isDefaultGateway": false, "dataDir": h.dir + "/attachments",
		"ipam": conf{"type": "dhcp", "daemonSocketPath": socket},
	})
}

// serveDHCP gives out addresses from 10.8.0.50, by a router on the bridge.
// What it returns tells whether an address was given back since. (The
// plugin's message comes from 0.0.0.0, which busybox does not get to see.)
func serveDHCP(t *testing.T, h *host) func(netip.Addr) bool {
	t.Helper()
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("the program busybox is missing")
	}
	server := netnstest.New(t)
	h.run("ip", "link", "add", "cni0", "type", "bridge")
	h.run("ip", "link", "add", "router0", "type", "veth", "peer", "name", "eth0", "netns", server.Path())
	h.run("ip", "link", "set", "router0", "master", "cni0", "up")
	netnstest.Run(t, server, "ip", "addr", "add", "10.8.0.1/24", "dev", "eth0")
	netnstest.Run(t, server, "ip", "link", "set", "eth0", "up")
	file := h.write("udhcpd.conf", strings.Join([]string{
		"start 10.8.0.50", "end 10.8.0.59", "interface eth0",
		"lease_file " + h.dir + "/leases", "pidfile " + h.dir + "/udhcpd.pid",
		"option subnet 255.255.255.0", "option router 10.8.0.1", "option lease 3600", "",
	}, "\n"), 0o644)
	h.write("leases", "", 0o644)
	background(t, server, "busybox", "udhcpd", "-f", "-a", "20", file)
	w := openWire(t, server)
	return func(a netip.Addr) bool {
		for range 100 {
			frame := make([]byte, 2000)
			n, err := unix.Read(w.fd, frame)
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			// Ethernet, IP, UDP, then ciaddr at 12 (RFC 2131, 2).
			const message = 14 + 20 + 8
			if n > message+240 && bytes.Equal(frame[message+12:][:4], a.AsSlice()) && bytes.Contains(frame[message+240:n], []byte{53, 1, 7}) {
				return true
			}
		}
		return false
	}
}

func TestAddressesByDHCP(t *testing.T) {
	h := newHost(t)
	c := dhcpConf(t, h, "5s")
	released := serveDHCP(t, h)
	valid := func(ids ...string) conf {
		list := []any{}
		for _, id := range ids {
			list = append(list, conf{"containerID": id, "ifname": "eth0"})
		}
		return c.with(conf{"cni.dev/valid-attachments": list})
	}
	for name, end := range map[string]func(id string, r conf){
		"DEL": func(id string, r conf) { h.ok(request{command: "DEL", id: id, conf: r}) },
		"GC":  func(string, conf) { h.ok(request{command: "GC", conf: valid("another")}) },
	} {
		n, id := netnstest.New(t), "by"+name
		r := h.add(id, n, c)
		address, ok := prefix(r.IPs[0].Address)
		if !ok || address.Bits() != 24 || !strings.HasPrefix(address.String(), "10.8.0.5") || r.IPs[0].Gateway.String() != "10.8.0.1" {
			t.Fatalf("%s: got %+v", name, r.IPs[0])
		}
		if err := h.ping(n, "10.8.0.1"); err != nil {
			t.Error(err)
		}
		if out := netnstest.Run(t, n, "ip", "route"); !strings.Contains(out, "default via 10.8.0.1") {
			t.Errorf("routes: %s", out)
		}
		rules := h.run("nft", "list", "ruleset")
		for _, want := range []string{address.Addr().String() + " comment", "ip daddr 10.8.0.0/24 return", ". " + address.Addr().String()} {
			if !strings.Contains(rules, want) {
				t.Errorf("no %q in\n%s", want, rules)
			}
		}
		if records := h.records(); len(records) != 1 || !strings.HasPrefix(filepath.Base(records[0]), address.Addr().String()+",") {
			t.Errorf("records %v", records)
		}
		h.ok(request{command: "CHECK", id: id, netns: n.Path(), conf: withPrev(c, r)})
		h.ok(request{command: "STATUS", conf: c})
		h.ok(request{command: "GC", conf: valid(id)})
		h.ok(request{command: "CHECK", id: id, netns: n.Path(), conf: withPrev(c, r)})
		end(id, withPrev(c, r))
		if !released(address.Addr()) {
			t.Errorf("%s: the server was not told", name)
		}
		if len(h.records()) != 0 {
			t.Errorf("%s left records %v", name, h.records())
		}
		if links := netnstest.Run(t, n, "ip", "-br", "link"); strings.Contains(links, "eth0") {
			t.Errorf("eth0 left: %s", links)
		}
	}
}

func TestADDWithoutADHCPServerLeavesNothing(t *testing.T) {
	h := newHost(t)
	c := dhcpConf(t, h, "500ms")
	n := netnstest.New(t)
	h.fails(request{command: "ADD", id: "a", netns: n.Path(), conf: c}, codeDelegate, "IPAM plugin dhcp")
	if links := netnstest.Run(t, n, "ip", "-br", "link"); strings.Contains(links, "eth0") {
		t.Errorf("eth0 left: %s", links)
	}
	h.clean()
	h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: c})
}

// TestAnotherIPAMPluginFindsTheInterface has a plugin that looks for the
// interface, as those do that work through it.
func TestAnotherIPAMPluginFindsTheInterface(t *testing.T) {
	h := newHost(t)
	c := delegating(h, answer)
	h.write("other-ipam", `#!/bin/sh
dir=${0%/*}
nsenter --net="$CNI_NETNS" ip -br link show "$CNI_IFNAME" >"$dir/$CNI_COMMAND"
[ "$CNI_COMMAND" != ADD ] || cat "$dir/answer"
`, 0o755)
	n := netnstest.New(t)
	r := h.add("a", n, c.with(conf{"runtimeConfig": conf{"mac": "02:00:00:00:00:77"}}))
	h.ok(request{command: "DEL", id: "a", netns: n.Path(), conf: withPrev(c, r)})
	for _, command := range []string{"ADD", "DEL"} {
		b, err := os.ReadFile(filepath.Join(h.dir, command))
		if err != nil || !strings.Contains(string(b), "UP") || !strings.Contains(string(b), "02:00:00:00:00:77") {
			t.Errorf("%s saw %q, %v", command, b, err)
		}
	}
	h.clean()
}

func TestDELIsRepeatedUntilTheIPAMPluginAgrees(t *testing.T) {
	h := newHost(t)
	c := delegating(h, answer)
	n := netnstest.New(t)
	h.add("a", n, c)
	h.write("other-ipam", "#!/bin/sh\nexit 1\n", 0o755)
	h.fails(request{command: "DEL", id: "a", conf: c}, codeDelegate, "other-ipam")
	if len(h.records()) != 1 {
		t.Errorf("records %v", h.records())
	}
	if links := netnstest.Run(t, n, "ip", "-br", "link"); strings.Contains(links, "eth0") {
		t.Errorf("eth0 left: %s", links)
	}
	h.write("other-ipam", fake, 0o755)
	h.ok(request{command: "DEL", id: "a", conf: c})
	h.clean()
}

func TestKilledPluginLeavesNothingOfAnotherIPAMs(t *testing.T) {
	h := newHost(t)
	c := delegating(h, answer)
	h.write("other-ipam", `#!/bin/sh
dir=${0%/*}
case $CNI_COMMAND in
ADD) touch "$dir/held"; cat "$dir/answer" ;;
DEL) rm -f "$dir/held" ;;
esac
`, 0o755)
	n := netnstest.NewNamed(t)
	for i := range 40 {
		q := request{command: "ADD", id: "a", netns: n.Path(), conf: c}
		h.killed(t, q, time.Duration(i)*400*time.Microsecond)
		q.command = "DEL"
		h.killed(t, q, killAfter(i))
		h.ok(q)
		if _, err := os.Stat(h.dir + "/held"); err == nil {
			// The plugin of an ADD that was killed may still have been at work.
			time.Sleep(20 * time.Millisecond)
			h.ok(q)
		}
		if _, err := os.Stat(h.dir + "/held"); err == nil {
			t.Fatalf("round %d: the address was not given back", i)
		}
		h.clean()
	}
}
