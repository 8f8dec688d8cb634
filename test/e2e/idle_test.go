package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestIdleDaemonRunsNoProgram: where the kernel has nftables, nothing is
// forked, not even to look after the rules. The kernel counts page faults of
// children that were waited for: none of them, none at all.
func TestIdleDaemonRunsNoProgram(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, `{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`)
	c.startAll("--ip-masq")
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 1)
	}
	time.Sleep(12 * time.Second) // two beats and more
	for _, h := range c.lab.Hosts() {
		d, err := h.Daemon()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.PID))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		if cminflt := fields[8]; cminflt != "0" { // field 11 of proc_pid_stat(5)
			t.Errorf("the daemon of %s ran programs: their page faults are %s", h.Name, cminflt)
		}
	}
}

// TestDaemonInstallsTheCNIPlugins: with --cni-install, once the network is
// ready and not before.
func TestDaemonInstallsTheCNIPlugins(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "")
	h := c.host(1)
	d := c.start(h, "--cni-install")
	const conflist = "/etc/cni/net.d/10-flannel.conflist"
	time.Sleep(time.Second)
	if _, err := h.ReadFile(conflist); err == nil {
		t.Fatal("engines were told of a network that is not ready")
	}
	c.put("config", `{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`)
	c.waitOK(h, 0)
	within(t, 5*time.Second, "the conflist", func() error {
		b, err := h.ReadFile(conflist)
		if err == nil && !strings.Contains(string(b), "flanneld-bridge") {
			err = fmt.Errorf("it says %s", b)
		}
		return err
	})
	if out := c.run(h, "/opt/cni/bin/flanneld-bridge"); !strings.Contains(out, "flanneld-bridge") {
		t.Errorf("the plugin says %q", out)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
