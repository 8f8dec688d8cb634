package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// hooks puts the scripts of a host-gw made by hand into a host's /etc, which
// gets a layer of its own for that.
func (c *cluster) hooks(h *lab.Host) {
	c.t.Helper()
	c.sh(h, `mkdir /run/etc /run/work && mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work overlay /etc
mkdir -p /etc/flanneld/extensions && cd /etc/flanneld/extensions
printf '#!/bin/sh\nexec ip route replace "$SUBNET" via "$PUBLIC_IP" proto static\n' >add
printf '#!/bin/sh\nexec ip route del "$SUBNET" via "$PUBLIC_IP" proto static\n' >remove
printf '#!/bin/sh\necho "hello from $PUBLIC_IP"\n' >hello
printf '#!/bin/sh\n{ echo "$HOOK $SUBNET"; cat; } >>/run/said\n' >say
chmod 755 *`)
}

const byHooks = `,"PreStartupCommand":"hello","PostStartupCommand":"say","ShutdownCommand":"say","SubnetAddCommand":"add","SubnetRemoveCommand":"/etc/flanneld/extensions/remove"`

func TestHooksCarryContainersAndTakeEverythingBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, configOf("extension", byHooks))
	for _, h := range c.lab.Hosts() {
		c.hooks(h)
	}
	c.startAll()
	a, b := c.attach(c.host(1), "a"), c.attach(c.host(2), "b")
	c.reach(a, b.Addrs[0].Addr())
	c.reach(b, a.Addrs[0].Addr())
	h := c.host(1)
	if out := strings.TrimSpace(c.sh(h, "cat /run/said")); out != "PostStartup "+c.subnet(h).String() {
		t.Errorf("PostStartupCommand was told %q", out)
	}
	_, lease := c.leaseOf(h.Addr())
	if !strings.Contains(lease, `"BackendData":"hello from `+h.Addr().String()+`"`) {
		t.Errorf("lease %s", lease)
	}

	// A kill, and a restart, which tells all again.
	c.end(h, (*lab.Daemon).Kill)
	c.sh(h, "ip route flush proto static")
	c.start(h)
	c.waitOK(h, 1)
	c.reach(a, b.Addrs[0].Addr())

	// To another backend and back.
	for _, config := range []string{configOf("vxlan", ""), configOf("extension", byHooks)} {
		c.put("config", config)
		for _, h := range c.lab.Hosts() {
			absent := config == configOf("vxlan", "")
			within(t, 20*time.Second, "the hooks' route is as it must be", contains(h, absent, "via 192.168.77.", "ip", "route", "show", "proto", "static"))
			within(t, 20*time.Second, "the device is as it must be", contains(h, !absent, "flannel.1:", "ip", "link"))
			c.waitOK(h, 1)
		}
		c.reach(a, b.Addrs[0].Addr())
		c.reach(b, a.Addrs[0].Addr())
	}
	c.end(h, (*lab.Daemon).Stop)
	c.reach(a, b.Addrs[0].Addr()) // a daemon that ends takes nothing away
	c.run(h, "flanneld", "cleanup")
	within(t, time.Second, "no route is left", contains(h, true, "via 192.168.77.", "ip", "route", "show", "proto", "static"))
	within(t, time.Second, "no record is left", contains(h, true, "extension", "ls", "/run/flannel/"))
}

func TestCommandLinesInTheConfigurationAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, configOf("extension", `,"SubnetAddCommand":"touch /run/pwned"`))
	code, err := c.exit(c.start(c.host(1)))
	if err != nil || code == 0 {
		t.Errorf("exit code %d %v", code, err)
	}
	if said := c.host(1).LogTail(5); !strings.Contains(said, "/etc/flanneld/extensions") {
		t.Errorf("the place for scripts is not named: %s", said)
	}
	within(t, time.Second, "nothing was run", contains(c.host(1), true, "pwned", "ls", "/run"))
}
